"""Tiled ensembles in a graph: images to tiles, and results of tiles to those of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemblead.deploy.heads import Head, Values
from ensemblead.deploy.resizing import Resize
from ensemblead.detectors.parts import Result
from ensemblead.ensembles.tile_frame import TileFrame
from ensemblead.ensembles.tile_merging import TileMerger
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.images import Geometry
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import render_maps
from ensemblead.kernels.tiling import SEAM_SIGMA, SEAM_WIDTH


class Cut(nn.Module):
    """Images `[B, 3, H, W]` to their tiles `[T B, 3, h, w]`, zeros where a tile overhangs."""

    def __init__(self, frame: TilePyramid) -> None:
        super().__init__()
        self._levels = frame.levels
        self.scales = nn.ModuleList(
            Resize(Geometry(level.image_size, None), frame.image_size) for level in frame.levels
        )

    def forward(self, pixels: Tensor) -> Tensor:
        tiles = []
        for level, scale in zip(self._levels, self.scales, strict=True):
            (height, width), scaled = level.tile_size, scale(pixels)
            for number in level.numbers:
                window = level.window(number)
                rows, columns = window.rows(level.image_size[0]), window.columns(level.image_size[1])
                below, right = height - (rows.stop - rows.start), width - (columns.stop - columns.start)
                tiles.append(functional.pad(scaled[:, :, rows, columns], (0, right, 0, below)))
        return torch.cat(tiles)


class _Level(nn.Module):
    """Maps `[tiles, B, h, w]` of the tiles at one scale to that of the image at this scale, `[B, H, W]`."""

    coverage: Tensor
    seams: Tensor

    def __init__(self, frame: TileFrame, inside: Inside | None, smooth: bool) -> None:
        super().__init__()
        self._frame, self._inside, self._smooth = frame, inside, smooth
        coverage = torch.zeros(frame.image_size)
        for number in frame.numbers:
            window = frame.window(number)
            coverage[window.rows(frame.image_size[0]), window.columns(frame.image_size[1])] += 1
        # Nothing is seen where tiles are skipped.
        self.register_buffer("coverage", coverage.clamp_min(1.0))
        self.register_buffer("seams", torch.from_numpy(seam_mask(frame)))

    def forward(self, maps: Tensor) -> Tensor:
        frame = self._frame
        height, width = frame.image_size
        total: Tensor | None = None
        for place, number in enumerate(frame.numbers):
            window = frame.window(number)
            rows, columns = window.rows(height), window.columns(width)
            part = maps[place][:, : rows.stop - rows.start, : columns.stop - columns.start]
            border = (columns.start, width - columns.stop, rows.start, height - rows.stop)
            placed = functional.pad(part, border)
            total = placed if total is None else total + placed
        assert total is not None
        merged = total / self.coverage
        if self._inside is not None:
            merged = self._inside.spread(merged)
        if not self._smooth:
            return merged
        return torch.where(self.seams, render_maps(merged, frame.image_size, sigma=SEAM_SIGMA), merged)


class TilesHead(Head):
    """Results of all tiles as those of their images; see `TiledEnsemble`.

    Args:
        members: one per tile, or one for all of a scale.
    """

    def __init__(self, members: Sequence[Head], merger: TileMerger) -> None:
        super().__init__()
        self.members, self._merger = nn.ModuleList(members), merger
        self.reads = tuple(dict.fromkeys(name for member in members for name in member.reads))
        levels = zip(merger.frame.levels, merger.insides, strict=True)
        self.levels = nn.ModuleList(_Level(*level, merger.seam_smoothing) for level in levels)

    def forward(self, values: Values) -> Result:
        merger, count = self._merger, len(self._merger.frame)
        # Tiles are the slowest axis of a batch.
        split = {
            name: values[name].reshape(count, -1, *map(int, values[name].shape[1:])) for name in self.reads
        }
        results, start = [], 0
        for member, tiles in zip(self.members, self._tiles_of_members(), strict=True):
            own = {name: value[start : start + tiles].flatten(0, 1) for name, value in split.items()}
            scores, maps = member(own)
            results.append((scores.reshape(tiles, -1), maps.reshape(tiles, -1, *map(int, maps.shape[1:]))))
            start += tiles
        scores, maps = (torch.cat(kind) for kind in zip(*results, strict=True))
        if merger.normalization == "tile" and merger.statistics is not None:
            scores, maps = self._standardized(scores, maps)
        pairs = zip(self.levels, merger.frame.split(maps, looked_at=True), strict=True)
        merged = merger.merged_scales([level(own) for level, own in pairs])
        score = merger.merged_scores(scores)
        if merger.normalization == "image" and merger.statistics is not None:
            score, merged = (own[0] for own in self._standardized(score[None], merged[None]))
        return score, merged if merger.inside is None else merger.inside.blank(merged)

    def _tiles_of_members(self) -> list[int]:
        """How many tiles each member looks at."""
        frame = self._merger.frame
        return [1] * len(frame) if len(self.members) == len(frame) else [len(one) for one in frame.levels]

    def _standardized(self, scores: Tensor, maps: Tensor) -> Result:
        """Scores `[n, B]` and maps `[n, B, h, w]` less means, over deviations, a row of statistics each."""
        assert self._merger.statistics is not None
        means, stds, map_means, map_stds = self._merger.statistics.values.float().cpu().T[:, :, None]
        map_means, map_stds = (own[:, :, None, None] for own in (map_means, map_stds))
        return (scores - means) / stds, (maps - map_means) / map_stds


def seam_mask(frame: TileFrame) -> npt.NDArray[np.bool_]:
    """The pixels that `smooth_seams` blurs, bool `[H, W]`."""
    mask = np.zeros(frame.image_size, dtype=bool)
    height, width = frame.image_size
    reach, across = (int(SEAM_WIDTH * side) for side in frame.tile_size)
    for number in range(frame.count):
        window = frame.window(number)
        for seam in (window.top, window.top + window.height):
            if 0 < seam < height:
                mask[max(seam - reach, 0) : seam + reach] = True
        for seam in (window.left, window.left + window.width):
            if 0 < seam < width:
                mask[:, max(seam - across, 0) : seam + across] = True
    return mask
