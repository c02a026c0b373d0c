"""The vectors of one commit, and how they are searched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ensemblead.retrieval.catalogue import State
from ensemblead.retrieval.structures import OVERFETCH, SMALLEST, Structure
from ensemblead.search.cosine import Floats, Numbers, Rows, most_similar, ordered_by_similarity

# Where rows of this share, or fewer, may be found, those are searched exactly.
_FEW = 1 / 50


@dataclass
class View:
    """The vectors of one commit, and what finds them."""

    state: State
    rows: Rows  # `[rows, D]`, memory-mapped
    dead: Numbers
    structure: Structure | None = None

    @cached_property
    def present(self) -> Numbers | None:
        """The rows that were not removed, ascending; None: all."""
        if not len(self.dead):
            return None
        present = np.ones(len(self.rows), dtype=bool)
        present[self.dead] = False
        return np.flatnonzero(present)

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.rows) - len(self.dead)

    def search(self, queries: Floats, top: int, numbers: Numbers | None) -> tuple[Floats, Numbers]:
        """The `top` most similar rows of every query, among `numbers` (None: all that are present)."""
        numbers = self.present if numbers is None else numbers
        available = len(self.rows) if numbers is None else len(numbers)
        top = min(top, available)
        few = max(SMALLEST, 32 * top, int(_FEW * len(self.rows)))
        if self.structure is None or available <= few or top == 0:
            return most_similar(queries, self.rows, top, numbers)
        self.structure.top_up(self.rows)
        allowed = None
        if numbers is not None:
            allowed = np.zeros(len(self.rows), dtype=bool)
            allowed[numbers] = True
        fetched = top * OVERFETCH.get(self.structure.kind, 1)
        candidates = self.structure.engine.search(queries, fetched, allowed)
        similarities, found = ordered_by_similarity(queries, self.rows, candidates)
        similarities, found = similarities[:, :top], found[:, :top]
        short = np.flatnonzero(found[:, -1] < 0)
        if len(short):
            similarities[short], found[short] = most_similar(queries[short], self.rows, top, numbers)
        return similarities, found
