"""usearch: a navigable graph in half precision, the second engine of approximate search. The only file that
imports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.extras import require


class UsearchCandidates:
    """A graph of usearch that says which rows of length 1 may be the most similar ones.

    usearch leaves no rows out of a search: more are found, and those that may not be are dropped. See
    `FaissCandidates` for the members.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def empty(cls, dims: int) -> UsearchCandidates:
        """A graph without rows."""
        return cls(_library().Index(ndim=dims, metric="ip", dtype="f16", enable_key_lookups=False))

    @classmethod
    def read(cls, shape: tuple[int, int], data: bytes) -> UsearchCandidates:
        """What `write` gave, over rows of that shape; DamagedModelError for anything else."""
        library = _library()
        try:
            index = library.Index.restore(data)
        except (RuntimeError, ValueError) as error:
            raise DamagedModelError(f"the usearch index cannot be read: {error}") from error
        found = (index.size, index.ndim)
        if found != shape or index.metric_kind != library.MetricKind.IP:
            raise DamagedModelError(
                f"the usearch index is of {found[0]} rows of {found[1]} dimensions by {index.metric_kind}; "
                f"products over {shape} were expected"
            )
        return cls(index)

    @property
    def count(self) -> int:
        """How many rows it holds."""
        return int(self._index.size)

    def write(self, take: Callable[[bytes], object]) -> None:
        """Give the graph to `take`, as `read` has it."""
        take(self._index.save())

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """More rows `[B, D]`."""
        numbers = np.arange(self.count, self.count + len(rows), dtype=np.uint64)
        self._index.add(numbers, rows, threads=torch.get_num_threads())

    def search(
        self, queries: npt.NDArray[np.float32], count: int, allowed: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.int64]:
        """Up to `count` rows per query, `[Q, count]`, -1 where it finds no more."""
        more = 0 if allowed is None else int(count * (1 - allowed.mean()) / max(allowed.mean(), 0.1)) + 16
        wanted = min(self._index.size, count + more)
        matches = self._index.search(queries, wanted, threads=torch.get_num_threads())
        rows = np.atleast_2d(matches.keys).astype(np.int64)
        counts = np.atleast_1d(matches.counts) if len(queries) > 1 else np.array([rows.shape[1]])
        found = np.full((len(queries), max(count, wanted)), -1, dtype=np.int64)
        for row, keys, number in zip(found, rows, counts, strict=True):
            keys = keys[:number] if allowed is None else keys[:number][allowed[keys[:number]]]
            row[: len(keys)] = keys
        return found[:, :count]


def _library() -> Any:
    require("usearch", 'an image index of kind "usearch"')
    return importlib.import_module("usearch.index")
