"""Anomaly maps back on the images they belong to: heat maps to look at, and raw maps as TIFF.

Images are drawn in blocks, so that a few megabytes are needed beside what is written: 8 bytes per pixel of
the image for a raw map, 7 for a heat map, 2 for a mask (the values, and the copy that the encoder makes).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.common.files import write_atomically
from ensemblead.images import Geometry
from ensemblead.kernels.filling import nearest_inside
from ensemblead.report.pictures import COLORS

# A heat map covers an image up to so much.
_OPACITY = 0.8
# Pixels that are drawn together.
_BLOCK = 1 << 16
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


class PlacedMap:
    """A map `[h, w]` in the frame of its image `[H, W]` = `size`, NaN where nothing was inspected.

    Bilinear; a pixel's value is the map's at the pixel's centre. What lies outside of a region has the
    nearest value inside before, so that zeros do not weaken what lies beside them.
    """

    def __init__(self, anomaly_map: Values, geometry: Geometry, size: tuple[int, int]) -> None:
        self.size = size
        self._given, self._region = anomaly_map, geometry.region
        self._map = anomaly_map if self._region is None else anomaly_map.ravel()[_sources(geometry)]
        top, left, bottom, right = geometry.crop_box(*size)
        self._sides = (top, bottom), (left, right)
        self._seen = _centres_within(top, bottom, size[0]), _centres_within(left, right, size[1])

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of blocks that cover the image."""
        height, width = self.size
        columns = min(width, _BLOCK)
        rows = max(1, _BLOCK // columns)
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                yield slice(y, min(y + rows, height)), slice(x, min(x + columns, width))

    def values(self, rows: slice, columns: slice) -> Values:
        """float32 of one block."""
        placed = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, np.float32)
        (y0, y1), (x0, x1) = (
            (max(part.start, seen[0]), min(part.stop, seen[1]))
            for part, seen in zip((rows, columns), self._seen, strict=True)
        )
        if y0 < y1 and x0 < x1:
            low, high, part = _samples(y0, y1, *self._sides[0], self._map.shape[0])
            lines = self._map[low] * (1 - part[:, None]) + self._map[high] * part[:, None]
            low, high, part = _samples(x0, x1, *self._sides[1], self._map.shape[1])
            inside = placed[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start]
            inside[:] = lines[:, low] * (1 - part) + lines[:, high] * part
        if self._region is not None:
            placed[~self._region.part(rows, columns)] = np.nan
        return placed

    def places_above(self, threshold: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows and columns of the image in which the centres of the map's values above a threshold lie."""
        found = np.nonzero(self._given > np.float64(threshold))
        sides = zip(found, self._sides, self._given.shape, self.size, strict=True)
        rows, columns = (
            np.minimum((start + (own + 0.5) * ((stop - start) / length)).astype(np.int64), most - 1)
            for own, (start, stop), length, most in sides
        )
        return rows, columns


@lru_cache(maxsize=2)
def _sources(geometry: Geometry) -> npt.NDArray[np.int64]:
    """For every pixel of a map the one inside of the region that is nearest; see `nearest_inside`."""
    inside = geometry.inside()
    assert inside is not None
    return nearest_inside(inside)


def _samples(
    first: int, last: int, start: float, stop: float, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Values]:
    """For the centres of pixels `first` to `last` the two of `length` values, spread over `start` to `stop`,
    that lie around them, and how far between the two they are.
    """
    places = (np.arange(first, last) + 0.5 - start) * (length / (stop - start)) - 0.5
    places = np.clip(places, 0.0, length - 1.0)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (places - low).astype(np.float32)


def _centres_within(start: float, stop: float, length: int) -> tuple[int, int]:
    """The pixels, of `length`, whose centres lie in the interval; at least one."""
    first, last = int(np.ceil(start - 0.5)), int(np.ceil(stop - 0.5))
    first = min(max(first, 0), length - 1)
    return first, min(max(last, first + 1), length)


def place_back(anomaly_map: Values, geometry: Geometry, size: tuple[int, int]) -> Values:
    """The whole of a `PlacedMap`: float32 `[H, W]`."""
    placed = PlacedMap(anomaly_map, geometry, size)
    whole = np.empty(size, np.float32)
    for rows, columns in placed.blocks():
        whole[rows, columns] = placed.values(rows, columns)
    return whole


def placed_mask(placed: PlacedMap, threshold: float) -> Pixels:
    """Where the whole of a map lies above a threshold: uint8 `[H, W]`, 255 there and 0 elsewhere, also where
    the network saw nothing. Each of the map's own values has a pixel, so that no region is lost.
    """
    mask = np.empty(placed.size, np.uint8)
    for rows, columns in placed.blocks():
        mask[rows, columns] = np.uint8(255) * (placed.values(rows, columns) > np.float64(threshold))
    mask[placed.places_above(threshold)] = 255
    return mask


def draw_heat_map(image: Pixels, placed: PlacedMap, scale: tuple[float, float]) -> None:
    """Lay a heat map over an image, in place."""
    for rows, columns in placed.blocks():
        image[rows, columns] = overlay(image[rows, columns], placed.values(rows, columns), scale)


def overlay(image: Pixels, placed: Values, scale: tuple[float, float]) -> Pixels:
    """A heat map over its image, both `[H, W]`: the stronger the value, the less transparent.

    Pixels that were not inspected are greyed.
    """
    low, high = scale
    seen = np.isfinite(placed)
    level = np.clip((np.nan_to_num(placed, nan=low) - low) / (high - low), 0.0, 1.0)
    colors = _inferno()[(level * 255.0).astype(np.uint8)]
    opacity = (_OPACITY * level)[..., None]
    mixed = image * (1.0 - opacity) + colors * opacity
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32) * 0.5 + 96.0
    drawn: Pixels = np.where(seen[..., None], mixed, grey).round().astype(np.uint8)
    return drawn


@lru_cache(maxsize=1)
def _inferno() -> npt.NDArray[np.float32]:
    """Colours `[256, 3]` in 0..255; the lower tenth, almost black, is left out."""
    stops = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS]
    places = np.linspace(0, len(stops) - 1, 256)
    channels = [np.interp(places, np.arange(len(stops)), channel) for channel in np.transpose(stops)]
    return np.stack(channels, axis=1).astype(np.float32)


def save_png(path: Path, picture: Image.Image) -> None:
    """8-bit RGB."""
    # Little compression: it is four times as quick, and heat maps do not compress well anyway.
    write_atomically(path, lambda file: picture.save(file, format="PNG", compress_level=3))


def save_mask(path: Path, mask: Pixels) -> None:
    """8-bit grey `[H, W]`; masks compress well."""
    write_atomically(path, lambda file: Image.fromarray(mask).save(file, format="PNG", compress_level=6))


def save_map(path: Path, values: Values) -> None:
    """float32 `[H, W]` as an uncompressed TIFF."""
    write_atomically(path, lambda file: Image.fromarray(values).save(file, format="TIFF"))
