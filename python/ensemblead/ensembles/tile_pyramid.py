"""Tiles of one size at several scales of an image: a frame of tiles per scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.validation import finite_number, positive_number
from ensemblead.ensembles.tile_frame import Edge, TileFrame
from ensemblead.images import Geometry, Window
from ensemblead.images.geometry import resized_to, scaled_size

# More scales, and larger ones, are taken for mistakes.
MOST_SCALES, LARGEST_SCALE = 8, 4.0
_DIGITS = 4  # of the scale that an error names


@dataclass(frozen=True)
class TilePyramid:
    """Tiles of images at several scales; sizes are (h, w), in pixels of their scale.

    A tile's number counts those of the first scale row by row, then those of the second, and so on.

    Attributes:
        image_size: of the images, at the scale 1.
        scales: factors by which the images are resized before they are cut.
        levels: where the tiles lie, one frame per scale.
    """

    image_size: tuple[int, int]
    scales: tuple[float, ...]
    levels: tuple[TileFrame, ...]

    @classmethod
    def of(
        cls,
        image_size: tuple[int, int],
        scales: Sequence[float],
        tile_size: tuple[int, int],
        stride: tuple[int, int],
        edge: Edge,
    ) -> TilePyramid:
        """Raises ValueError where a scale leaves no whole tile, or sizes do not go together."""
        levels = []
        for scale in scales:
            size = scaled_size(image_size, scale)
            if scale != 1.0 and (size[0] < tile_size[0] or size[1] < tile_size[1]):
                raise ValueError(
                    f"scales: {scale:g} leaves no whole tile, for it makes images of {_text(image_size)} "
                    f"pixels {_text(size)}, and tiles have {_text(tile_size)}; the smallest scale that works "
                    f"is {_smallest(image_size, tile_size):g}"
                )
            levels.append(TileFrame(size, tile_size, stride, edge))
            _ = levels[-1].grid  # raises
        return cls(image_size, tuple(scales), tuple(levels))

    @property
    def tile_size(self) -> tuple[int, int]:
        return self.levels[0].tile_size

    @property
    def count(self) -> int:
        """All tiles."""
        return sum(level.count for level in self.levels)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Of the tiles that are looked at."""
        pairs = zip(self._starts, self.levels, strict=True)
        return tuple(start + number for start, level in pairs for number in level.numbers)

    def __len__(self) -> int:
        """Tiles that are looked at."""
        return len(self.numbers)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Tiles that nobody looks at, since a region leaves nothing of them."""
        looked_at = frozenset(self.numbers)
        return tuple(number for number in range(self.count) if number not in looked_at)

    def without(self, skipped: Sequence[int]) -> TilePyramid:
        """The same, without tiles of these numbers."""
        levels = []
        for which, level in enumerate(self.levels):
            own = (self.place(number) for number in skipped)
            levels.append(replace(level, skipped=tuple(number for at, number in own if at == which)))
        return replace(self, levels=tuple(levels))

    def without_outside(self, masks: Sequence[npt.NDArray[np.bool_]]) -> TilePyramid:
        """The same, without the tiles that have nothing of a region, bool `[H, W]` at every scale."""
        pairs = zip(self.levels, masks, strict=True)
        return replace(self, levels=tuple(level.without_outside(mask) for level, mask in pairs))

    def place(self, number: int) -> tuple[int, int]:
        """The level of a tile, and its number there."""
        if not 0 <= number < self.count:
            raise ValueError(f"there are {self.count} tiles, got the number {number}")
        which = max(i for i, start in enumerate(self._starts) if start <= number)
        return which, number - self._starts[which]

    def groups(self, shared: bool) -> tuple[tuple[int, ...], ...]:
        """Numbers of the tiles of each detector: every tile has its own, or those of a scale share one."""
        if not shared:
            return tuple((number,) for number in self.numbers)
        return tuple(
            tuple(number for number in self.numbers if self.place(number)[0] == which)
            for which in range(len(self.levels))
        )

    def window(self, number: int) -> Window:
        """Where a tile lies in the image at its scale."""
        which, own = self.place(number)
        return self.levels[which].window(own)

    def inside(self, masks: Sequence[npt.NDArray[np.bool_]], number: int) -> npt.NDArray[np.bool_]:
        """A region, bool `[H, W]` at every scale, in a tile: bool `[h, w]`, false where it overhangs."""
        which, own = self.place(number)
        return self.levels[which].inside(masks[which], own)

    def scaled(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Images uint8 `[B, 3, H, W]` in the host's memory at every scale, as `Geometry.apply` has them."""
        return [_resized(pixels, level.image_size) for level in self.levels]

    def cut(self, scaled: Sequence[torch.Tensor], number: int) -> torch.Tensor:
        """A tile of images `[..., H, W]` at every scale: `[..., h, w]`, a copy, zeros where it overhangs."""
        which, own = self.place(number)
        return self.levels[which].cut(scaled[which], own)

    def split(self, values: torch.Tensor, *, looked_at: bool) -> list[torch.Tensor]:
        """Values `[tiles, ...]` of all tiles, or of those that are looked at, one tensor per scale."""
        counts = [len(level) if looked_at else level.count for level in self.levels]
        return list(torch.split(values, counts))

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The number of the first tile of every level."""
        return tuple(accumulate((level.count for level in self.levels[:-1]), initial=0))


def checked_scales(scales: Any) -> tuple[float, ...]:
    """Scales as floats. Raises TypeError or ValueError for what cannot be meant."""
    if not isinstance(scales, (list, tuple)):
        raise TypeError(f"scales must be a list of numbers, got {scales!r}")
    if not 1 <= len(scales) <= MOST_SCALES:
        raise ValueError(f"scales must be 1 to {MOST_SCALES} numbers, got {len(scales)}")
    found = tuple(
        positive_number(name, finite_number(name, scale))
        for name, scale in ((f"scales[{i}]", scale) for i, scale in enumerate(scales))
    )
    if max(found) > LARGEST_SCALE:
        raise ValueError(f"scales must be at most {LARGEST_SCALE:g}, got {max(found):g}")
    if len(set(found)) < len(found):
        raise ValueError(f"scales must differ from each other, got {', '.join(f'{one:g}' for one in found)}")
    return found


def scaled_geometries(geometry: Geometry, scales: Sequence[float]) -> tuple[Geometry, ...]:
    """How images come to every scale."""
    return tuple(replace(geometry, scale=scale) for scale in scales)


def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if (pixels.shape[2], pixels.shape[3]) == size:
        return pixels
    images = [resized_to(image, size) for image in pixels.permute(0, 2, 3, 1).contiguous().numpy()]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _smallest(image_size: tuple[int, int], tile_size: tuple[int, int]) -> float:
    """The smallest scale, of four digits, that leaves a whole tile."""
    exact = max(tile / side for tile, side in zip(tile_size, image_size, strict=True))
    scale: float = math.ceil(exact * 10.0**_DIGITS) / 10.0**_DIGITS
    while any(made < tile for made, tile in zip(scaled_size(image_size, scale), tile_size, strict=True)):
        scale = round(scale + 10.0**-_DIGITS, _DIGITS)
    return scale


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
