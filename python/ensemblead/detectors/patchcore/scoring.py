"""Scores of patches by a memory bank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemblead.detectors.parts import Scores
from ensemblead.images import Turn
from ensemblead.kernels.filling import Mask, cells_inside
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.object_cells import ObjectCells
from ensemblead.memory import MemoryBank
from ensemblead.memory.places import Numbers, grid_places
from ensemblead.networks.noise import moved_distance

_TOP_SHARE = 0.01
# The shortest length that is divided by; a shorter vector counts as zero.
SHORTEST = 1e-30


def top_count(patches: int) -> int:
    """The number of an image's patches that `score="topk"` averages."""
    return max(1, int(patches * _TOP_SHARE))


def patch_places(
    bank: MemoryBank, images: int, grid: tuple[int, int], inside: Inside | None = None
) -> Numbers | None:
    """The places of the inspected patches of so many images, or None for a bank to which places do not
    matter.

    Raises ValueError for another grid (h, w) than the bank's.
    """
    if bank.position_radius is None:
        return None
    if bank.grid not in (None, grid):
        raise ValueError(
            f"images must all give one grid of patches with position_radius={bank.position_radius}: it is "
            f"{bank.grid}, but these give {grid}; set resize=(h, w), or an image_size"
        )
    if inside is None:
        return grid_places(images, *grid)
    chosen = inside.places(grid, torch.device("cpu")).numpy()
    return np.tile(grid_places(1, *grid)[chosen], (images, 1))


def cells_of(turn: Turn, size: tuple[int, int], inside: Inside | None, grid: tuple[int, int]) -> Mask:
    """Which patches of a copy's grid are learned, bool `[h, w]`: of a turned one those that show nothing but
    what is inspected of the photograph.
    """
    mask = np.ones(size, dtype=bool) if inside is None else inside.mask
    if not turn.angle:
        return cells_inside(mask, grid)
    return ~cells_inside(~turn.reached(mask), grid)


