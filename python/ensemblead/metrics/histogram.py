"""The streaming mode of the pixel metrics: counts over bins of float bits, and how far they can be off.

A bin holds the float32 values that agree in their leading bits (sign, exponent, and `bits - 9` bits of the
mantissa), so with the default 22 bits the bins of an octave are 1/8192 of it wide. Values in one bin count as
tied. The exact curve runs through the corners of every bin and rises monotonically between them, which bounds
the error of each metric from the counts alone; the bound is computed, not assumed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ensemblead.metrics.curve import Doubles, Ranking, Rankings, TypeRanking
from ensemblead.metrics.inputs import Floats
from ensemblead.metrics.regions import ImagePixels

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

    Two arrays of 2**bits numbers of 8 bytes, and three for every type of defect (168 MB for 22 bits and one
    type); resident are the parts into which values fall, some MB as a rule.
    """

    def __init__(self, bits: int = BITS) -> None:
        check_bits(bits)
        self.bits = bits

        def by_kind() -> defaultdict[str | None, Doubles]:
            return defaultdict(lambda: np.zeros(1 << bits))

        self._normal = by_kind()  # negatives of images without a defective pixel
        self._defective = by_kind()  # negatives of images with one
        self._positives = by_kind()
        self._component = by_kind()
        self._image = np.zeros(1 << bits)

    def add(self, pixels: ImagePixels) -> None:
        negatives = self._defective if pixels.sizes.size else self._normal
        np.add.at(negatives[pixels.kind], bin_of(pixels.negatives, self.bits), 1.0)
        if pixels.sizes.size:
            bins = bin_of(pixels.positives, self.bits)
            np.add.at(self._positives[pixels.kind], bins, 1.0)
            np.add.at(self._component[pixels.kind], bins, pixels.component_weights())
            np.add.at(self._image, bins, pixels.image_weights())

    def rankings(self) -> tuple[Rankings, list[TypeRanking]]:
        """Of all images, and of every type with a defective pixel."""
        bins = self._filled()
        positives, within = _sum(self._positives.values(), bins), _sum(self._defective.values(), bins)
        outside = _sum(self._normal.values(), bins)
        component, image = _sum(self._component.values(), bins), self._image[bins]
        inside = np.flatnonzero(positives)[::-1]
        whole = (
            self._ranking(bins, positives, within + outside),
            self._ranking(bins, positives, within),
            component[inside],
            image[inside],
        )
        types = []
        for kind in (kind for kind in self._positives if kind is not None):
            counted = [self._normal.get(None), self._normal.get(kind), self._defective[kind]]
            negatives = _sum([one for one in counted if one is not None], bins)
            own = self._positives[kind][bins]
            weights = self._component[kind][bins][np.flatnonzero(own)[::-1]]
            types.append((kind, self._ranking(bins, own, negatives), weights))
        return whole, types

    def _filled(self) -> NDArray[np.intp]:
        """The bins, ascending, of every octave that has a value: a few of the 512 as a rule."""
        octave = 1 << (self.bits - 9)
        arrays = [*self._normal.values(), *self._defective.values(), *self._positives.values()]
        filled = np.any([array.reshape(-1, octave).any(axis=1) for array in arrays], axis=0)
        found: NDArray[np.intp] = np.flatnonzero(filled)[:, None] * octave + np.arange(octave)
        return found.ravel()

    def _ranking(self, bins: NDArray[np.intp], positives: Doubles, negatives: Doubles) -> Ranking:
        inside = np.flatnonzero(positives)[::-1]
        at_or_above = np.cumsum(negatives[::-1])[::-1]
        at = at_or_above[inside]
        thresholds = lower_edge(bins[inside], self.bits)
        return Ranking(thresholds, positives[inside], at - negatives[inside], at, np.asarray(at_or_above[0]))


def _sum(arrays: Iterable[Doubles], bins: NDArray[np.intp]) -> Doubles:
    """The sum, in these bins, of any number of arrays; counts are exact up to 2**53."""
    total = np.zeros(bins.size)
    for array in arrays:
        total += array[bins]
    return total


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
