"""One ranking of positives and negatives, and every metric that is read off it.

A metric of a ranking needs, for each distinct value that a *positive* takes, only how many negatives lie
above it and how many lie above or beside it. So nothing ever merges the two classes: the positives (few) are
sorted once, the negatives (many) are sorted as values without an index, and two binary searches count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemblead.metrics.inputs import Floats

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Counts at the distinct values of the positives, from the highest value to the lowest.

    All arrays end in the axis of the K values; a leading axis, where there is one, runs over bootstrap
    replicates. Counts are held as float64, exact up to 2**53.

    Attributes:
        thresholds: [K] the values, descending; "at a threshold" means score >= threshold.
        positives: [..., K] positives that have exactly this value.
        false_above: [..., K] negatives with a larger value.
        false_at: [..., K] negatives with this value or a larger one.
        total_negatives: [...] all negatives.
    """

    thresholds: Floats
    positives: Doubles
    false_above: Doubles
    false_at: Doubles
    total_negatives: Doubles

    @property
    def true_at(self) -> Doubles:
        """[..., K] positives with this value or a larger one."""
        return np.cumsum(self.positives, axis=-1)

    def ramps(self, limit: float = 1.0) -> Doubles:
        """[..., K] the area, up to false-positive rate `limit`, gained by a rise of 1 at each value.

        Where negatives share the value, the curve rises linearly over them (the trapezoid rule), and the ramp
        is cut at the limit (linear interpolation).
        """
        start = self.false_above / self.total_negatives[..., None]
        stop = self.false_at / self.total_negatives[..., None]
        inside = limit - 0.5 * (start + stop)
        width = np.where(stop > start, stop - start, 1.0)
        cut = np.clip(limit - start, 0.0, None) ** 2 / (2.0 * width)
        gained: Doubles = np.where(stop <= limit, inside, cut)
        return gained

    def area(self, weights: Doubles | None = None, limit: float = 1.0) -> Doubles:
        """[...] area under the curve that rises by `weights`, in [0, 1].

        Args:
            weights: [..., K] the rise at each value; the positives themselves (the ROC curve) if None.
            limit: The false-positive rate up to which the area is taken; the area is divided by it.
        """
        rises = self.positives if weights is None else weights
        total = rises.sum(axis=-1) * limit
        area: Doubles = np.minimum((rises * self.ramps(limit)).sum(axis=-1) / total, 1.0)
        return area

    def average_precision(self) -> Doubles:
        """[...] sum over the values of (rise in recall) * precision, as scikit-learn defines it."""
        true_at = self.true_at
        found = true_at + self.false_at
        precision = true_at / np.where(found > 0, found, 1.0)
        average: Doubles = (self.positives * precision).sum(axis=-1) / true_at[..., -1]
        return average

    def f1(self) -> Doubles:
        """[..., K] the F1 score at each threshold."""
        true_at = self.true_at
        return 2.0 * true_at / (true_at + self.false_at + true_at[..., -1:])

    def f1_max(self) -> tuple[float, float]:
        """The best F1 score over all thresholds, and the highest threshold that has it."""
        f1 = self.f1()
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.thresholds[best])


# Of a test set: over all images, over the defective ones, and the weights of components and of images [K].
Rankings: TypeAlias = tuple[Ranking, Ranking, Doubles, Doubles]
# Of one type of defect, among its own images and the good ones: its name, its weights of components [K].
TypeRanking: TypeAlias = tuple[str, Ranking, Doubles]


@dataclass
class Negatives:
    """How many negatives lie above each of K values, and at or above it; and how many there are."""

    above: Doubles
    at: Doubles
    total: float

    def __add__(self, other: Negatives) -> Negatives:
        return Negatives(self.above + other.above, self.at + other.at, self.total + other.total)

    def __getitem__(self, places: NDArray[np.integer[Any]]) -> Negatives:
        """Those of some of the values."""
        return Negatives(self.above[places], self.at[places], self.total)

    def add(self, more: Negatives) -> Negatives:
        """Add `more` to these in place, and return it."""
        self.above += more.above
        self.at += more.at
        self.total += more.total
        return more


