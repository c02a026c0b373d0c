"""Exact nearest neighbours in squared L2 distance, on any device: on a CPU by the core's pruned search where
the rows' variance lies along few directions, else a matrix product by tiles, fused with a running minimum.

Distances are always those to the rows found, summed from differences: what an index approximates is which
rows it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.precision import exact_products
from ensemblead.kernels.nearest import SketchedRows, nearest_rows
from ensemblead.search.directions import principal_directions

# (queries, rows) of a product: it stays in the last cache on a CPU, and takes 128 MiB on a GPU, which is
# enough to keep one busy.
_CPU_TILE, _CUDA_TILE = (1024, 4096), (8192, 4096)
# Neighbours up to which the pruned search is the faster one: it keeps them sorted one by one.
_FEW_NEIGHBORS = 32
# Floats per gathered block when distances are summed from differences.
_CPU_GATHER, _CUDA_GATHER = 1 << 20, 1 << 25


@dataclass(frozen=True)
class Excluded:
    """Rows that a query must not find: those whose image is the query's own.

    `rows` int64 `[M]`, the image of every row; `queries` int64 `[Q]`, or `[]` where all queries have one
    image; both on the device of the search. `host`: the queries' images again, on the host.
    """

    rows: torch.Tensor
    queries: torch.Tensor
    host: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: torch.Tensor, images: npt.NDArray[np.int64]) -> Excluded:
        return cls(rows, torch.from_numpy(images).to(rows.device, non_blocking=True), images)

    def part(self, which: npt.NDArray[np.intp]) -> Excluded:
        """For some of the queries."""
        return self if self.host.ndim == 0 else Excluded.of(self.rows, self.host[which])


def true_distances(queries: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Squared L2 distances from query q to the rows `indices[q]`: float32, shape of `indices` `[Q, k]`.

    Summed from differences, so they stay right where the expanded form cancels: for near duplicates, or far
    from the origin.
    """
    out = torch.empty(indices.shape, dtype=torch.float32, device=queries.device)
    gather = _CUDA_GATHER if queries.is_cuda else _CPU_GATHER
    step = max(1, gather // (queries.shape[1] * indices.shape[1]))
    for a in range(0, len(indices), step):
        for j in range(indices.shape[1]):
            difference = rows.index_select(0, indices[a : a + step, j]).sub_(queries[a : a + step])
            out[a : a + step, j] = difference.square_().sum(1)
    return out


def sort_by_distance(
    queries: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """True distances of the rows found, and the rows, nearest first."""
    distances = true_distances(queries, rows, indices)
    if indices.shape[1] > 1:
        distances, order = distances.sort(dim=1, stable=True)
        indices = indices.gather(1, order)
    return distances, indices


class ExactIndex:
    """Finds what comparing every row finds, on any device."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    # What a search needs is made when the first one comes, which many indexes never see.

    @cached_property
    def _sketched(self) -> SketchedRows | None:
        """What the core searches by; None on a GPU, and where it would gain nothing. It depends on the rows
        alone, so how many queries come changes nothing.
        """
        found = None if self._rows.is_cuda else principal_directions(self._rows)
        return None if found is None else SketchedRows.of(self._rows.contiguous(), *found)

    # |x - p|^2 orders rows p as |p'|^2 + 2 m.p' - 2 x.p' does, with p' = p - m. Taking the mean m off the
    # rows keeps the rounding small where all features share a large offset, and costs no pass over the
    # queries.

    @cached_property
    def _mean(self) -> torch.Tensor:
        return self._rows.double().mean(0).float()

    @cached_property
    def _offsets(self) -> torch.Tensor:
        blocks = (self._rows[a : a + 8192] - self._mean for a in range(0, len(self._rows), 8192))
        mean = self._mean.double()
        return torch.cat(
            [(block.double().square().sum(1) + 2.0 * block.double() @ mean).float() for block in blocks]
        )

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Index.search`."""
        if k <= _FEW_NEIGHBORS and self._sketched is not None:
            return _by_sketches(queries.contiguous(), self._sketched, k, excluded)
        with exact_products():
            found = self._nearest(queries, k, excluded)
        return sort_by_distance(queries, self._rows, found)

    def _nearest(self, queries: torch.Tensor, k: int, excluded: Excluded | None) -> torch.Tensor:
        found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        query_tile, row_tile = _CUDA_TILE if queries.is_cuda else _CPU_TILE
        best = torch.empty(0, device=queries.device)
        # Rows outside, queries inside: a tile of rows is centred once.
        for r in range(0, len(self._rows), row_tile):
            tile = self._rows[r : r + row_tile] - self._mean
            offsets = self._offsets[r : r + row_tile]
            own = None if excluded is None else excluded.rows[r : r + row_tile]
            if excluded is not None and own is not None and excluded.queries.ndim == 0:
                offsets = offsets.masked_fill(own == excluded.queries, torch.inf)
            if r == 0:
                best = torch.full((len(queries), k), torch.inf, device=queries.device)
                found.zero_()
            for q in range(0, len(queries), query_tile):
                part = slice(q, q + query_tile)
                product = torch.addmm(offsets, queries[part], tile.T, alpha=-2.0)
                if excluded is not None and own is not None and excluded.queries.ndim == 1:
                    product.masked_fill_(excluded.queries[part, None] == own, torch.inf)
                _merge(best[part], found[part], product, r)
        return found


def _by_sketches(
    queries: torch.Tensor, rows: SketchedRows, k: int, excluded: Excluded | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if excluded is None:
        return nearest_rows(queries, rows, k)
    own = excluded.queries.expand(len(queries)).contiguous()
    return nearest_rows(queries, rows, k, row_images=excluded.rows.contiguous(), query_images=own)


def _merge(best: torch.Tensor, found: torch.Tensor, product: torch.Tensor, first_row: int) -> None:
    """Put the k smallest of `product` `[q, r]` and of what was found so far into `best` and `found` `[q,
    k]`.
    """
    k = best.shape[1]
    if k == 1:
        values, places = product.min(1, keepdim=True)
        nearer = values < best
        torch.where(nearer, values, best, out=best)
        torch.where(nearer, places + first_row, found, out=found)
        return
    values, places = product.topk(min(k, product.shape[1]), dim=1, largest=False)
    values, order = torch.cat([best, values], 1).topk(k, dim=1, largest=False)
    best.copy_(values)
    found.copy_(torch.cat([found, places + first_row], 1).gather(1, order))


def nearest_squared(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Squared L2 distance from every query `[Q, D]` to its nearest row `[M, D]`: float32 `[Q]`."""
    distances, _ = ExactIndex(rows).search(queries, 1, None)
    return distances[:, 0]
