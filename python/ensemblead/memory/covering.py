"""Rows that cover others: how they are selected among them, and what is known of the distance to the rest."""

from __future__ import annotations

from typing import Any

import torch

from ensemblead.memory.buffer import take
from ensemblead.memory.intake import Intake
from ensemblead.memory.places import Numbers, in_order
from ensemblead.memory.searched import SearchedRows
from ensemblead.memory.selection import ROUNDING, Progress, select_above_noise
from ensemblead.memory.state import BankState, check_half
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import FaissIndex
from ensemblead.search.plan import flat_index, make_index


class CoveringRows(SearchedRows):
    """A memory bank's rows, selected so that all others lie near them; `MemoryBank` has the attributes."""

    index: str
    seed: int
    dtype: str
    _intake: Intake

    def __init__(self, num_neighbors: int, position_radius: int | None = None) -> None:
        super().__init__(num_neighbors, position_radius)
        self.radius_ = 0.0
        self.certificate_: float | None = None
        self._reach = 0.0  # see `BankState`

    def state(self) -> BankState:
        """See `MemoryBank`."""
        raise NotImplementedError

    def _set(self, rows: torch.Tensor, labels: Numbers, search: ExactIndex | FaissIndex) -> None:
        if self.dtype == "float16":
            check_half("dtype (bank_dtype of a detector)", rows)  # before they are the bank's
        super()._set(rows, labels, search)

    def _select(
        self,
        chunks: list[torch.Tensor],
        labels: list[torch.Tensor],
        size: int,
        floor: float,
        progress: Progress | None,
        *,
        slack: torch.Tensor | None = None,
        start_indices: Any = None,
    ) -> None:
        """Make the bank of at most `size` of these rows: all that were added, or, with a `slack`, rows within
        which distance, one for all or float32 `[N]`, the others lie.
        """
        home = chunks[0].device if self._rows is not None else self._intake.home
        projected = self._intake.space.of(chunks, labels, home)
        how = {"start_indices": start_indices} if slack is None else {"start": "row"}
        size = min(size, len(projected))
        selected = select_above_noise(projected, size, floor, progress, seed=self.seed, **how)
        given = torch.cat(labels)
        own = given.numpy()[selected.picks]
        own[:, 0] = selected.images(given[:, 0], floor)
        rows, own = in_order(take(chunks, selected.picks, home), own)
        if slack is None:
            bound = selected.reach
            separation = selected.separation(projected) if bound > floor else 0.0
        else:
            bound = float((selected.distances + slack).max()) * (1 + ROUNDING)
            separation = selected.reach * (1 - ROUNDING)
        self._set(rows, own, make_index(self.index, rows, self.seed))
        self.radius_, self._reach = max(bound, floor), max(selected.reach, floor, self._reach)
        self.certificate_, self._separation = None, 0.0
        if bound <= floor:
            self.certificate_ = 1.0  # what is beyond the bank is rounding
        else:
            self._bound_from(separation)

    def _round(self) -> None:
        """Keep the rows in half precision, where they are to be."""
        if self.dtype == "float16":
            state = self.state().for_half()
            self.radius_, self.certificate_ = state.radius, state.certificate
            self._reach = self._reach if state.reach is None else state.reach
            rows = state.rows.half()
            self._set(rows, self._labels.numpy(), flat_index(rows))

    def _bound_from(self, separation: float) -> None:
        """Know of more rows than the bank has that they lie so far apart."""
        if separation > self._separation and self.certificate_ != 1.0:
            self._separation, self.certificate_ = separation, 2 * self.radius_ / separation