class PositiveValues:
    """The positives, sorted once: their distinct values and sums of anything over equal values.

    Args:
        values: [P] the positives.
        order: Which of them to take, in descending order; all, sorted here, if None.
    """

    def __init__(self, values: Floats, order: NDArray[np.intp] | None = None) -> None:
        self._values = values
        self._order = np.argsort(values)[::-1] if order is None else order
        descending = values[self._order]
        is_new = np.empty(descending.size, np.bool_)
        is_new[:1] = True
        np.not_equal(descending[1:], descending[:-1], out=is_new[1:])
        self._starts = np.flatnonzero(is_new)
        self.thresholds: Floats = descending[self._starts]
        self.counts: Doubles = np.diff(self._starts, append=descending.size).astype(np.float64)

    def sums(self, weights: Doubles) -> Doubles:
        """[K] the sum of `weights` (one per positive) over the positives of each distinct value."""
        return np.add.reduceat(weights[self._order], self._starts)

    def part(self, first: int, last: int) -> tuple[PositiveValues, NDArray[np.intp]]:
        """The positives `first` to `last` (without it) by themselves, and the places of their distinct values
        among all of them: nothing is sorted again.
        """
        inside = np.flatnonzero((self._order >= first) & (self._order < last))
        part = PositiveValues(self._values, self._order[inside])
        return part, np.searchsorted(self._starts, inside[part._starts], side="right") - 1

    def count_negatives(self, sorted_runs: Iterable[Floats]) -> Negatives:
        """Negatives above, and at or above, each distinct value; and how many there are.

        Args:
            sorted_runs: Ascending arrays, each sorted by itself; one is held at a time.
        """
        above = np.zeros(self.thresholds.size)
        at = np.zeros(self.thresholds.size)
        total = 0
        for run in sorted_runs:
            if not run.size:
                continue
            below = np.searchsorted(run, self.thresholds, side="left")
            at += run.size - below
            # Where the next negative is larger, none is equal: that spares most of the second search.
            tied = np.flatnonzero(run[np.minimum(below, run.size - 1)] == self.thresholds)
            below[tied] = np.searchsorted(run, self.thresholds[tied], side="right")
            above += run.size - below
            total += run.size
        return Negatives(above, at, float(total))

    def ranking(self, negatives: Negatives) -> Ranking:
        """Of the positives among these negatives, counted at their distinct values."""
        return Ranking(
            self.thresholds, self.counts, negatives.above, negatives.at, np.asarray(negatives.total)
        )


def rank(positives: Floats, negatives: Floats) -> Ranking:
    """The ranking of two sets of scores, each of any order and at least one long."""
    values = PositiveValues(positives)
    return values.ranking(values.count_negatives([np.sort(negatives)]))


def curve_points(
    ranking: Ranking, weights: Doubles | None = None, most: int = 2000
) -> tuple[Doubles, Doubles]:
    """False-positive rates and rises of the curve from (0, 0) to (1, 1), thinned to about `most` points."""
    rises = ranking.positives if weights is None else weights
    height = np.cumsum(rises) / rises.sum()
    before = np.concatenate([[0.0], height[:-1]])
    total = float(ranking.total_negatives)
    x = np.stack([ranking.false_above / total, ranking.false_at / total], axis=1).ravel()
    y = np.stack([before, height], axis=1).ravel()
    x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])
    return _thin(x, y, most)


def precision_recall_points(ranking: Ranking, most: int = 2000) -> tuple[Doubles, Doubles]:
    """Recalls and precisions at the thresholds, thinned to about `most` points."""
    true_at = ranking.true_at
    return _thin(true_at / true_at[-1], true_at / (true_at + ranking.false_at), most)


def _thin(x: Doubles, y: Doubles, most: int) -> tuple[Doubles, Doubles]:
    """Every point if there are few; else points at about even distances along the curve, both ends kept."""
    if x.size <= most:
        return x, y
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.searchsorted(length, np.linspace(0.0, length[-1], most))
    keep = np.unique(np.concatenate([[0], np.minimum(keep, x.size - 1), [x.size - 1]]))
    return x[keep], y[keep]
