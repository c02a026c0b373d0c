"""One memory bank per layer: each layer's distances, in units of its own usual one, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ensemblead.calibration import NormalSample, weakest
from ensemblead.detectors.parts import Fitted, GraphOutputs, Run, Scores, Seen
from ensemblead.detectors.patchcore.accumulator import BankAccumulator
from ensemblead.detectors.patchcore.graph import BankGraph, top_share
from ensemblead.detectors.patchcore.scoring import PatchScoring
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import MapKind, resize_maps
from ensemblead.kernels.object_cells import ObjectCells
from ensemblead.kernels.patch_operators import resized
from ensemblead.memory import BankState, MemoryBank


@dataclass(frozen=True)
class LayerBanksState:
    """What is saved of `LayerBanks`. Raises ValueError for values that they never have."""

    banks: tuple[BankState, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.banks or len(self.banks) != len(self.scales):
            raise ValueError(
                f"scales must be one per bank ({len(self.banks)}, at least 1), got {len(self.scales)}"
            )
        if not all(type(scale) in (int, float) and 0.0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales must be positive and finite, got {self.scales}")


@dataclass(frozen=True)
class LayerBanks:
    """Memory banks, one per layer of a network.

    Attributes:
        banks: in the order of the layers.
        scales: each layer's mean distance of normal patches, scored without their own images' rows, in the
            unit of its distances. A layer's distances are divided by it. Of a single image it is the mean
            distance of the bank's rows from their mean.
    """

    banks: tuple[MemoryBank, ...]
    scales: tuple[float, ...]

    def scores(
        self,
        scoring: PatchScoring,
        embeddings: Sequence[torch.Tensor],
        inside: Inside | None,
        objects: ObjectCells | None = None,
    ) -> Scores:
        """Scores of the layers' embeddings `[B, h_l, w_l, D_l]`, on the grid of the first layer; of the
        patches of a region, if there is one, or of objects.
        """
        each = [
            scoring.inspected(bank, own, inside, on_grid_of(own, objects)).grids
            for bank, own in zip(self.banks, embeddings, strict=True)
        ]
        fused = averaged(each, self.scales)
        scores = scoring.of_grids(fused if inside is None else inside.take(fused), objects)
        return Scores(fused, scores, objects)


def on_grid_of(embeddings: torch.Tensor, objects: ObjectCells | None) -> ObjectCells | None:
    """Objects on the grid of a layer's embeddings `[B, h, w, D]`."""
    return None if objects is None else objects.on((int(embeddings.shape[1]), int(embeddings.shape[2])))


def averaged(grids: Sequence[torch.Tensor], scales: Sequence[float]) -> torch.Tensor:
    """The mean of layers' grids `[B, h_l, w_l]`, each divided by its scale, on the first one's cells."""
    rows, columns = map(int, grids[0].shape[1:])
    total = grids[0] / scales[0]
    for grid, scale in zip(grids[1:], scales[1:], strict=True):
        total = total + resize_maps(grid / scale, (rows, columns))
    return total / len(grids)


class LayersAccumulator:
    """Gathers every layer's patches for its bank; see `BankAccumulator`.

    Args:
        parts: one per layer.
        scales: those of the banks that are extended, which stay; None: they are found.
    """

    def __init__(
        self,
        parts: Sequence[BankAccumulator],
        scales: tuple[float, ...] | None,
        scoring: PatchScoring,
        map_kind: MapKind,
    ) -> None:
        self._parts, self._scales = list(parts), scales
        self._scoring, self._map_kind = scoring, map_kind

    def add(self, seen: Seen, objects: ObjectCells | None = None) -> None:
        """Take in a batch; `objects`: of each image these patches alone."""
        for part, own in zip(self._parts, seen.values, strict=True):
            part.add(replace(seen, values=(own,)), on_grid_of(own, objects))

    def finish(self, run: Run) -> Fitted:
        fitted: list[Fitted] = []
        while self._parts:  # what a part holds of the images goes with it
            fitted.append(self._parts.pop(0).finish(run))
        samples = [one.sample for one in fitted]
        banks = tuple(one.state for one in fitted)
        scales = self._scales or tuple(map(self._scale, fitted))
        state = LayerBanks(banks, scales)
        warnings = {kind: text for one in reversed(fitted) for kind, text in one.warnings.items()}
        sample = self._fused(samples, scales)
        origin = weakest(one.origin for one in fitted)
        return Fitted(state, sample, origin, warnings, rose=any(one.rose for one in fitted))

    def _scale(self, fitted: Fitted) -> float:
        """A layer's mean distance of normal patches, or, where none was scored without its own rows, as of a
        single image, that of its bank's rows from their mean.
        """
        if fitted.origin != "trained_on":
            return _usual_distance(fitted.sample)
        rows = fitted.state.rows_.double()
        spread = float((rows - rows.mean(0)).square().sum(1).mean())
        return (0.5 * spread if self._scoring.is_cosine else spread) or 1.0

    def _fused(self, samples: Sequence[NormalSample], scales: Sequence[float]) -> NormalSample:
        """The sample of what the layers say together of each image."""
        fused = NormalSample(inside=samples[0].inside)
        numbers = range(samples[0].num_results)
        counted = [all(sample.is_counted(i) for sample in samples) for i in numbers]
        for i in numbers:
            grid = averaged([sample.grid(i)[0] for sample in samples], scales)
            size = samples[0].grid(i)[1]
            # Where each image lacks others' rows in some layer, all count, as in one bank; a warning says so.
            is_counted = counted[i] or not any(counted)
            inside = samples[0].inside_of(i)
            objects = inside if isinstance(inside, ObjectCells) else None
            flat = grid if inside is None or objects is not None else inside.take(grid)
            scores = self._scoring.of_grids(flat, objects)
            fused.add_grids(scores, grid, size, kind=self._map_kind, counted=is_counted, objects=objects)
        moved = (sample.rounding / scale for sample, scale in zip(samples, scales, strict=True))
        fused.rounding = sum(moved) / len(samples)
        return fused


def _usual_distance(sample: NormalSample) -> float:
    """The mean of a layer's distances over the patches of its sample, or what rounding makes, if more."""
    numbers = range(sample.num_results)
    which = [i for i in numbers if sample.is_counted(i)] or list(numbers)
    grids = [sample.grid(i)[0].double() for i in which]
    insides = [sample.inside_of(i) for i in which]
    pairs = zip(grids, insides, strict=True)
    grids = [grid if inside is None else inside.take(grid) for grid, inside in pairs]
    mean = torch.stack([grid.mean() for grid in grids]).mean() if grids else 0.0
    return max(float(mean), sample.rounding) or 1.0


class LayerBanksGraph(nn.Module):
    """`LayerBanks` as standard operators, of the layers' graphs."""

    def __init__(self, layers: Sequence[BankGraph], scales: Sequence[float], scoring: PatchScoring) -> None:
        super().__init__()
        self.layers, self._scales, self._scoring = nn.ModuleList(layers), tuple(scales), scoring
        self._inside = layers[0].inside

    def forward(self, pixels: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]) -> GraphOutputs:
        grids = [layer(pixels, [own])[0][:, None] for layer, own in zip(self.layers, maps, strict=True)]
        rows, columns = map(int, grids[0].shape[2:])
        total = grids[0] / self._scales[0]
        for grid, scale in zip(grids[1:], self._scales[1:], strict=True):
            total = total + resized(grid / scale, (rows, columns))
        fused = total[:, 0] / len(grids)
        inspected = fused if self._inside is None else self._inside.take(fused)
        return fused, top_share(inspected.flatten(1), self._scoring)
