"""Exact nearest rows by matrix products: products order the rows, bounds on their rounding say which order is
certain, and differences settle the rest.

With rows p and queries x about one point, |x - p|^2 orders rows as |p|^2 - 2 x.p does. In float32 that value
is off by at most `_error`. A query is certain where the gap behind its k-th row is more than twice that. Else
the rows that come next are compared by differences, and where even they may not be all, products in float64
say which rows are to be compared. docs/design/search.md has the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.precision import exact_products
from ensemblead.kernels.nearest import nearest_by_products
from ensemblead.search.neighbors import Excluded, Nearby, left_out_of, sort_by_distance, true_distances

# Queries and rows of a product on a GPU: it takes 128 MiB, which is enough to keep one busy.
_QUERY_TILE, _ROW_TILE = 8192, 4096
# Rows that are compared beyond the k nearest, where products leave the order open. On a GPU they always are,
# so that nothing waits to learn whether they need be.
_SPARE = 8
# Columns of which the smallest is found first, and how many columns are found one by one.
_BLOCK, _FEW = 64, 12
# Values of a block of float64 products, and rows that are taken in float64 at once.
_SETTLED, _AT_ONCE = 1 << 22, 8192
# Rows that are looked at to see whether rows lie so far apart that float32 tells them from each other, and
# how many times the error that must be.
_PROBED, _CLEAR = 256, 256.0


class ProductSearch:
    """Searches rows float32 or float16 `[M, D]` on their device. Everything is made when the first search
    needs it.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows.contiguous()  # once, and not at every search

    @cached_property
    def mean(self) -> torch.Tensor:
        """The point that rows and queries are taken relative to; it keeps rounding small."""
        total = torch.zeros(self.rows.shape[1], dtype=torch.float64, device=self.rows.device)
        for a in range(0, len(self.rows), _AT_ONCE):
            total += self.rows[a : a + _AT_ONCE].double().sum(0)
        return (total / len(self.rows)).float()

    @cached_property
    def _norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared norms of the rows about the mean, float32 `[M]`, and the largest norm, float64 `[]`."""
        mean = self.mean.double()
        starts = range(0, len(self.rows), _AT_ONCE)
        blocks = (self.rows[a : a + _AT_ONCE].double() - mean for a in starts)
        squares = torch.cat([block.square().sum(1) for block in blocks])
        return squares.float(), squares.max().sqrt()

    def _error(self, lengths: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A bound on how far products in `dtype` are off, for queries of these lengths about the mean."""
        dims, reach = self.rows.shape[1], self._norms[1]
        unit = torch.finfo(dtype).eps
        lengths = lengths.double()
        # A sum of `dims` products, the sum with the norm, and the rounding of what is taken off the mean.
        squares = (lengths + reach).square()
        error = 1.01 * ((dims + 8) * lengths * reach + 2.0 * squares) * unit + dims * torch.finfo(dtype).tiny
        return torch.where(squares < 0.01 * torch.finfo(dtype).max, error, torch.inf)

    @cached_property
    def is_separated(self) -> bool:
        """Whether rows lie so far apart that float32 tells them from each other.

        Then the spare rows hold all that a query leaves open, and a GPU need not be waited for to see it.
        """
        if len(self.rows) == 1:
            return True
        step = max(1, len(self.rows) // _PROBED)
        numbers = torch.arange(len(self.rows), device=self.rows.device)
        probed = numbers[::step].cpu().numpy()
        nearest = self._settled(self.rows[::step].float(), 1, Excluded.of(numbers, probed))[0].min()
        error = self._error(self._norms[1], torch.float32)
        return bool(nearest.double() > _CLEAR * error)

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | Nearby | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Index.search`."""
        if queries.is_cuda:
            return self._compared(queries, k, excluded, wait=not self.is_separated)
        values, places = self._ordered(queries, min(k + 1, len(self.rows)), excluded)
        distances, found = sort_by_distance(queries, self.rows, places[:, :k])
        which = np.flatnonzero(self._unclear(queries, values, k, k).numpy())
        self._replace(queries, k, excluded, which, (distances, found), self._compared)
        return distances, found

    def _unclear(self, queries: torch.Tensor, values: torch.Tensor, k: int, compared: int) -> torch.Tensor:
        """Whether rows beyond the first `compared`, whose differences are known, may be among the k nearest:
        bool `[Q]`. The last of `values` is that of the first such row, or of one before it.
        """
        error = self._error(torch.linalg.vector_norm(queries - self.mean, dim=1), torch.float32)
        if compared == len(self.rows):
            return ~(torch.isfinite(error) & torch.isfinite(values[:, k - 1]))
        gap = values[:, -1].double() - values[:, k - 1].double()
        # Not "<=": NaN is never clear.
        return ~(gap > 2.0 * error)

    def _compared(
        self, queries: torch.Tensor, k: int, excluded: Excluded | Nearby | None, wait: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest, by differences to the rows that products put first; where those may not be all,
        settled, if the device may be waited for.
        """
        count = min(len(self.rows), k + _SPARE)
        values, places = self._ordered(queries, count, excluded)
        distances, found = self._among(queries, places, values, k)
        if wait:
            which = np.flatnonzero(self._unclear(queries, values, k, count).cpu().numpy())
            self._replace(queries, k, excluded, which, (distances, found), self._settled)
        return distances, found

    def _replace(
        self,
        queries: torch.Tensor,
        k: int,
        excluded: Excluded | Nearby | None,
        which: npt.NDArray[np.intp],
        out: tuple[torch.Tensor, torch.Tensor],
        search: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Put what another search finds for some of the queries into `out`."""
        if len(which):
            rest = None if excluded is None else excluded.part(which)
            places = torch.from_numpy(which).to(queries.device)
            for whole, part in zip(out, search(queries[places], k, rest), strict=True):
                whole[places] = part

    def _among(
        self, queries: torch.Tensor, places: torch.Tensor, values: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest among the candidates `places` `[q, c]`, by differences."""
        places, order = places.sort(dim=1)
        left_out = torch.isposinf(values.gather(1, order))
        distances = true_distances(queries, self.rows, places).masked_fill_(left_out, torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        return distances[:, :k].contiguous(), places.gather(1, order[:, :k])

    def _ordered(
        self, queries: torch.Tensor, count: int, excluded: Excluded | Nearby | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `count` smallest products of every query and their rows, `[Q, count]`; infinity for rows that
        are left out.
        """
        if not queries.is_cuda:
            left_out = left_out_of(excluded, len(queries))
            values, places = nearest_by_products(
                queries.contiguous(), self.rows, self.mean, self._norms[0], count, **left_out
            )
            return values, places.clamp_(min=0)
        return self._by_tiles(queries, count, excluded)

    def _by_tiles(
        self, queries: torch.Tensor, count: int, excluded: Excluded | Nearby | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`_ordered` by torch's matrix products, for a GPU."""
        best = torch.full((len(queries), count), torch.inf, device=queries.device)
        found = torch.zeros((len(queries), count), dtype=torch.int64, device=queries.device)
        centred = queries - self.mean
        with exact_products():
            # Rows outside, queries inside: a tile of rows is centred once.
            for r in range(0, len(self.rows), _ROW_TILE):
                tile = slice(r, r + _ROW_TILE)
                rows, norms = _padded(self.rows[tile] - self.mean, self._norms[0][tile])
                for q in range(0, len(centred), _QUERY_TILE):
                    part = slice(q, q + _QUERY_TILE)
                    product = torch.addmm(norms, centred[part], rows.T, alpha=-2.0)
                    if excluded is not None:
                        excluded.mask_out(product[:, : len(self.rows[tile])], part, tile)
                    values, columns = _smallest(product, count)
                    # Columns that were added to fill a block stand for no row.
                    _merge(best[part], found[part], values, columns.clamp_(max=len(self.rows[tile]) - 1), r)
        return best, found

    def _settled(
        self, queries: torch.Tensor, k: int, excluded: Excluded | Nearby | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k nearest rows by differences, among all that float64 products do not rule out. Infinity and -1
        where fewer are left in.
        """
        distances = torch.empty((len(queries), k), dtype=torch.float32, device=queries.device)
        found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
        step = max(1, _SETTLED // len(self.rows))
        for a in range(0, len(queries), step):
            part = slice(a, a + step)
            some = queries[part].double()
            open_ = self._open(some, k, excluded, part)
            values = torch.full(open_.shape, torch.inf, dtype=torch.float64, device=queries.device)
            values[open_] = self._differences(some, *open_.nonzero(as_tuple=True))
            values, order = values.sort(dim=1, stable=True)
            distances[part] = values[:, :k]
            found[part] = order[:, :k].masked_fill(torch.isposinf(values[:, :k]), -1)
            strange = ~torch.isfinite(some).all(1)
            # A query that is not finite gets what arithmetic gives.
            distances[part][strange] = some[strange].sum(1, keepdim=True).square().float()
            found[part][strange] = order[:, :k][strange]
        return distances, found

    def _open(
        self, queries: torch.Tensor, k: int, excluded: Excluded | Nearby | None, part: slice
    ) -> torch.Tensor:
        """The rows that may be among the k nearest of these queries float64 `[q, D]`, by products: bool
        `[q, M]`.
        """
        mean = self.mean.double()
        centred = queries - mean
        products = torch.empty((len(queries), len(self.rows)), dtype=torch.float64, device=queries.device)
        for r in range(0, len(self.rows), _ROW_TILE):
            tile = slice(r, r + _ROW_TILE)
            rows = self.rows[tile].double() - mean
            torch.addmm(rows.square().sum(1), centred, rows.T, alpha=-2.0, out=products[:, tile])
            if excluded is not None:
                excluded.mask_out(products[:, tile], part, tile)
        last = products.topk(k, dim=1, largest=False).values[:, -1]
        limit = last + 2.0 * self._error(torch.linalg.vector_norm(centred, dim=1), torch.float64)
        return (products <= limit[:, None]) & torch.isfinite(products)

    def _differences(
        self, queries: torch.Tensor, numbers: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Squared distances of the queries float64 `[q, D]` with these numbers to the rows `places`."""
        step = max(1, _SETTLED // self.rows.shape[1])
        parts = [
            (self.rows[places[a : a + step]].double() - queries[numbers[a : a + step]]).square().sum(1)
            for a in range(0, len(places), step)
        ]
        return torch.cat(parts) if parts else queries.new_empty(0)


def _padded(rows: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows up to a whole number of blocks; those added have products of infinity."""
    lacking = -len(rows) % _BLOCK
    if lacking == 0:
        return rows, norms
    rows = torch.nn.functional.pad(rows, (0, 0, 0, lacking))
    return rows, torch.nn.functional.pad(norms, (0, lacking), value=torch.inf)


def _smallest(product: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` smallest values of every row of `product` `[q, r]` and their columns; `product` is spoilt.

    A few are found one after the other: the smallest of every block of columns, the smallest block, its
    column. That reads the product once.
    """
    if count > _FEW:
        top = product.topk(min(count, product.shape[1]), dim=1, largest=False)
        return top.values, top.indices
    blocks = product.view(len(product), -1, _BLOCK)
    smallest = blocks.amin(2)
    values: list[torch.Tensor] = []
    columns: list[torch.Tensor] = []
    for _ in range(count):
        block = smallest.argmin(1, keepdim=True)
        inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0]
        value, place = inside.min(1, keepdim=True)
        values.append(value)
        columns.append(block * _BLOCK + place)
        if len(values) < count:
            product.scatter_(1, columns[-1], torch.inf)
            smallest.scatter_(1, block, inside.scatter_(1, place, torch.inf).amin(1, keepdim=True))
    return torch.cat(values, 1), torch.cat(columns, 1)


def _merge(
    best: torch.Tensor, found: torch.Tensor, values: torch.Tensor, columns: torch.Tensor, first_row: int
) -> None:
    """Put the smallest of `values` and of `best` into `best`, and their rows into `found`, `[q, count]`."""
    if first_row == 0 and values.shape == best.shape:
        best.copy_(values)
        found.copy_(columns)
        return
    values, order = torch.cat([best, values], 1).topk(best.shape[1], dim=1, largest=False)
    best.copy_(values)
    found.copy_(torch.cat([found, columns + first_row], 1).gather(1, order))
