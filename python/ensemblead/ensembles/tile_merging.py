"""How the results of tiles become one score and one map.

Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient Tiled
Ensemble", arXiv 2403.04932.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ensemblead.calibration.statistics import LEAST_SHARE
from ensemblead.detectors.parts import Result
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import resize_maps

NORMALIZATIONS = ("tile", "image", "none")
SCORES = ("mean", "max")
# The least standard deviation of a tile location, as a share of the one pooled over all locations (the root
# of the mean variance). Where nothing ever varies, in an empty corner, a location's own deviation would turn
# the least noise into the loudest alarm.
FLOOR = 0.25
# Columns of the mean and the deviation, and of what.
_QUANTITIES = ((0, 1, "scores"), (2, 3, "maps"))


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
    def floored(cls, values: torch.Tensor, roundings: tuple[float, float] = (0.0, 0.0)) -> TileStatistics:
        """With deviations that can be divided by: at least `FLOOR` times the pooled one, and 1 where nothing
        varies anywhere (see `unvaried`).
        """
        still, values = unvaried(values, roundings), values.double().clone()
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


def unvaried(values: torch.Tensor, roundings: tuple[float, float] = (0.0, 0.0)) -> list[str]:
    """Which of "scores" and "maps" no normal image showed any variation of but rounding, by statistics as in
    `TileStatistics`. `roundings`: how far it moves the two.
    """
    return [
        name
        for (mean, std, name), rounding in zip(_QUANTITIES, roundings, strict=True)
        if _pooled(values[:, std]) <= max(rounding, LEAST_SHARE * _pooled(values[:, mean]))
    ]


def _pooled(column: torch.Tensor) -> float:
    return float(column.double().square().mean().sqrt())


@dataclass(frozen=True)
class TileMerger:
    """How results of tiles become those of their images. `statistics` are of the tile locations or of the
    merged result, as `normalization` has it; None leaves all values as they are. `insides`: the region in the
    image at every scale; `inside`: in the image itself.
    """

    frame: TilePyramid
    score: str
    seam_smoothing: bool
    normalization: str
    statistics: TileStatistics | None = None
    insides: tuple[Inside | None, ...] = (None,)
    inside: Inside | None = None

    def buffer(self, num_images: int) -> MergeBuffer:
        return MergeBuffer(self, num_images)

    def merged_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[B]` of images from those of tiles that are looked at, `[tiles, B]`: the mean over the
        scales of each one's mean or largest.
        """
        each = self.frame.split(scores, looked_at=True)
        return _mean([own.mean(0) if self.score == "mean" else own.amax(0) for own in each])

    def merged_scales(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps `[B, H, W]` of images: the mean over those at every scale, each resized to the image."""
        return _mean([resize_maps(own, self.frame.image_size) for own in maps])


def _mean(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)


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
        split = merger.frame.split(maps, looked_at=False)
        levels = zip(merger.frame.levels, split, merger.insides, strict=True)
        merged = merger.merged_scales(
            [level.merge(own, merger.seam_smoothing, inside) for level, own, inside in levels]
        )
        score = merger.merged_scores(scores)
        if merger.normalization == "image" and merger.statistics is not None:
            merger.statistics.apply(0, score, merged)
        return score, merged if merger.inside is None else merger.inside.blank(merged)