def of_length_one(vectors: torch.Tensor) -> torch.Tensor:
    """float32 `[..., D]`, each divided by its Euclidean norm; a vector of zeros stays one."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64)
    unit: torch.Tensor = (vectors.double() / lengths.clamp_min(SHORTEST)).float()
    return unit


def is_zero(vectors: torch.Tensor) -> torch.Tensor:
    """Whether vectors `[..., D]` that `of_length_one` gave are of zeros: bool `[...]`."""
    lengths: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return lengths < 0.5


def raised(normal: torch.Tensor, defect: torch.Tensor) -> torch.Tensor:
    """Distances to normal patches, higher by as much as the nearest known defect is nearer, twice at most."""
    return normal + (normal - defect).clamp_min(0)


@dataclass(frozen=True)
class PatchScoring:
    """How distances to bank rows become scores; see `PatchCore`.

    With `metric="cosine"` embeddings and rows have length 1. The cosine distance, 1 - cos, is then half of
    the squared L2 distance. From a vector of zeros it is 1 to all rows. Where a bank has rows of known
    defects, patches nearer to these than to normal rows are `raised`, in the unit of the scores.
    """

    score: str
    num_neighbors: int
    reweight_neighbors: int
    metric: str = "l2"

    @property
    def is_cosine(self) -> bool:
        return self.metric == "cosine"

    @property
    def is_squared(self) -> bool:
        """Whether scores are squared L2 distances, or halves of them."""
        return self.is_cosine or self.score != "reweighted"

    def moved(self, score: float, floor: float, dims: int) -> float:
        """How far rounding moves a score like this one, where it moves an embedding by `floor`."""
        if not self.is_squared:
            return moved_distance(floor, max(score, 0.0), dims)
        share = 0.5 if self.is_cosine else 1.0
        distance = math.sqrt(max(score, 0.0) / share)
        farther = distance + moved_distance(floor, distance, dims)
        return share * (farther**2 - distance**2)

    def scores(
        self,
        bank: MemoryBank,
        patches: torch.Tensor,
        exclude_images: Sequence[int] | None = None,
        places: Numbers | None = None,
        objects: ObjectCells | None = None,
    ) -> Scores:
        """Scores of embeddings `[B, h, w, D]`, each without the bank rows of its own number among
        `exclude_images`. `places`: of `patch_places`; None: those of the grid. `objects`: the patches of each
        image that count; others have the score of the nearest one that does.
        """
        images, height, width, dims = patches.shape
        queries = patches.reshape(-1, dims)
        own = None if exclude_images is None else np.repeat(exclude_images, height * width)
        places = patch_places(bank, images, (height, width)) if places is None else places
        distances, found = bank.search(queries, exclude_image=own, places=places)
        nearest = self._in_metric(distances, queries)
        normal = nearest.mean(1) if nearest.shape[1] > 1 else nearest[:, 0]
        if bank.defects_ is not None:
            defect = self._in_metric(bank.defects_.nearest(queries)[:, None], queries)[:, 0]
            normal = raised(normal, defect)
        per_patch = normal.view(images, -1)
        grids = per_patch.view(images, height, width)
        if objects is not None:
            per_patch, grids = objects.least_outside(per_patch), objects.spread(grids)
        if self.score != "reweighted":
            return Scores(grids, self.of_grids(grids, objects), objects)
        largest, place = per_patch.max(1)
        # The strangest patch of every image, and the bank row nearest to it.
        strangest = torch.arange(images, device=place.device) * per_patch.shape[1] + place
        weight = self._reweighting(bank, queries[strangest], found[strangest, 0], exclude_images)
        return Scores(grids, largest * weight, objects)

    def inspected(
        self,
        bank: MemoryBank,
        patches: torch.Tensor,
        inside: Inside | None,
        objects: ObjectCells | None = None,
    ) -> Scores:
        """Scores of embeddings `[B, h, w, D]` of which only the patches of a region are inspected, or of
        objects.
        """
        if inside is None:
            return self.scores(bank, patches, objects=objects)
        grid = (patches.shape[1], patches.shape[2])
        places = patch_places(bank, len(patches), grid, inside)
        found = self.scores(bank, inside.take(patches), places=places)
        return Scores(inside.put(found.grids, grid), found.images)

    def of_grids(self, grids: torch.Tensor, objects: ObjectCells | None = None) -> torch.Tensor:
        """Images' scores `[B]` of their patches' distances `[B, h, w]`, unless they are reweighted; of the
        patches of objects alone.
        """
        per_patch = grids.flatten(1)
        if objects is not None:
            per_patch = objects.least_outside(per_patch)
        if self.score != "topk":
            return per_patch.amax(1)
        largest = per_patch.topk(top_count(per_patch.shape[1]), dim=1).values
        if objects is None:
            return largest.mean(1)
        # Each image has a number of patches of its own, and so many of them count.
        counts = (objects.counts.double() * _TOP_SHARE).long().clamp_min(1)
        counted = torch.arange(largest.shape[1], device=largest.device) < counts[:, None]
        return (largest * counted).sum(1) / counts

    def _in_metric(self, squared: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Squared L2 distances `[Q, k]` of queries `[Q, D]` in the metric of the scores."""
        if self.is_cosine:
            return (0.5 * squared).masked_fill_(is_zero(queries)[:, None], 1.0)
        return squared if self.is_squared else squared.sqrt()

    def _reweighting(
        self,
        bank: MemoryBank,
        patches: torch.Tensor,
        winners: torch.Tensor,
        exclude_images: Sequence[int] | None,
    ) -> torch.Tensor:
        """`1 - softmax(distances)[0]` over a patch's distances to the bank rows around its winning one."""
        available = min([len(bank), *map(bank.rows_without, exclude_images or ())])
        count = min(self.reweight_neighbors, available)
        if count == 1:
            return torch.ones(len(patches), device=patches.device)
        places = None if bank.places_ is None else bank.places_[winners]
        _, around = bank.search(bank.rows_[winners], count, exclude_image=exclude_images, places=places)
        # An approximate index, or rows that are equal, may not put the winner first.
        is_winner = around == winners[:, None]
        others = torch.argsort(is_winner.to(torch.int8), dim=1, stable=True)[:, : count - 1]
        around = torch.cat([winners[:, None], around.gather(1, others)], 1)
        squared = (bank.rows_[around] - patches[:, None]).square().sum(2)
        return 1.0 - torch.softmax(self._in_metric(squared, patches), dim=1)[:, 0]
