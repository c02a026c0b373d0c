"""PatchCore as standard operators, for export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ensemblead.common.errors import NotExportableError
from ensemblead.detectors.parts import GraphOutputs
from ensemblead.detectors.patchcore.scoring import SHORTEST, PatchScoring, patch_places, raised, top_count
from ensemblead.detectors.regions import inside_of
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.patch_operators import PatchOperators
from ensemblead.memory import MemoryBank

# Bank rows of an exported graph at most: it holds the products of all patches of an image with them.
_MOST_EXPORTED = 50_000


class Rows(nn.Module):
    """Rows float32 `[M, D]`, and which of them are nearest to points.

    A matrix product about the rows' mean finds them. Distances to them are then summed from differences, as
    in `MemoryBank.search`, so that they stay right where the product cancels.
    """

    rows: Tensor
    mean: Tensor
    centred: Tensor
    half_norms: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        mean = rows.double().mean(0).float()
        centred = rows - mean
        self.register_buffer("rows", rows)
        self.register_buffer("mean", mean)
        self.register_buffer("centred", centred.T.contiguous())
        self.register_buffer("half_norms", 0.5 * centred.double().square().sum(1).float())

    def apart(self, points: Tensor) -> Tensor:
        """Half of the squared distances of points `[B, n, D]` from all rows, less what all of them share:
        `[B, n, M]`.
        """
        return self.half_norms - torch.matmul(points - self.mean, self.centred)

    def squared(self, points: Tensor, numbers: Tensor) -> Tensor:
        """Squared distances `[B, n, k]` of points from the rows of numbers `[B, n, k]`."""
        each = (int(numbers.shape[1]), int(numbers.shape[2]), self.rows.shape[1])
        found = self.rows.index_select(0, numbers.reshape(-1)).reshape(-1, *each)
        return (found - points[:, :, None]).square().sum(3)


class BankGraph(nn.Module):
    """Feature maps to scores, by the rows of a memory bank float32 `[M, D]`.

    `near` bool `[patches, M]`: the rows that each patch is compared with; None: all. `inside`: a region, of
    whose patches alone there are scores. `defects`: rows of known defects float32 `[K, D]`, or None.
    """

    near: Tensor | None

    def __init__(
        self,
        patches: PatchOperators,
        rows: Tensor,
        scoring: PatchScoring,
        near: Tensor | None = None,
        inside: Inside | None = None,
        defects: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.patches, self._scoring, self.inside = patches, scoring, inside
        self.bank, self.defects = Rows(rows), None if defects is None else Rows(defects)
        self.register_buffer("near", near)

    def forward(self, pixels: Sequence[Tensor], maps: Sequence[Tensor]) -> GraphOutputs:
        embeddings, inside = self.patches(maps), self.inside
        if self._scoring.is_cosine:
            lengths = embeddings.square().sum(3, keepdim=True).sqrt()
            embeddings = embeddings / lengths.clamp_min(SHORTEST)
        if inside is None:
            return self._scored(embeddings)
        grids, scores = self._scored(inside.take(embeddings))
        return inside.put(grids, (int(embeddings.shape[1]), int(embeddings.shape[2]))), scores

    def _scored(self, embeddings: Tensor) -> GraphOutputs:
        height, width, dims = map(int, embeddings.shape[1:])
        queries = embeddings.reshape(-1, height * width, dims)
        scoring = self._scoring
        apart = self.bank.apart(queries)
        if self.near is not None:
            apart = torch.where(self.near, apart, 3e38)
        found = apart.topk(scoring.num_neighbors, dim=2, largest=False).indices
        per_patch = self._in_metric(self.bank.squared(queries, found), queries).mean(2)
        if self.defects is not None:
            known = self.defects.apart(queries).topk(1, dim=2, largest=False).indices
            squared = self.defects.squared(queries, known)
            per_patch = raised(per_patch, self._in_metric(squared, queries)[:, :, 0])
        grids = per_patch.reshape(-1, height, width)
        if scoring.score != "reweighted":
            return grids, top_share(per_patch, scoring)
        largest, place = per_patch.max(1, keepdim=True)
        patch = queries.gather(1, place[:, :, None].expand(-1, 1, dims))
        # Of the nearest row; the first neighbour of every patch is.
        winner = found[:, :, 0].gather(1, place)
        return grids, largest[:, 0] * self._reweighting(patch, winner)

    def _reweighting(self, patch: Tensor, winner: Tensor) -> Tensor:
        """See `PatchScoring`: of a patch `[B, 1, D]` and the number of its nearest row `[B, 1]`."""
        rows = self.bank.rows
        count = min(self._scoring.reweight_neighbors, len(rows))
        if count == 1:
            return torch.ones_like(patch[:, 0, 0])
        apart = self.bank.apart(rows.index_select(0, winner[:, 0])[:, None])[:, 0]
        # The winner comes first, whatever rows equal it.
        is_winner = torch.arange(len(rows), device=winner.device) == winner
        around = apart.masked_fill(is_winner, -3e38).topk(count, dim=1, largest=False).indices
        squared = self.bank.squared(patch, around[:, None])[:, 0]
        return 1.0 - torch.softmax(self._in_metric(squared, patch[:, 0]), dim=1)[:, 0]

    def _in_metric(self, squared: Tensor, queries: Tensor) -> Tensor:
        """See `PatchScoring`: of squared distances `[..., k]` of queries `[..., D]`."""
        if self._scoring.is_cosine:
            is_zero = queries.square().sum(-1, keepdim=True) < 0.25
            return torch.where(is_zero, torch.ones_like(squared), 0.5 * squared)
        return squared if self._scoring.is_squared else squared.sqrt()


def bank_graph(method: Any, bank: MemoryBank, group: range, size: tuple[int, int]) -> BankGraph:
    """The graph of a bank of a PatchCore, of the layers of a group; see `Method.graph`."""
    if len(bank) > _MOST_EXPORTED:
        raise NotExportableError(
            f"a memory bank of {len(bank)} rows is too large for a graph, which compares every patch "
            f"with all of them at once; extend(images, max_rows={_MOST_EXPORTED}) or a smaller "
            "coreset_size makes it smaller"
        )
    padded = method._frozen.padded_size(size)
    if padded != size:
        raise NotExportableError(
            f"pad_to_grid: images of {size[0]} x {size[1]} pixels are padded to {padded[0]} x {padded[1]}, "
            "which no graph does; give resize=(h, w) that the network takes"
        )
    network = method.network_.with_layers([method.layers[i] for i in group])
    patches = PatchOperators(
        network.channels(size),
        network.grid(size),
        patch_size=method.patch_size,
        pretrain_dim=method._pretrain_dim_of(group),
        target_dim=method.target_dim,
        mode=method.aggregation,
    )
    inside, near = inside_of(method.geometry), None
    if bank.position_radius is not None:
        if method.score == "reweighted":
            raise NotExportableError(
                'score="reweighted" with position_radius compares bank rows with each other by place, '
                'which no graph does; score="topk" or "max" can be exported'
            )
        rows, columns = network.grid(size)
        near = bank.near_rows(patch_places(bank, 1, (rows, columns), inside), method.num_neighbors)
    defects = None if bank.defects_ is None else bank.defects_.rows.float().cpu()
    return BankGraph(patches, bank.rows_.float().cpu(), method._scoring, near, inside, defects)


def top_share(per_patch: Tensor, scoring: PatchScoring) -> Tensor:
    """`PatchScoring.of_grids` of distances `[B, n]`: scores `[B]`."""
    if scoring.score == "topk":
        return per_patch.topk(top_count(int(per_patch.shape[1])), dim=1).values.mean(1)
    return per_patch.amax(1)
