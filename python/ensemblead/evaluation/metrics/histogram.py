"""The streaming mode of the pixel metrics: counts over bins of float bits, and how far they can be off.

A bin holds the float32 values that agree in their leading bits (sign, exponent, and `bits - 9` bits of the
mantissa), so with the default 22 bits the bins of an octave are 1/8192 of it wide. Values in one bin count as
tied. The exact curve runs through the corners of every bin and rises monotonically between them, which bounds
the error of each metric from the counts alone; the bound is computed, not assumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .curve import Doubles, Ranking
from .inputs import Floats
from .regions import ImagePixels

BITS = 22


def bin_of(values: Floats, bits: int = BITS) -> NDArray[np.uint32]:
    """The bin of each value; bins are ordered as the values are."""
    raw = (values.astype(np.float32) + np.float32(0.0)).view(np.uint32)  # + 0.0 turns -0.0 into 0.0
    negative = raw >> np.uint32(31) != 0
    ordered = np.where(negative, ~raw, raw | np.uint32(0x80000000))
    bins: NDArray[np.uint32] = ordered >> np.uint32(32 - bits)
    return bins


def lower_edge(bins: NDArray[np.integer], bits: int = BITS) -> NDArray[np.float32]:
    """The smallest value of each bin: an image of `bin_of`."""
    ordered = bins.astype(np.uint32) << np.uint32(32 - bits)
    raw = np.where(ordered >> np.uint32(31) != 0, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    edges: NDArray[np.float32] = raw.view(np.float32)
    return edges


def check_bits(bits: int) -> None:
    """Nine bits are sign and exponent; beyond 28 the counts alone would take 10 GB."""
    if not 10 <= bits <= 28:
        raise ValueError(f"bits must be in 10..28, got {bits}")


class PixelHistogram:
    """Counts of the pixels of any number of images, in memory that does not depend on how many.

    Five arrays of 2**bits numbers of 8 bytes (168 MB for 22 bits).
    """

    def __init__(self, bits: int = BITS) -> None:
        check_bits(bits)
        self.bits = bits
        self._normal = np.zeros(1 << bits, np.int64)  # negatives of images without a defect
        self._defective = np.zeros(1 << bits, np.int64)  # negatives of images with one
        self._positives = np.zeros(1 << bits, np.int64)
        self._component = np.zeros(1 << bits)
        self._image = np.zeros(1 << bits)

    def add(self, pixels: ImagePixels) -> None:
        negatives = self._defective if pixels.sizes.size else self._normal
        np.add.at(negatives, bin_of(pixels.negatives, self.bits), 1)
        if pixels.sizes.size:
            bins = bin_of(pixels.positives, self.bits)
            np.add.at(self._positives, bins, 1)
            np.add.at(self._component, bins, pixels.component_weights())
            np.add.at(self._image, bins, pixels.image_weights())

    def rankings(self) -> tuple[Ranking, Ranking, Doubles, Doubles]:
        """Over all images, over the defective ones, and the weights of components and of images [K]."""
        bins = np.flatnonzero(self._positives)[::-1]
        counts = self._positives[bins].astype(np.float64)
        thresholds = lower_edge(bins, self.bits)
        rankings = []
        for negatives in (self._normal + self._defective, self._defective):
            at_or_above = np.cumsum(negatives[::-1])[::-1]
            at = at_or_above[bins].astype(np.float64)
            above = at - negatives[bins]
            total = np.asarray(float(at_or_above[0]))
            rankings.append(Ranking(thresholds, counts, above, at, total))
        return rankings[0], rankings[1], self._component[bins], self._image[bins]


def area_error(ranking: Ranking, weights: Doubles | None = None, limit: float = 1.0) -> float:
    """The most by which `ranking.area(weights, limit)` can differ from the area without bins."""
    rises = ranking.positives if weights is None else weights
    start = np.minimum(ranking.false_above / ranking.total_negatives, limit)
    stop = ranking.false_at / ranking.total_negatives
    width = np.minimum(stop, limit) - start
    whole = stop - ranking.false_above / ranking.total_negatives
    counted = width**2 / (2.0 * np.where(whole > 0, whole, 1.0))
    return float((rises * np.maximum(counted, width - counted)).sum() / (rises.sum() * limit))


def average_precision_error(ranking: Ranking) -> float:
    """The most by which `ranking.average_precision()` can differ from the value without bins.

    Best case: the positives of a bin lie above its negatives. Worst case: below them, where the precision of
    the positives in turn is concave, so that its mean is at least the mean of the first and the last.
    """
    true_at = ranking.true_at
    first = true_at - ranking.positives + 1.0
    last = true_at / (true_at + ranking.false_at)
    worst = 0.5 * (first / (first + ranking.false_at) + last)
    best = true_at / (true_at + ranking.false_above)
    share = ranking.positives / true_at[-1]
    return float(max((share * (best - last)).sum(), (share * (last - worst)).sum()))


def f1_max_error(ranking: Ranking) -> float:
    """The most by which the best F1 can lie above `ranking.f1_max()` (it cannot lie below)."""
    true_at = ranking.true_at
    best = 2.0 * true_at / (true_at + ranking.false_above + true_at[-1])
    return float(max(best.max() - ranking.f1().max(), 0.0))
