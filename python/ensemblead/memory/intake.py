"""Rows on their way into a memory bank: held at once where they fit the budget, else group by group."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from ensemblead.common.memory import return_free_memory
from ensemblead.memory.budget import Budget
from ensemblead.memory.buffer import AddedRows, Buffer, take
from ensemblead.memory.groups import Groups
from ensemblead.memory.places import BLOCK_DIMS, Blocks
from ensemblead.memory.projection import Space, make_projection
from ensemblead.memory.selection import select

# How much a group of rows keeps of itself, as a multiple of the coreset's fraction, where it is not known how
# many rows will come.
_OVERSAMPLING = 2.0
# A row at the radius itself must not enter for the last bit of its distance.
_AT_RADIUS = 1 + 2e-6
# The share of the budget that is taken at once of rows that extend a bank.
_EXTENDING_SHARE = 1 / 4


@dataclass(frozen=True)
class Sizes:
    """How many rows a bank keeps, in which memory."""

    fraction: float
    size: int | None
    memory_budget: int
    projection_dim: int | None
    seed: int
    position_radius: int | None = None

    def of(self, num_rows: int) -> int:
        """Rows of a bank of so many."""
        return max(1, int(num_rows * self.fraction)) if self.size is None else min(self.size, num_rows)

    def budget(self, dims: int) -> Budget:
        beside = 0 if self.position_radius is None else BLOCK_DIMS
        return Budget(self.memory_budget, dims, min(dims, self.projection_dim or dims) + beside)

    def blocks(self, scale: float = 0.0) -> Blocks | None:
        """Squares whose cells lie within the radius of each other; None where places do not matter."""
        return None if self.position_radius is None else Blocks(self.position_radius + 1, scale)


@dataclass(frozen=True)
class Known:
    """A bank that is extended: its rows with their labels, and the distance from them beyond which others
    enter.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    radius: float


class Intake:
    """Rows added since the last `fit` or `extend` of a bank.

    Attributes:
        buffer: those held; the others have left by groups.
        groups: what is left of these.
        projection: float32 `[d, D]` that groups were selected by, or the bank's.
        blocks: of the places, or None.
    """

    def __init__(self, sizes: Sizes, home: torch.device | None = None, scale: float = 0.0) -> None:
        self.buffer, self.groups = AddedRows(home), Groups()
        self.blocks = sizes.blocks(scale)
        self.projection: torch.Tensor | None = None
        self.num_rows = 0
        self._sizes = sizes
        self._expected, self._beside = 0, 0

    @property
    def home(self) -> torch.device:
        """The device of the rows."""
        assert self.buffer.home is not None, "rows were added"
        return self.buffer.home

    @property
    def space(self) -> Space:
        """Where the selection measures distances."""
        return Space(self.projection, self.blocks)

    @property
    def size(self) -> int:
        """How many rows the bank will have at most."""
        return self._sizes.of(self.num_rows)

    @property
    def dims(self) -> int | None:
        chunks = self.buffer.chunks + [one.rows for one in self.groups.kept]
        return int(chunks[0].shape[1]) if chunks else None

    def expect(self, num_rows: int, dims: int, beside: int, *, extending: bool) -> None:
        """See `MemoryBank.expect`."""
        if self.num_rows:
            raise ValueError("rows were added already: expect comes before them")
        if not extending:
            self._sizes.budget(dims).check(num_rows, self._sizes.of(num_rows), beside)
        self._expected, self._beside = num_rows, beside

    def add(
        self, rows: torch.Tensor, labels: torch.Tensor, squares: torch.Tensor, known: Known | None
    ) -> None:
        """Take rows, whose sum of squares is `squares`; `known` is the bank that they extend."""
        if self.buffer.num_rows and self._outgrown(self.buffer.num_rows + len(rows), rows.shape[1], known):
            self.leave(known, more=True)
        self.buffer.add(rows, labels, squares, self._sizes.memory_budget)
        self.num_rows += len(rows)

    def leave_out(self, images: Collection[int]) -> None:
        """Let the buffered rows of these images go."""
        before = self.buffer.num_rows
        self.buffer.leave_out(images)
        self.num_rows -= before - self.buffer.num_rows

    def leave(self, known: Known | None, *, more: bool = False) -> None:
        """Take the buffered rows group by group; `more`: others will come.

        Rows leave with their group: after a failure those of the groups left are still in the buffer.
        """
        if not self.buffer.num_rows:
            return
        dims = self.buffer.chunks[0].shape[1]
        if self.groups.count == 0 and known is None:
            self.projection = self.drawn_projection(dims, None)
        groups = self.buffer.groups(self._most(dims, known))
        try:
            while groups:
                if known is None:
                    self._reduce(groups[0])
                else:
                    self._keep_new(groups[0], known)
                groups.pop(0)
                return_free_memory()
                if known is None and (groups or more):
                    self._merge(dims)
                    return_free_memory()
        finally:
            for group in groups:
                for rows, labels in zip(group.chunks, group.labels, strict=True):
                    self.buffer.append(rows, labels)

    def drawn_projection(self, dims: int, given: Any) -> torch.Tensor | None:
        """The map given, or one by the seed, on the device of the rows."""
        mapping = make_projection(given, dims, self._sizes.projection_dim, self._sizes.seed)
        return None if mapping is None else mapping.to(self.home)

    @property
    def _knows_size(self) -> bool:
        return self._sizes.size is not None or self._expected > 0

    @property
    def _final_size(self) -> int:
        """Of the bank, if as many rows come as were expected."""
        return self._sizes.size or self._sizes.of(max(self._expected, self.num_rows))

    def _reduce(self, group: Buffer) -> None:
        size = self._final_size
        if not self._knows_size:
            size = max(1, int(group.num_rows * min(1.0, _OVERSAMPLING * self._sizes.fraction)))
        self.groups.reduce(group, size, self.space, self._sizes.seed, self.home)

    def _merge(self, dims: int) -> None:
        if self._knows_size:
            size = self._final_size
            room = self._sizes.budget(dims).waiting(size, self._beside)
            self.groups.merge(size, room, self.space, self._sizes.seed, self.home)

    def _most(self, dims: int, known: Known | None) -> int:
        """Rows of one group."""
        budget = self._sizes.budget(dims)
        if known is None:
            return budget.group(self._final_size if self._knows_size else 0, self._beside)
        return max(1, int(budget.total * _EXTENDING_SHARE) // budget.row)

    def _outgrown(self, num_rows: int, dims: int, known: Known | None) -> bool:
        """Whether so many rows are more than may be held."""
        budget = self._sizes.budget(dims)
        if self.groups.count:
            return num_rows > self._most(dims, known)
        coming = max(num_rows, self._expected)
        size = self._sizes.of(coming) if known is None else 0
        return not budget.fits(coming, size) and num_rows > self._most(dims, known)

    def _keep_new(self, group: Buffer, known: Known) -> None:
        """Of a group keep what lies beyond the radius of the bank and of what was kept before."""
        before = [known.rows, *(one.rows for one in self.groups.kept)]
        labels = [known.labels, *(one.labels for one in self.groups.kept)]
        bank = self.space.of(before, labels, self.home)
        projected = self.space.of(group.chunks, group.labels, self.home)
        picks = select(projected, size=len(projected), radius=known.radius * _AT_RADIUS, bank=bank)
        own = torch.cat(group.labels)[torch.from_numpy(picks)]
        self.groups.keep(take(group.chunks, picks, self.home), own)
