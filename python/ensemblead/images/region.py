"""Regions of interest: which pixels of photographs are inspected."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ensemblead.images.masks import Mask, read_mask
from ensemblead.kernels.filling import nearest_inside

Points: TypeAlias = tuple[tuple[float, float], ...]
_FEWEST_POINTS = 3


class Region:
    """The pixels of photographs that are inspected: a mask of their size, or polygons on them.

    `Region.of` makes one. Regions are equal, and hash alike, if their pixels or their points are equal.
    Polygons have no size until `sized` draws them on photographs of one.

    >>> Region.of([[(0, 0), (8, 0), (8, 4), (0, 4)]]).sized((8, 8)).share
    0.5
    """

    def __init__(self, mask: Mask | None, polygons: tuple[Points, ...] = ()) -> None:
        self._mask, self._polygons = mask, polygons
        if mask is None:
            self._key: Any = polygons
            return
        if mask.size == 0 or not mask.any():
            raise ValueError(
                f"region has no pixel inside: all of the {' x '.join(map(str, mask.shape))} are 0"
            )
        self._key = mask.shape, hashlib.sha256(np.packbits(mask).tobytes()).digest()

    @classmethod
    def of(cls, given: Any) -> Region | None:
        """A region from what a detector's `region` may be.

        Args:
            given: None; a `Region`; the path of a mask image, which is read now (inside where it is not
                black); bool or uint8 `[H, W]`, inside where it is not 0; a sequence of polygons, each of
                three points `(x, y)` or more in pixels of the photograph, with the centre of the first pixel
                at (0.5, 0.5); or what `plain` returned.

        Raises FileNotFoundError, UnreadableImageError, TypeError for another kind or dtype, ValueError for a
        wrong shape, a mask without anything inside, and polygons of too few points, of points that are not
        finite, or left of or above the photograph.
        """
        if given is None or isinstance(given, Region):
            return given
        if isinstance(given, (str, os.PathLike)):
            if not os.fspath(given):
                raise ValueError("region must not be an empty path")
            return cls(read_mask(os.fspath(given)))
        if isinstance(given, Mapping):
            return cls(_decoded(given))
        if isinstance(given, (list, tuple)):
            return cls(None, _polygons(given))
        if isinstance(given, np.ndarray):
            return cls(_of_array(given))
        raise TypeError(
            "region must be the path of a mask, an array [H, W], a list of polygons or None, got "
            f"{type(given).__name__}"
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the photographs; None of polygons that were not drawn yet."""
        return None if self._mask is None else (self._mask.shape[0], self._mask.shape[1])

    @property
    def mask(self) -> Mask:
        """bool `[H, W]`, true inside."""
        if self._mask is None:
            raise ValueError("polygons have no pixels before the size of photographs is known")
        return self._mask

    @property
    def share(self) -> float:
        """The share of the photograph that lies inside."""
        return float(self.mask.mean())

    def sized(self, size: tuple[int, int]) -> Region:
        """The region on photographs of this size (H, W).

        Raises ValueError for a mask of another one, and for polygons that reach beyond the photograph or hold
        no pixel's centre.
        """
        if self._mask is None:
            return Region(_drawn(self._polygons, size))
        if self.size != tuple(size):
            have, want = (" x ".join(map(str, one)) for one in (self._mask.shape, size))
            raise ValueError(
                f"region is for photographs of {have} pixels (H x W), got one of {want}: with a region all "
                "must have its size"
            )
        return self

    def filled(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A photograph uint8 `[H, W, 3]` in which every pixel outside has the colour of the nearest one
        inside (see `nearest_inside`): a copy. So nothing outside can move what a network sees inside.
        """
        self.sized((image.shape[0], image.shape[1]))
        outside, sources = self._fill
        copy: npt.NDArray[np.uint8] = np.array(image, order="C")
        # A colour is one value of three bytes, which is moved in a third of the time.
        pixels = copy.view(np.dtype("V3")).reshape(-1)
        pixels[outside] = pixels[sources]
        return copy

    def shaded(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A photograph uint8 `[H, W, 3]`, dark and grey outside, to look at: a copy."""
        copy: npt.NDArray[np.uint8] = np.array(image)
        outside = ~self.sized((image.shape[0], image.shape[1])).mask
        copy[outside] = (image[outside].mean(axis=1, keepdims=True) * 0.4).astype(np.uint8)
        return copy

    def part(self, rows: slice, columns: slice) -> Mask:
        """Its pixels in a rectangle."""
        return self.mask[rows, columns]

    def plain(self) -> Any:
        """In JSON's types: polygons as lists of points, a mask as COCO's uncompressed run lengths, with which
        `of` makes an equal region.
        """
        if self._mask is None:
            return [[list(point) for point in polygon] for polygon in self._polygons]
        flat = self._mask.ravel(order="F")
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
        return {"size": list(self._mask.shape), "counts": [0, *counts] if flat[0] else counts}

    @cached_property
    def _fill(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        outside = np.flatnonzero(~self.mask)
        return outside, nearest_inside(self.mask).ravel()[outside]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        if self._mask is None:
            return f"Region({len(self._polygons)} polygon{'s' * (len(self._polygons) != 1)})"
        return f"Region({self.share:.0%} of {self._mask.shape[0]} x {self._mask.shape[1]})"


# What a parameter `region` may be.
RegionLike: TypeAlias = (
    Region | str | os.PathLike[str] | npt.NDArray[Any] | Sequence[Any] | Mapping[str, Any] | None
)


def _of_array(given: npt.NDArray[Any]) -> Mask:
    if given.dtype not in (np.dtype(np.bool_), np.dtype(np.uint8)):
        raise TypeError(f"region must be bool or uint8 as an array, got {given.dtype}")
    if given.ndim != 2:
        raise ValueError(f"region must be [H, W] as an array, got shape {given.shape}")
    mask: Mask = given != 0
    return mask


def _decoded(given: Mapping[str, Any]) -> Mask:
    """A mask from COCO's uncompressed run lengths."""
    if given.keys() != {"size", "counts"}:
        raise ValueError(f"region must have size and counts as a mapping, got {', '.join(map(str, given))}")
    size, counts = given["size"], given["counts"]
    for name, values in (("size", size), ("counts", counts)):
        if not isinstance(values, (list, tuple)) or not all(type(one) is int and one >= 0 for one in values):
            raise ValueError(f"region: {name} must be a list of whole numbers, got {str(values)[:80]}")
    if len(size) != 2 or 0 in size or sum(counts) != size[0] * size[1]:
        raise ValueError(f"region: counts must add up to the pixels of size, got {sum(counts)} for {size}")
    mask: Mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F")
    return np.ascontiguousarray(mask)


def _polygons(given: Sequence[Any]) -> tuple[Points, ...]:
    if not given:
        raise ValueError("region must have a polygon at least, got an empty list")
    polygons = []
    for number, one in enumerate(given):
        if not isinstance(one, (list, tuple, np.ndarray)):
            raise TypeError(f"region: polygon {number} must be a list of points, got {type(one).__name__}")
        try:
            points = np.asarray(one, dtype=np.float64)
        except (ValueError, TypeError):
            raise ValueError(f"region: polygon {number} must be a list of points (x, y)") from None
        if points.ndim == 1 and points.size == 2:
            raise ValueError("region must be a list of polygons; write [polygon] for one alone")
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < _FEWEST_POINTS:
            raise ValueError(
                f"region: polygon {number} must be {_FEWEST_POINTS} points (x, y) or more, got an array of "
                f"shape {points.shape}"
            )
        if not np.isfinite(points).all():
            raise ValueError(f"region: polygon {number} must have finite coordinates, got NaN or infinity")
        if points.min() < 0:
            raise ValueError(
                f"region: polygon {number} reaches beyond the photograph, to {points.min():g}; coordinates "
                "begin at 0"
            )
        polygons.append(tuple((float(x), float(y)) for x, y in points))
    return tuple(polygons)


def _drawn(polygons: Sequence[Points], size: tuple[int, int]) -> Mask:
    """The pixels of photographs (H, W) whose centres lie in any of the polygons, by the even-odd rule."""
    height, width = size
    mask = np.zeros(size, dtype=bool)
    for number, polygon in enumerate(polygons):
        points = np.array(polygon)
        right, bottom = points.max(0)
        if right > width or bottom > height:
            raise ValueError(
                f"region: polygon {number} reaches beyond the photograph of {height} x {width} pixels "
                f"(H x W): to x = {right:g}, y = {bottom:g}"
            )
        mask |= _filled_polygon(points, height, width)
    if not mask.any():
        raise ValueError(
            f"region has no pixel inside: its polygons are too thin for {height} x {width} pixels"
        )
    return mask


def _filled_polygon(points: npt.NDArray[np.float64], height: int, width: int) -> Mask:
    centres = np.arange(height) + 0.5
    crossings = np.zeros((height, width + 1), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        rows = np.flatnonzero((centres >= y0) != (centres >= y1))
        x = x0 + (centres[rows] - y0) / (y1 - y0) * (x1 - x0) if len(rows) else np.empty(0)
        # The first pixel whose centre lies to the right of the edge.
        crossings[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] += 1
    inside: Mask = crossings.cumsum(1)[:, :width] % 2 == 1
    return inside
