"""Exact nearest neighbours in squared L2 distance, on any device.

On a CPU the core's pruned search finds few of them; products over all dimensions find many (`products.py`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from ensemblead.kernels.nearest import SketchedRows, nearest_rows
from ensemblead.search.directions import principal_directions
from ensemblead.search.neighbors import Excluded, Nearby, left_out_of
from ensemblead.search.products import ProductSearch

# Neighbours up to which the pruned search is the faster one: it keeps them sorted one by one.
_FEW_NEIGHBORS = 32


class ExactIndex:
    """Finds what comparing every row by differences finds, the lower row among equals.

    Args:
        rows: float32 or float16 `[M, D]`, finite. Distances are those of the rows as they are, in float32.
        products: searches by products in place of all that is chosen here, which is the core on a CPU and
            torch on a GPU.
    """

    def __init__(self, rows: torch.Tensor, products: ProductSearch | None = None) -> None:
        self._rows = rows
        self._by_core = products is None and not rows.is_cuda
        self.products = ProductSearch(rows) if products is None else products

    @cached_property
    def _sketched(self) -> SketchedRows | None:
        """Rows prepared for the core; None where it does not search, and for rows that it does not serve.
        They depend on the rows alone, not on the number of queries. They are made at the first search, which
        many indexes never see.
        """
        found = principal_directions(self._rows) if self._by_core else None
        return None if found is None else SketchedRows.of(self._rows.contiguous(), *found)

    def search(
        self, queries: torch.Tensor, k: int, excluded: Excluded | Nearby | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Index.search`.

        Raises ValueError where squared distances of finite queries are beyond float32. A GPU is not waited
        for to see it: they are infinite there.
        """
        if k <= _FEW_NEIGHBORS and self._sketched is not None:
            left_out = left_out_of(excluded, len(queries))
            distances, found = nearest_rows(queries.contiguous(), self._sketched, k, **left_out)
        else:
            distances, found = self.products.search(queries, k, excluded)
        if not distances.is_cuda:
            _refuse_overflow(queries, distances, found)
        return distances, found


def _refuse_overflow(queries: torch.Tensor, distances: torch.Tensor, found: torch.Tensor) -> None:
    if not np.isinf(distances.numpy()).any():
        return
    beyond = (torch.isposinf(distances) & (found >= 0)).any(1).numpy()
    if beyond.any() and torch.isfinite(queries[beyond]).all(1).numpy().any():
        raise ValueError(
            "queries lie so far from the rows that squared distances are beyond float32 (3.4e38); "
            f"the largest value of a query is {float(queries[beyond].abs().max()):.3g}"
        )
