"""How well a memory bank covers rows: measured in a second pass over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ensemblead.memory.projection import Space
from ensemblead.search.exact import ExactIndex

_SHARES = (0.5, 0.9, 0.99, 0.999)
# Distances are counted by their exponent and the first 11 bits of their fraction.
_SHIFT = 12


@dataclass(frozen=True)
class Coverage:
    """How far rows lie from a memory bank, in the space of the selection.

    Attributes:
        radius: the largest distance from a row to its nearest bank row.
        quantiles: share of the rows -> distance within which so many lie, to a relative 5e-4.
        certificate: no bank of as many rows has a covering radius less than `radius` divided by it, if the
            rows are all that the bank learned from; 1 where `radius` is 0; None where no bound is known (a
            bank of an earlier version, or extended since).
        num_rows: rows that were measured.
    """

    radius: float
    quantiles: dict[float, float]
    certificate: float | None
    num_rows: int


class CoverageMeasure:
    """Adds up the distances of rows, batch by batch, in constant memory.

    Args:
        rows: the bank's, float32 or float16 `[M, D]`.
        labels: theirs, as in `Buffer`.
        space: of the selection.
        separation: see `BankState`.
    """

    def __init__(self, rows: torch.Tensor, labels: torch.Tensor, space: Space, separation: float) -> None:
        self._space = space
        self._index = ExactIndex(space.of([rows], [labels], rows.device))
        self._separation = separation
        self._counts = np.zeros(1 << (31 - _SHIFT), dtype=np.int64)
        self._largest = 0.0

    def add(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        """Rows float32 `[n, D]`, on the device of the bank, and their labels."""
        squared, _ = self._index.search(self._space.of([rows], [labels], rows.device), 1, None)
        distances = squared[:, 0].clamp_min(0).sqrt().cpu().numpy()
        self._counts += np.bincount(distances.view(np.int32) >> _SHIFT, minlength=len(self._counts))
        self._largest = max(self._largest, float(distances.max(initial=0.0)))

    def coverage(self) -> Coverage:
        """Of all rows added; ValueError where there were none."""
        cumulated = np.cumsum(self._counts)
        total = int(cumulated[-1])
        if total == 0:
            raise ValueError("there are no rows to measure the coverage of")
        places = np.searchsorted(cumulated, np.ceil(np.array(_SHARES) * total), side="left")
        # The upper end of the bin, which no row in it is beyond.
        ends = ((places + 1).astype(np.int32) << _SHIFT).view(np.float32)
        quantiles = {
            share: 0.0 if place == 0 else min(float(end), self._largest)
            for share, place, end in zip(_SHARES, places, ends, strict=True)
        }
        certificate: float | None = None
        if self._largest == 0:
            certificate = 1.0
        elif self._separation > 0:
            certificate = 2 * self._largest / self._separation
        return Coverage(self._largest, quantiles, certificate, total)
