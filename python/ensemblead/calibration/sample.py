"""Scores and maps of normal images, gathered one by one, and their statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ensemblead.calibration.regions import cell_peaks
from ensemblead.calibration.statistics import LATTICE, Calibration, Origin
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import SIGMA, MapKind, render_inside
from ensemblead.kernels.object_cells import ObjectCells


class _Result(NamedTuple):
    """What `add_grids` was given of one image."""

    score: torch.Tensor
    grid: torch.Tensor
    size: tuple[int, int]
    sigma: float
    kind: MapKind
    counted: bool
    left_out: bool
    objects: ObjectCells | None = None


class NormalSample:
    """Scores and maps of normal images that their detector has not learned, or was scored without.

    `rounding`, `map_rounding`: how far rounding can move such scores and maps, see `Calibration`. `inside`:
    the region of the maps; statistics are of its pixels alone. None: all count.
    """

    def __init__(
        self, rounding: float = 0.0, inside: Inside | None = None, map_rounding: float | None = None
    ) -> None:
        self.rounding, self.inside, self.map_rounding = rounding, inside, map_rounding
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count = 0
        self._results: list[_Result] = []

    def __len__(self) -> int:
        """Images in the statistics."""
        return self._count

    def add(self, scores: torch.Tensor, maps: torch.Tensor) -> None:
        """Scores `[B]` and maps `[B, H, W]` of B images; what is kept of them stays on their device."""
        rows = (torch.arange(LATTICE, device=maps.device) * 2 + 1) * maps.shape[1] // (2 * LATTICE)
        columns = (torch.arange(LATTICE, device=maps.device) * 2 + 1) * maps.shape[2] // (2 * LATTICE)
        inside = self.inside
        # Points outside of a region stand for the nearest pixel inside.
        filled = maps if inside is None else inside.spread(maps)
        lattice = filled[:, rows][:, :, columns].reshape(len(maps), -1)
        flat = (maps if inside is None else inside.take(maps)).reshape(len(maps), -1).double()
        moments = torch.stack([flat.mean(1), flat.var(1, correction=0)], 1)
        # A copy: the scores may be a view of something larger.
        self._parts.append((scores.clone(), lattice, moments, cell_peaks(filled, LATTICE)))
        self._count += len(scores)

    def add_grids(
        self,
        scores: torch.Tensor | None,
        grids: torch.Tensor,
        size: tuple[int, int],
        *,
        sigma: float = SIGMA,
        kind: MapKind = "bilinear",
        counted: bool = True,
        left_out: bool = False,
        objects: ObjectCells | None = None,
    ) -> None:
        """Scores `[B]` and the maps that `render_maps` makes of grids `[B, h, w]`; `result` gives them again.

        Args:
            scores: None: each the largest value of its map.
            sigma, kind: as for `render_maps`.
            counted: False leaves these images out of the statistics (their scores are not fair), but not out
                of the results.
            left_out: these images were left out of the fit, as odd among the others: they are not counted,
                and `is_left_out` says so.
            objects: what is inspected of each image, in place of `inside`; maps are zero elsewhere, and
                statistics are of whole maps.
        """
        counted = counted and not left_out
        if counted or scores is None:
            inside = self.inside if objects is None else objects
            largest, maps = render_inside(grids, size, inside, sigma=sigma, kind=kind)
            scores = largest if scores is None else scores
            if counted:
                self.add(scores, maps)
        for i, (score, grid) in enumerate(zip(scores, grids, strict=True)):
            own = None if objects is None else objects[i : i + 1]
            self._results.append(
                _Result(score.clone(), grid.clone(), size, sigma, kind, counted, left_out, own)
            )

    def results(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What `result` and `is_counted` give: tensors, and the rest in JSON's types.

        Raises ValueError for grids of several sizes, sigmas or kinds.
        """
        scores, grids, sizes, sigmas, kinds, counted, left_out, _ = zip(*self._results, strict=True)
        if len(set(zip(sizes, sigmas, kinds, strict=True))) > 1:
            raise ValueError("the grids of a sample must have one size, sigma and kind to be kept")
        tensors = {"scores": torch.stack(scores), "grids": torch.stack(grids)}
        tensors |= {"counted": torch.tensor(counted), "left_out": torch.tensor(left_out)}
        values = {"size": list(sizes[0]), "sigma": sigmas[0], "kind": kinds[0], "rounding": self.rounding}
        return tensors, values

    @classmethod
    def of_results(
        cls,
        tensors: Mapping[str, torch.Tensor],
        values: Mapping[str, Any],
        device: torch.device,
        inside: Inside | None = None,
    ) -> NormalSample:
        """A sample whose results `results` gave, on a device; without statistics."""
        sample = cls(values["rounding"], inside)
        size = (values["size"][0], values["size"][1])
        scores, grids = tensors["scores"].to(device), tensors["grids"].to(device)
        marks = zip(tensors["counted"].tolist(), tensors["left_out"].tolist(), strict=True)
        sample._results = [
            _Result(score, grid, size, values["sigma"], values["kind"], *own)
            for score, grid, own in zip(scores, grids, marks, strict=True)
        ]
        return sample

    def largest_score(self) -> float:
        """Of the images in the statistics, in magnitude; 0 of none."""
        # A GPU is read once.
        return float(torch.cat([scores for scores, *_ in self._parts]).abs().max()) if self._parts else 0.0

    @property
    def num_results(self) -> int:
        """Images given to `add_grids`."""
        return len(self._results)

    def result(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Score `[1]` and map `[1, H, W]` of the image that came as number `index` to `add_grids`. Kept as
        grids, they take a hundredth of the maps' memory.
        """
        one, inside = self._results[index], self.inside_of(index)
        _, maps = render_inside(one.grid[None], one.size, inside, sigma=one.sigma, kind=one.kind)
        return one.score[None], maps

    def grid(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Grid `[1, h, w]` of image `index`, as `add_grids` took it, and the size of its map."""
        _, grid, size, *_ = self._results[index]
        return grid[None], size

    def inside_of(self, index: int) -> Inside | ObjectCells | None:
        """What is inspected of image `index`; None: all."""
        own = self._results[index].objects
        return self.inside if own is None else own

    def is_counted(self, index: int) -> bool:
        """Whether `add_grids` counted image `index`."""
        return self._results[index].counted

    def is_left_out(self, index: int) -> bool:
        """Whether image `index` was left out of the fit."""
        return self._results[index].left_out

    def standardized(
        self, score_mean: float, score_std: float, map_mean: float, map_std: float
    ) -> NormalSample:
        """The sample of scores and maps less their mean and divided by their deviation; without results."""
        moved = self.rounding if self.map_rounding is None else self.map_rounding
        other = NormalSample(self.rounding / score_std, map_rounding=moved / map_std)
        other._count = self._count
        for scores, pixels, moments, peaks in self._parts:
            means, variances = moments.unbind(1)
            standard = torch.stack([(means - map_mean) / map_std, variances / map_std**2], 1)
            values = ((one - map_mean) / map_std for one in (pixels, peaks))
            other._parts.append(((scores - score_mean) / score_std, next(values), standard, next(values)))
        return other

    def calibration(
        self,
        rate: float,
        origin: Origin,
        images_sha256: str,
        positions: Sequence[int] = (),
        *,
        with_peaks: bool = True,
    ) -> Calibration:
        """The statistics of what was added; the arguments as `Calibration` describes them.

        `positions`: of all images that were added, also of those that are not counted. `with_peaks`: False
        for parts whose maps nobody looks for regions in, such as a tile's.
        """
        if not self._parts:
            raise ValueError("no normal images to take statistics from")
        if len(positions) == len(self._results):
            positions = [at for at, one in zip(positions, self._results, strict=True) if one.counted]
        # One copy of each to the host, whatever number of batches there was.
        scores, pixels, moments, peaks = (
            torch.cat(parts).cpu().numpy() for parts in zip(*self._parts, strict=True)
        )
        means, variances = moments.T
        return Calibration(
            scores=scores.astype(np.float32),
            pixels=pixels.astype(np.float32),
            map_mean=float(means.mean()),
            map_std=float(np.sqrt((variances + (means - means.mean()) ** 2).mean())),
            requested_rate=rate,
            origin=origin,
            images_sha256=images_sha256,
            rounding=self.rounding,
            map_rounding=self.map_rounding,
            positions=tuple(positions) if len(positions) == self._count else (),
            peaks=peaks.astype(np.float32) if with_peaks else None,
        )
