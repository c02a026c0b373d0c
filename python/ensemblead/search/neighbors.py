"""The result of every search: true distances, nearest first. And the rows that a query must not find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

# Floats per gathered block when distances are summed from differences.
_CPU_GATHER, _CUDA_GATHER = 1 << 20, 1 << 25


class Index(Protocol):
    """Finds neighbours; does not own the rows."""

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances float32 `[Q, k]`, ascending, and row numbers int64 `[Q, k]`; see
        `MemoryBank.search`.
        """


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

    def mask_out(self, product: torch.Tensor, queries: slice, rows: slice) -> None:
        """Write infinity into `product` `[q, r]` where a query must not find a row."""
        own = self.rows[rows]
        if self.queries.ndim == 0:
            product.masked_fill_((own == self.queries)[None], torch.inf)
        else:
            product.masked_fill_(self.queries[queries, None] == own, torch.inf)


@dataclass(frozen=True)
class Nearby:
    """A search among rows near a query's place: others are left out, and those that `excluded` leaves out.

    `rows` int64 `[M, 2]`, the place of every row, ascending; `queries` int64 `[Q, 2]`, and `radii` int64
    `[Q]`, by which they may differ in each number; all on the device of the search.
    """

    rows: torch.Tensor
    queries: torch.Tensor
    radii: torch.Tensor
    excluded: Excluded | None = None

    def part(self, which: npt.NDArray[np.intp]) -> Nearby:
        """For some of the queries."""
        places = torch.from_numpy(which).to(self.rows.device)
        excluded = None if self.excluded is None else self.excluded.part(which)
        return Nearby(self.rows, self.queries[places], self.radii[places], excluded)

    def mask_out(self, product: torch.Tensor, queries: slice, rows: slice) -> None:
        """Write infinity into `product` `[q, r]` where a query must not find a row."""
        low = self.queries[queries] - self.radii[queries, None]
        high = self.queries[queries] + self.radii[queries, None]
        for axis in (0, 1):
            own = self.rows[rows, axis]
            product.masked_fill_((own < low[:, axis, None]).logical_or_(own > high[:, axis, None]), torch.inf)
        if self.excluded is not None:
            self.excluded.mask_out(product, queries, rows)


def left_out_of(excluded: Excluded | Nearby | None, count: int) -> dict[str, torch.Tensor]:
    """The conditions of the kernels' searches for `count` queries: arguments of `nearest_rows`."""
    near = excluded if isinstance(excluded, Nearby) else None
    images = excluded if near is None else near.excluded
    conditions: dict[str, torch.Tensor] = {}
    if isinstance(images, Excluded):
        own = images.queries.expand(count).contiguous()
        conditions |= {"row_images": images.rows.contiguous(), "query_images": own}
    if near is not None:
        conditions |= {"row_places": near.rows, "query_places": near.queries, "query_radii": near.radii}
    return conditions


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
            difference = rows.index_select(0, indices[a : a + step, j]).float().sub_(queries[a : a + step])
            out[a : a + step, j] = difference.square_().sum(1)
    return out


def sort_by_distance(
    queries: torch.Tensor, rows: torch.Tensor, indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """True distances of the rows found, and the rows, nearest first; the lower row among equals."""
    if indices.shape[1] == 1:
        return true_distances(queries, rows, indices), indices
    indices = indices.sort(dim=1).values
    distances, order = true_distances(queries, rows, indices).sort(dim=1, stable=True)
    return distances, indices.gather(1, order)
