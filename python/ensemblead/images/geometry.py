"""How an image becomes network input: resize, then centre crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.common.errors import UnreadableImageError
from ensemblead.images.region import Region
from ensemblead.kernels.filling import cells_inside
from ensemblead.kernels.resize import resized

# A resized image above the first size that is more than `_ENLARGED` times its original is one of an extreme
# aspect ratio. Its crop has the second size at most.
_RESIZED_PIXELS = 1 << 22
_MOST_RESIZED_PIXELS = 1 << 26
_ENLARGED = 16
# Of "auto": the side of a square; the aspect ratio up to which images are squashed to it (docs/results.md
# has the evidence).
_SIDE, _SQUASHED = 256, 1.5
_MULTIPLE = 32


@dataclass(frozen=True)
class Geometry:
    """Resize, then centre crop, as torchvision's `Resize` and `CenterCrop` do on PIL images.

    `resize`: "auto" stands for an exact size that follows from the images of a fit (see `decided`); until
    it is decided nothing can be resized. An int makes the shorter side that long and keeps the aspect ratio
    (the longer side is `int(resize * long / short)`), `(h, w)` is an exact size, None keeps the native size.
    `crop`: an int is a square, `(h, w)` a rectangle, None keeps everything. `multiple`: of "auto", of which
    the sides are multiples. Unlike torchvision, a crop larger than the image
    is an error instead of a black border, and so is an aspect ratio so extreme that a resized image without a
    crop would have more than 67 million pixels. Hashable, and equal when the sizes and regions are.

    `region`: before the resize, all pixels of the photograph outside of it take the colour of the nearest one
    inside. Photographs must then have the region's size; polygons wait for it, as "auto" does.

    `scale`: what was resized and cropped is resized once more, by this factor, to sides rounded down.
    """

    resize: int | tuple[int, int] | Literal["auto"] | None = 256
    crop: int | tuple[int, int] | None = 224
    multiple: int = _MULTIPLE
    region: Region | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.resize != "auto":
            object.__setattr__(self, "resize", _checked("resize", self.resize))
        crop = _checked("crop", self.crop)
        # One spelling for one thing, so that equal geometries compare equal.
        object.__setattr__(self, "crop", (crop, crop) if isinstance(crop, int) else crop)
        if isinstance(self.resize, tuple):
            self._check_crop(self.resize, "")
        elif isinstance(self.resize, int) and isinstance(self.crop, tuple) and min(self.crop) > self.resize:
            raise ValueError(
                f"crop {self.crop} does not fit into any image whose shorter side is resized to {self.resize}"
            )

    @property
    def is_decided(self) -> bool:
        """Whether images can be resized: always but with "auto", and polygons that have no size yet."""
        return self.resize != "auto" and (self.region is None or self.region.size is not None)

    def decided(self, sizes: Sequence[tuple[int, int]]) -> Geometry:
        """This geometry, with "auto" replaced by the size that follows from images of these sizes (H, W).

        That is 256 x 256 where the images' median aspect ratio is at most 1.5, else sides of that ratio,
        multiples of `multiple`, of about as many pixels. Polygons are drawn on photographs of the size.

        Raises ValueError where a region does not go with the sizes, or these are several.
        """
        if self.is_decided:
            return self
        if not sizes:
            raise ValueError('resize="auto" needs the size of one image at least')
        if self.region is not None and self.region.size is None:
            region = self.region.sized(sizes[0])
            for size in sizes:
                region.sized(size)
            return replace(self, region=region).decided(sizes)
        ratio = math.exp(float(np.median([math.log(height / width) for height, width in sizes])))
        if max(ratio, 1.0 / ratio) <= _SQUASHED:
            side = round(_SIDE / self.multiple) * self.multiple
            return replace(self, resize=(side, side), multiple=_MULTIPLE)
        sides = (_SIDE * ratio**power for power in (0.5, -0.5))
        height, width = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
        return replace(self, resize=(height, width), multiple=_MULTIPLE)

    def inside(self) -> npt.NDArray[np.bool_] | None:
        """The region in the frame, bool `[h, w]`; None without one. It is decided.

        A pixel of the frame is inside if any pixel of the photograph is that lies in it, in part or whole: a
        region thinner than the frame's pixels is not lost.

        Raises ValueError where the crop leaves nothing of it.
        """
        return None if self.region is None else _in_frame(self)

    def share(self, height: int, width: int) -> float:
        """The share of an image of `height` x `width` that is inspected, in 0..1."""
        top, left, bottom, right = self.crop_box(height, width)
        if self.region is not None:
            rows, columns = slice(round(top), round(bottom)), slice(round(left), round(right))
            return float(self.region.sized((height, width)).mask[rows, columns].sum()) / (height * width)
        return (bottom - top) * (right - left) / (height * width)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Size `(h, w)` after the resize of an image of `height` x `width`, before the crop."""
        if self.resize is None:
            return height, width
        if self.resize == "auto":
            raise ValueError('resize="auto" is decided by `fit`, from the images; there was none yet')
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = min(height, width), max(height, width)
        longer = int(self.resize * long / short)
        return (longer, self.resize) if width <= height else (self.resize, longer)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Size `(h, w)` of the network input made of an image of `height` x `width`."""
        size = self.crop if isinstance(self.crop, tuple) else self.resized_size(height, width)
        return scaled_size(size, self.scale)

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part that the network sees of an image of `height` x `width`: `(top, left, bottom, right)` in
        its own pixels.

        Fractions of a pixel are kept: an anomaly map stretched over this box lies where the network looked.
        """
        if self.resize == "auto":
            return replace(self, region=None).decided([(height, width)]).crop_box(height, width)
        size = self.resized_size(height, width)
        top, left, bottom, right = self.crop_in_resized(size)
        scale_y, scale_x = height / size[0], width / size[1]
        return top * scale_y, left * scale_x, bottom * scale_y, right * scale_x

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Fill what lies outside of the region, resize (bilinear, antialiased), crop and scale: uint8 `[H, W,
        3]` -> uint8 `[h, w, 3]`, contiguous.
        """
        if image.dtype != np.uint8:
            raise TypeError(f"image must be uint8, got {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image must be [H, W, 3], got shape {image.shape}")
        if self.region is not None:
            self.inside()  # raises where the crop leaves nothing
            image = self.region.filled(image)
        size, (top, left, bottom, right) = self._placed(image)
        if size == image.shape[:2]:
            image = np.ascontiguousarray(image[top:bottom, left:right])
        else:
            image = resized(np.ascontiguousarray(image), size, (top, left, bottom, right))
        return resized_to(image, scaled_size((image.shape[0], image.shape[1]), self.scale))

    def apply_mask(self, mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Resize (nearest neighbour), crop and binarise at > 0: `[H, W]` of any number type -> bool `[h,
        w]`. At the scale 1.
        """
        if mask.ndim != 2:
            raise ValueError(f"mask must be [H, W], got shape {mask.shape}")
        size, (top, left, bottom, right) = self._placed(mask)
        picture = Image.fromarray((mask > 0).astype(np.uint8))
        if _is_extreme((mask.shape[0], mask.shape[1]), size):
            scale_y, scale_x = mask.shape[0] / size[0], mask.shape[1] / size[1]
            box = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
            part = picture.resize((right - left, bottom - top), Image.Resampling.NEAREST, box)
        else:
            part = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
            part = part.crop((left, top, right, bottom))
        return np.asarray(part) > 0

    def _placed(self, image: npt.NDArray[Any]) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """The size `(h, w)` that an image is resized to, and the crop in it."""
        native = (image.shape[0], image.shape[1])
        if 0 in native:
            raise ValueError(f"image must not be empty, got shape {image.shape}")
        size = self.resized_size(*native)
        top, left, bottom, right = self.crop_in_resized(size)
        pixels = (bottom - top) * (right - left)
        if pixels > _MOST_RESIZED_PIXELS and _is_extreme(native, size):
            raise UnreadableImageError(
                f"the aspect ratio of {native[0]} x {native[1]} pixels (H x W) is too extreme for "
                f"resize={self.resize}: the image would have {size[0]} x {size[1]} pixels"
            )
        return size, (top, left, bottom, right)

    def crop_in_resized(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The crop `(top, left, bottom, right)` of a resized image `(h, w)`."""
        if not isinstance(self.crop, tuple):
            return 0, 0, size[0], size[1]
        self._check_crop(size, "resized ")
        # Python's round, half to even, is torchvision's.
        top, left = round((size[0] - self.crop[0]) / 2.0), round((size[1] - self.crop[1]) / 2.0)
        return top, left, top + self.crop[0], left + self.crop[1]

    def _check_crop(self, size: tuple[int, int], what: str) -> None:
        crop = self.crop
        if isinstance(crop, tuple) and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"crop {crop} does not fit into the {what}image of size {size}")


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width times a factor, rounded down as torch's `interpolate` rounds them, at least 1."""
    return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def resized_to(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An image uint8 `[H, W, 3]` at another size `(h, w)`, bilinear and antialiased: uint8 `[h, w, 3]`."""
    if (image.shape[0], image.shape[1]) == size:
        return image
    found: npt.NDArray[np.uint8] = resized(image, size)
    return found


def _is_extreme(native: tuple[int, int], size: tuple[int, int]) -> bool:
    return size[0] * size[1] > max(_RESIZED_PIXELS, _ENLARGED * native[0] * native[1])


@lru_cache(maxsize=32)
def _in_frame(geometry: Geometry) -> npt.NDArray[np.bool_]:
    assert geometry.region is not None
    mask = geometry.region.mask
    size = geometry.resized_size(*mask.shape)
    top, left, bottom, right = geometry.crop_in_resized(size)
    inside = cells_inside(mask, size, (slice(top, bottom), slice(left, right)))
    if not inside.any():
        raise ValueError(
            f"region: nothing of it is left after resize={geometry.resize} and image_size={geometry.crop}"
        )
    return cells_inside(inside, scaled_size((inside.shape[0], inside.shape[1]), geometry.scale))


def _checked(name: str, size: Any) -> int | tuple[int, int] | None:
    if size is None:
        return None
    sides = (size,) if isinstance(size, Integral) else size
    if isinstance(size, bool) or not isinstance(sides, (tuple, list)):
        raise TypeError(f"{name} must be an int, a pair (h, w) or None, got {size!r}")
    if not all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides):
        raise TypeError(f"{name} must be whole numbers of pixels, got {size!r}")
    if any(side < 1 for side in sides) or (len(sides) != 2 and sides is size):
        raise ValueError(f"{name} must be a positive int, a pair (h, w) of them or None, got {size!r}")
    whole = [int(side) for side in sides]
    return whole[0] if len(whole) == 1 else (whole[0], whole[1])
