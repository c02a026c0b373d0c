"""Merge and reduce: every group of rows keeps some of itself, and where these become many, some of them.

The composable k-center of Malkomes et al. (2015): the rule of Gonzalez (1985) on any part of the rows gives k
of them that cover the part within twice the least radius with which any k points cover all rows. The radii
of selections that follow each other add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemblead.memory.buffer import Buffer, take
from ensemblead.memory.projection import Space
from ensemblead.memory.selection import ROUNDING, farthest_first


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows that stand for others.

    Attributes:
        rows: float32 `[n, D]`, on the device of the bank.
        labels: as in `Buffer`.
        slack: none of the others lies farther than this from one of these, in the projected space.
        level: how many selections they have passed.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    slack: float = 0.0
    level: int = 0

    def __len__(self) -> int:
        return len(self.rows)


class Groups:
    """What groups of rows have kept.

    Attributes:
        count: how many groups there were.
        kept: what is left of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Kept] = []
        self._spread: list[tuple[int, float]] = []  # of selections: how many rows, at what distance

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.kept))

    def keep(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        """A group that was reduced already."""
        self.count += 1
        if len(rows):
            self.kept.append(Kept(rows, labels))

    def reduce(self, group: Buffer, size: int, space: Space, seed: int, home: torch.device) -> None:
        """Keep at most `size` rows of a group."""
        self.kept.append(self._selected(group.chunks, group.labels, size, space, seed, home))
        self.count += 1

    def merge(self, size: int, capacity: int, space: Space, seed: int, home: torch.device) -> None:
        """Select again, `size` rows at a time, until no more than `capacity` rows are left.

        Sets that have passed as few selections as possible are merged, all that have passed as many, so that
        few follow each other: with room for F sets, L do for nearly (F + L + 1 choose L + 1) groups.
        """
        while self.num_rows > capacity and len(self.kept) > 1:
            levels = sorted(one.level for one in self.kept)
            alike = [level for level in levels if levels.count(level) > 1]
            chosen = {alike[0]} if alike else set(levels[:2])
            merged = [one for one in self.kept if one.level in chosen]
            left = [one for one in self.kept if one.level not in chosen]
            fewer = self._selected(
                [one.rows for one in merged],
                [one.labels for one in merged],
                size,
                space,
                seed,
                home,
                slack=max(one.slack for one in merged),
                level=max(chosen),
            )
            self.kept = [*left, fewer]

    def slacks(self, device: torch.device) -> torch.Tensor:
        """That of every row kept, float32 `[n]`."""
        parts = [torch.full((len(one),), one.slack, dtype=torch.float32) for one in self.kept]
        return torch.cat(parts).to(device)

    def separation(self, size: int) -> float:
        """The largest distance at which more than `size` rows were found to lie from each other."""
        return max((distance for count, distance in self._spread if count >= size), default=0.0)

    def _selected(
        self,
        chunks: list[torch.Tensor],
        labels: list[torch.Tensor],
        size: int,
        space: Space,
        seed: int,
        home: torch.device,
        slack: float = 0.0,
        level: int = 0,
    ) -> Kept:
        projected = space.of(chunks, labels, home)
        picks, reach = farthest_first(projected, size, seed + self.count)
        if reach > 0:
            self._spread.append((len(picks), reach * (1 - 2 * ROUNDING)))
        rows, own = take(chunks, picks, home), torch.cat(labels)[torch.from_numpy(picks)]
        return Kept(rows, own, slack + reach, level + (len(picks) < len(projected)))
