"""Where the tiles of an image lie, and how their results become one score and one map.

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

from ensemblead.calibration.statistics import LEAST_SHARE
from ensemblead.detectors.parts import Result
from ensemblead.images import Window
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.tiling import smooth_seams, tile_grid, untile

NORMALIZATIONS = ("tile", "image", "none")
SCORES = ("mean", "max")
Edge = Literal["flush", "pad"]
EDGES: tuple[Edge, ...] = ("flush", "pad")
# The least standard deviation of a tile location, as a share of the one pooled over all locations (the root
# of the mean variance). Where nothing ever varies, in an empty corner, a location's own deviation would turn
# the least noise into the loudest alarm.
FLOOR = 0.25
# Columns of the mean and the deviation, and of what.
_QUANTITIES = ((0, 1, "scores"), (2, 3, "maps"))


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


@dataclass(frozen=True)
class TileStatistics:
    """Means and standard deviations of normal images' scores and maps, float64 `[n, 4]`: `score_mean`,
    `score_std`, `map_mean`, `map_std`; a row per tile that is looked at, or one for the merged result.
    """

    values: torch.Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != 4 or self.values.dtype != torch.float64:
            raise ValueError(
                f"values must be float64 [n, 4], got {self.values.dtype} {tuple(self.values.shape)}"
            )
        if not bool((self.values[:, (1, 3)] > 0).all()):
            raise ValueError("the standard deviations of tiles must be positive")

    @classmethod
    def floored(cls, values: torch.Tensor, rounding: float = 0.0) -> TileStatistics:
        """With deviations that can be divided by: at least `FLOOR` times the pooled one, and 1 where nothing
        varies anywhere (see `unvaried`).
        """
        still, values = unvaried(values, rounding), values.double().clone()
        for mean, std, name in _QUANTITIES:
            if name in still:
                values[:, std] = 1.0
                continue
            least = (values[:, mean].abs() * LEAST_SHARE).clamp_min(FLOOR * _pooled(values[:, std]))
            values[:, std] = torch.maximum(values[:, std], least)
        return cls(values)

    def apply(self, row: int, scores: torch.Tensor, maps: torch.Tensor) -> None:
        """Subtract the means of a row, divide by its deviations, in place."""
        score_mean, score_std, map_mean, map_std = self.values[row].tolist()
        scores.sub_(score_mean).div_(score_std)
        maps.sub_(map_mean).div_(map_std)


def unvaried(values: torch.Tensor, rounding: float = 0.0) -> list[str]:
    """Which of "scores" and "maps" no normal image showed any variation of but rounding, by statistics as in
    `TileStatistics`.
    """
    return [
        name
        for mean, std, name in _QUANTITIES
        if _pooled(values[:, std]) <= max(rounding, LEAST_SHARE * _pooled(values[:, mean]))
    ]


def _pooled(column: torch.Tensor) -> float:
    return float(column.double().square().mean().sqrt())


@dataclass(frozen=True)
class TileMerger:
    """How results of tiles become those of their images. `statistics` are of the tile locations or of the
    merged result, as `normalization` has it; None leaves all values as they are. `inside`: the region in the
    image.
    """

    frame: TileFrame
    score: str
    seam_smoothing: bool
    normalization: str
    statistics: TileStatistics | None = None
    inside: Inside | None = None

    def buffer(self, num_images: int) -> MergeBuffer:
        return MergeBuffer(self, num_images)


class MergeBuffer:
    """Takes in the results of the tiles of some images, in any order, each once."""

    def __init__(self, merger: TileMerger, num_images: int) -> None:
        self._merger = merger
        self._num_images = num_images
        self._scores: torch.Tensor | None = None
        self._maps: torch.Tensor | None = None

    def put(self, number: int, images: slice, result: Result) -> None:
        """Scores `[B]` and maps `[B, h, w]` of tile `number` of B images."""
        merger = self._merger
        scores, maps = result
        if self._scores is None or self._maps is None:
            frame = merger.frame
            self._scores = scores.new_empty((len(frame), self._num_images))
            # Maps of tiles that are skipped have nothing that anybody sees.
            new = maps.new_zeros if frame.skipped else maps.new_empty
            self._maps = new((frame.count, self._num_images, *maps.shape[1:]))
        place = merger.frame.numbers.index(number)
        self._scores[place, images] = scores
        self._maps[number, images] = maps
        if merger.normalization == "tile" and merger.statistics is not None:
            merger.statistics.apply(place, self._scores[place, images], self._maps[number, images])

    def merge(self) -> Result:
        """Scores `[B]` and maps `[B, H, W]`, once all tiles are there; the buffer is empty then."""
        assert self._scores is not None
        assert self._maps is not None
        merger, scores, maps = self._merger, self._scores, self._maps
        self._scores = self._maps = None
        merged = merger.frame.merge(maps, merger.seam_smoothing, merger.inside)
        score = scores.mean(0) if merger.score == "mean" else scores.amax(0)
        if merger.normalization == "image" and merger.statistics is not None:
            merger.statistics.apply(0, score, merged)
        return score, merged if merger.inside is None else merger.inside.blank(merged)
