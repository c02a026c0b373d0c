"""Where the tiles of an image lie, and how what is said of them becomes one score and one map.

Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient Tiled
Ensemble", arXiv 2403.04932.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemblead.calibration.statistics import LEAST_SHARE, ROUNDING
from ensemblead.detectors.fitting import Result
from ensemblead.kernels.tiling import smooth_seams, tile_grid, untile

NORMALIZATIONS = ("tile", "image", "none")
SCORES = ("mean", "max")
# The least standard deviation of a tile location, as a share of the one pooled over all locations (the root
# of the mean variance). Where nothing ever varies, in an empty corner, a location's own deviation would turn
# the least noise into the loudest alarm.
FLOOR = 0.25
# Columns of the mean and the deviation, and of what.
_QUANTITIES = ((0, 1, "scores"), (2, 3, "maps"))


@dataclass(frozen=True)
class TileFrame:
    """Tiles of images of one size; all sizes are (h, w). Tile number `row * columns + column` starts at
    `(row * stride, column * stride)`.
    """

    image_size: tuple[int, int]
    tile_size: tuple[int, int]
    stride: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles. Raises ValueError where the sizes do not go together."""
        return tile_grid(self.image_size, self.tile_size, self.stride)

    def __len__(self) -> int:
        rows, columns = self.grid
        return rows * columns

    def cut(self, pixels: torch.Tensor, number: int) -> torch.Tensor:
        """Tile `number` of images `[..., H, W]`: `[..., h, w]`, a copy, zeros where it overhangs."""
        (height, width), columns = self.tile_size, self.grid[1]
        top, left = number // columns * self.stride[0], number % columns * self.stride[1]
        window = pixels[..., top : top + height, left : left + width]
        tile = pixels.new_zeros((*pixels.shape[:-2], height, width))
        tile[..., : window.shape[-2], : window.shape[-1]] = window
        return tile

    def join(self, maps: torch.Tensor, smooth: bool) -> torch.Tensor:
        """Maps of all tiles, float32 `[tiles, B, h, w]`, averaged where they overlap: `[B, H, W]`."""
        cut = maps.reshape(*self.grid, *maps.shape[1:])[:, :, :, None].contiguous()
        joined: torch.Tensor = untile(cut, self.image_size, self.stride)[:, 0]
        if smooth:
            joined = smooth_seams(joined.contiguous(), self.tile_size, self.stride)
        return joined


@dataclass(frozen=True)
class Units:
    """Means and standard deviations of normal images' scores and maps, float64 `[n, 4]`: `score_mean`,
    `score_std`, `map_mean`, `map_std`; a row per tile location, or a single one for the joined result.
    """

    values: torch.Tensor

    @classmethod
    def floored(cls, values: torch.Tensor, rounding: float = ROUNDING) -> Units:
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


def unvaried(values: torch.Tensor, rounding: float = ROUNDING) -> list[str]:
    """Which of "scores" and "maps" no normal image showed any variation of but rounding, by statistics as in
    `Units`.
    """
    return [
        name
        for mean, std, name in _QUANTITIES
        if _pooled(values[:, std]) <= max(rounding, LEAST_SHARE * _pooled(values[:, mean]))
    ]


def _pooled(column: torch.Tensor) -> float:
    return float(column.double().square().mean().sqrt())


@dataclass(frozen=True)
class Joiner:
    """How results of tiles become those of their images. `units` are of the tile locations or of the joined
    result, as `normalization` has it; None leaves all values as they are.
    """

    frame: TileFrame
    score: str
    seam_smoothing: bool
    normalization: str
    units: Units | None = None

    def canvas(self, num_images: int) -> Canvas:
        return Canvas(self, num_images)


class Canvas:
    """Takes in the results of the tiles of some images, in any order, each once."""

    def __init__(self, joiner: Joiner, num_images: int) -> None:
        self._joiner = joiner
        self._num_images = num_images
        self._scores: torch.Tensor | None = None
        self._maps: torch.Tensor | None = None

    def put(self, number: int, images: slice, result: Result) -> None:
        """Scores `[B]` and maps `[B, h, w]` of tile `number` of B images."""
        joiner = self._joiner
        scores, maps = result
        if self._scores is None or self._maps is None:
            shape = (len(joiner.frame), self._num_images)
            self._scores = scores.new_empty(shape)
            self._maps = maps.new_empty((*shape, *maps.shape[1:]))
        self._scores[number, images] = scores
        self._maps[number, images] = maps
        if joiner.normalization == "tile" and joiner.units is not None:
            joiner.units.apply(number, self._scores[number, images], self._maps[number, images])

    def join(self) -> Result:
        """Scores `[B]` and maps `[B, H, W]`, once all tiles are there; the canvas is empty then."""
        assert self._scores is not None
        assert self._maps is not None
        joiner, scores, maps = self._joiner, self._scores, self._maps
        self._scores = self._maps = None
        joined = joiner.frame.join(maps, joiner.seam_smoothing)
        score = scores.mean(0) if joiner.score == "mean" else scores.amax(0)
        if joiner.normalization == "image" and joiner.units is not None:
            joiner.units.apply(0, score, joined)
        return score, joined
