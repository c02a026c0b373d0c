"""Scores of patches by a memory bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemblead.detectors.parts import Scores
from ensemblead.kernels.inside import Inside
from ensemblead.memory import MemoryBank
from ensemblead.memory.places import Numbers, grid_places

_TOP_SHARE = 0.01


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


@dataclass(frozen=True)
class PatchScoring:
    """How distances to bank rows become scores; see `PatchCore`."""

    score: str
    num_neighbors: int
    reweight_neighbors: int

    @property
    def is_squared(self) -> bool:
        """Whether scores are squared distances."""
        return self.score != "reweighted"

    def scores(
        self,
        bank: MemoryBank,
        patches: torch.Tensor,
        exclude_images: Sequence[int] | None = None,
        places: Numbers | None = None,
    ) -> Scores:
        """Scores of embeddings `[B, h, w, D]`, each without the bank rows of its own number among
        `exclude_images`. `places`: of `patch_places`; None: those of the grid.
        """
        images, height, width, dims = patches.shape
        queries = patches.reshape(-1, dims)
        own = None if exclude_images is None else np.repeat(exclude_images, height * width)
        places = patch_places(bank, images, (height, width)) if places is None else places
        distances, found = bank.search(queries, exclude_image=own, places=places)
        if self.score == "reweighted":
            distances = distances.sqrt()
        per_patch = distances.mean(1).view(images, -1)
        grids = per_patch.view(images, height, width)
        if self.score == "topk":
            count = top_count(per_patch.shape[1])
            return Scores(grids, per_patch.topk(count, dim=1).values.mean(1))
        largest, place = per_patch.max(1)
        if self.score == "max":
            return Scores(grids, largest)
        # The strangest patch of every image, and the bank row nearest to it.
        strangest = torch.arange(images, device=place.device) * per_patch.shape[1] + place
        weight = self._reweighting(bank, queries[strangest], found[strangest, 0], exclude_images)
        return Scores(grids, largest * weight)

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
        distances = torch.linalg.vector_norm(bank.rows_[around] - patches[:, None], dim=2)
        return 1.0 - torch.softmax(distances, dim=1)[:, 0]
