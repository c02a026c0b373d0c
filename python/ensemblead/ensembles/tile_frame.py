"""Where the tiles of an image lie.

Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient Tiled
Ensemble", arXiv 2403.04932.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.images import Window
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.tiling import smooth_seams, tile_grid, untile

Edge = Literal["flush", "pad"]
EDGES: tuple[Edge, ...] = ("flush", "pad")


@dataclass(frozen=True)
class TileFrame:
    """Tiles of images of one size; all sizes are (h, w). Tile number `row * columns + column` starts at
    `(row * stride, column * stride)`; with `edge="flush"` the last row and column lie flush with the image
    instead of overhanging it. `skipped`: tiles that nobody looks at, since a region leaves nothing of them.
    """

    image_size: tuple[int, int]
    tile_size: tuple[int, int]
    stride: tuple[int, int]
    edge: Edge = "flush"
    skipped: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles. Raises ValueError where the sizes do not go together."""
        return tile_grid(self.image_size, self.tile_size, self.stride)

    @property
    def count(self) -> int:
        """All tiles."""
        rows, columns = self.grid
        return rows * columns

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Of the tiles that are looked at, in row-major order."""
        skipped = frozenset(self.skipped)
        return tuple(number for number in range(self.count) if number not in skipped)

    def __len__(self) -> int:
        """Tiles that are looked at."""
        return len(self.numbers)

    def without_outside(self, mask: npt.NDArray[np.bool_]) -> TileFrame:
        """The same, without the tiles that have nothing of a region, bool `[H, W]`."""
        skipped = [number for number in range(self.count) if not self.inside(mask, number).any()]
        return replace(self, skipped=tuple(skipped))

    def inside(self, mask: npt.NDArray[np.bool_], number: int) -> npt.NDArray[np.bool_]:
        """A region, bool `[H, W]`, in tile `number`: bool `[h, w]`, false where it overhangs."""
        window, tile = self.window(number), np.zeros(self.tile_size, dtype=bool)
        part = mask[window.rows(self.image_size[0]), window.columns(self.image_size[1])]
        tile[: part.shape[0], : part.shape[1]] = part
        return tile

    def window(self, number: int) -> Window:
        """The place of tile `number`."""
        (height, width), columns = self.tile_size, self.grid[1]
        top, left = number // columns * self.stride[0], number % columns * self.stride[1]
        if self.edge == "flush":
            top, left = min(top, self.image_size[0] - height), min(left, self.image_size[1] - width)
        return Window(top, left, height, width)

    def cut(self, pixels: torch.Tensor, number: int) -> torch.Tensor:
        """Tile `number` of images `[..., H, W]`: `[..., h, w]`, a copy, zeros where it overhangs."""
        window = self.window(number)
        part = pixels[..., window.rows(pixels.shape[-2]), window.columns(pixels.shape[-1])]
        tile = pixels.new_zeros((*pixels.shape[:-2], *self.tile_size))
        tile[..., : part.shape[-2], : part.shape[-1]] = part
        return tile

    def merge(self, maps: torch.Tensor, smooth: bool, inside: Inside | None = None) -> torch.Tensor:
        """Maps of all tiles, float32 `[tiles, B, h, w]`, averaged where they overlap: `[B, H, W]`. What lies
        outside of a region takes the nearest value inside.
        """
        cut = maps.reshape(*self.grid, *maps.shape[1:])[:, :, :, None].contiguous()
        merged: torch.Tensor = untile(cut, self.image_size, self.stride, edge=self.edge)[:, 0]
        if inside is not None:
            merged = inside.spread(merged)
        if smooth:
            merged = smooth_seams(merged.contiguous(), self.tile_size, self.stride, edge=self.edge)
        return merged
