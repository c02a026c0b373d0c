"""The items of a retrieval experiment: their embeddings, labels, groups and names, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ensemblead.common.validation import some_of
from ensemblead.metrics.inputs import as_floats, as_numpy

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """N items, each of which is the query once: class numbers, group numbers and names."""

    classes: Ints
    groups: Ints | None
    names: tuple[Any, ...]

    @classmethod
    def of(cls, labels: Any, groups: Any = None, ids: Sequence[Any] | None = None) -> Items:
        """
        Raises:
            ValueError: not 1-D, labels of one class, groups or ids of another number, ids that occur twice.
            TypeError: labels or groups that are neither integers nor strings.
        """
        classes = _numbered(labels, "labels")
        if classes.size == 0 or classes.max() == 0:
            raise ValueError(f"labels must hold at least two classes, got {len(np.unique(classes))}")
        numbers = None if groups is None else _numbered(groups, "groups")
        if numbers is not None and numbers.size != classes.size:
            raise ValueError(f"groups must be as many as labels ({classes.size}), got {numbers.size}")
        return cls(classes, numbers, _names(ids, classes.size))

    @property
    def count(self) -> int:
        return self.classes.size

    def relevant_counts(self) -> Ints:
        """int64 `[N]`: for every item how many others are of its label and not of its group."""
        sizes = np.bincount(self.classes)
        if self.groups is None:
            return sizes[self.classes] - 1
        both = self.classes * (self.groups.max() + 1) + self.groups
        _, pairs, together = np.unique(both, return_inverse=True, return_counts=True)
        return np.asarray(sizes[self.classes] - together[pairs], np.int64)

    def searched_counts(self) -> Ints:
        """int64 `[N]`: for every item how many others can be retrieved."""
        if self.groups is None:
            return np.full(self.count, self.count - 1)
        return self.count - np.bincount(self.groups)[self.groups]

    def excluded(self, queries: Ints) -> NDArray[Any]:
        """What `weighted_top_k` leaves out for these queries, among all items."""
        if self.groups is None:
            return queries
        mask: NDArray[Any] = self.groups[queries, None] == self.groups[None]
        return mask

    def units(self, queries: Ints) -> Ints:
        """What a bootstrap draws, numbered from 0 `[Q]`: every query, or its whole group."""
        if self.groups is None:
            return np.arange(len(queries))
        return np.unique(self.groups[queries], return_inverse=True)[1]

    def told(self, positions: Any) -> str:
        """The names of the items at these positions, for errors."""
        return some_of(repr(self.names[int(position)]) for position in positions)


def checked_rows(embeddings: Any, argument: str, items: Items) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings as float32 `[N, D]`, on the device where they are, and their lengths float64 `[N]`.

    Raises:
        ValueError: another shape, values that are not finite, or zero vectors, which are named.
        TypeError: no numbers.
    """
    if isinstance(embeddings, torch.Tensor):
        rows = embeddings.detach().to(torch.float32)
    else:
        rows = torch.from_numpy(np.array(as_floats(embeddings, argument), np.float32))
    if rows.ndim != 2 or len(rows) != items.count or rows.shape[1] == 0:
        raise ValueError(
            f"{argument} must be [N, D] with N = {items.count} as labels, got shape {tuple(rows.shape)}"
        )
    lengths = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    on_host = lengths.cpu().numpy()
    if not np.isfinite(on_host).all():
        raise ValueError(
            f"{argument} must be finite, got others for {items.told(np.flatnonzero(~np.isfinite(on_host)))}"
        )
    zeros = np.flatnonzero(on_host == 0)
    if len(zeros):
        raise ValueError(f"{argument} has zero vectors, which have no direction: {items.told(zeros)}")
    return rows, lengths


def unit_rows(embeddings: Any, argument: str, items: Items) -> torch.Tensor:
    """Embeddings `[N, D]` as float32 rows of length 1; errors as `checked_rows`."""
    rows, lengths = checked_rows(embeddings, argument, items)
    return (rows.double() / lengths[:, None]).float().contiguous()


def _numbered(values: Any, name: str) -> Ints:
    """Integers or strings `[N]` as numbers from 0 in their order."""
    array = np.asarray(values) if isinstance(values, (list, tuple)) else values
    if isinstance(array, np.ndarray) and array.dtype.kind in "UO":
        kinds = {isinstance(value, str) for value in (array if array is values else values)}
        if len(kinds) > 1:  # NumPy makes "1" of 1
            raise TypeError(f"{name} must be all integers or all strings, got both")
    if not (isinstance(array, np.ndarray) and array.dtype.kind in "UO"):
        array = as_numpy(array, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must be 1-D [N], got shape {array.shape}")
    if array.dtype.kind not in "biuU" and not all(isinstance(value, (int, str)) for value in array.tolist()):
        raise TypeError(f"{name} must be integers or strings, got {array.dtype}")
    return np.asarray(
        np.unique(array.astype(str) if array.dtype.kind == "O" else array, return_inverse=True)[1]
    )


def _names(ids: Sequence[Any] | None, count: int) -> tuple[Any, ...]:
    if ids is None:
        return tuple(range(count))
    names = tuple(ids.tolist() if hasattr(ids, "tolist") else ids)
    if len(names) != count:
        raise ValueError(f"ids must be as many as labels ({count}), got {len(names)}")
    seen: set[Any] = set()
    twice = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if twice:
        raise ValueError(f"ids must all be different, got twice: {some_of(map(repr, twice))}")
    return names
