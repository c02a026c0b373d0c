"""From scores of normal images to a threshold, and what is known of its false-alarm rate."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

_NORMAL = NormalDist()
# With fewer scores there is no tail to speak of.
_FEWEST = 10
# The share of the scores that are the tail, and their least number; the weight, in scores, of the bulk's
# deviation in the tail's scale; the share of the scores that are not the bulk.
_TAIL, _LEAST_TAIL, _WEIGHT, _CUT = 0.2, 5, 10, 0.05


def conformal_threshold(scores: npt.NDArray[Any], rate: float) -> tuple[float, float]:
    """The `ceil((n + 1)(1 - rate))`-th smallest of n scores, and the rate that it guarantees.

    A fresh normal image scores above it with probability at most that rate (split conformal prediction). If
    `n < 1/rate - 1` no such rank exists: then it is the largest score, with the rate `1/(n + 1)`.
    """
    if not 0 < rate < 1:
        raise ValueError(f"false_alarm_rate must be between 0 and 1, got {rate}")
    n = len(scores)
    if n == 0:
        raise ValueError("scores must not be empty")
    # 1e-9: (n + 1)(1 - rate) is often a whole number that floating point misses by a hair.
    rank = math.ceil((n + 1) * (1.0 - rate) - 1e-9)
    if rank > n:
        return float(np.max(scores)), 1.0 / (n + 1)
    return float(np.partition(scores, rank - 1)[rank - 1]), rate


def estimated_threshold(
    scores: npt.NDArray[Any], rate: float, bulk: npt.NDArray[Any] | None = None
) -> tuple[float, float]:
    """The threshold from leave-one-out or held-out scores, and the rate that is to be expected at it.

    The highest fifth of the scores, at least five, are taken for an exponential tail beyond the next lower
    score, the level: `level + scale * log(share / rate)`, where `share` is the tail's. The scale is the mean
    excess over the level: that of the tail's scores, and, with the weight of ten scores, that of a normal
    distribution with the deviation of the bulk. So small sets go by their bulk, large ones by their tail, and
    no image decides alone. docs/design/thresholds.md compares the rule with others.

    Of fewer than ten scores it is the lower of the largest and the one-sided prediction bound of a normal
    distribution. A rate above the tail's share needs no tail, and is the rank of `conformal_threshold`.

    `bulk`: the scores whose bulk gives the deviation, where `scores` are a choice of the largest values.

    The rate is `(k + 1)/(n + 1)` for the k scores above the threshold, or the one asked for if that is more:
    an estimate, for neither is the distribution known nor are the scores those of fresh images.
    """
    threshold, stated = conformal_threshold(scores, rate)
    values = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(values)
    spread = values if bulk is None else np.sort(np.asarray(bulk, dtype=np.float64))
    if n < _FEWEST:
        if stated == rate or n < 2:
            return threshold, stated
        threshold = min(threshold, _normal_bound(spread, rate))
    else:
        count = max(_LEAST_TAIL, round(_TAIL * n))
        share = count / (n + 1)
        if rate >= share:
            return threshold, stated
        level = float(values[n - count - 1])
        expected = _bulk_deviation(spread) * _normal_excess(share)
        scale = (float((values[n - count :] - level).sum()) + _WEIGHT * expected) / (count + _WEIGHT)
        threshold = level + scale * math.log(share / rate)
    return threshold, max(rate, (int((values > threshold).sum()) + 1) / (n + 1))


def _normal_bound(values: npt.NDArray[np.float64], rate: float) -> float:
    """`mean + t * std * sqrt(1 + 1/n)` with Student's t of n - 1 degrees of freedom."""
    from scipy.special import stdtrit

    n = len(values)
    spread = float(values.std(ddof=1)) * math.sqrt(1.0 + 1.0 / n)
    return float(values.mean()) + float(stdtrit(n - 1, 1.0 - rate)) * spread


def _bulk_deviation(ordered: npt.NDArray[np.float64]) -> float:
    """The standard deviation of the normal distribution that, cut off above, gives the ascending scores
    without the largest twentieth.
    """
    n = len(ordered)
    kept = n - max(1, round(_CUT * n))
    share = (kept + 0.5) / (n + 1)
    edge = _NORMAL.inv_cdf(share)
    density = _NORMAL.pdf(edge) / share
    return float(ordered[:kept].std(ddof=1)) / math.sqrt(1.0 - edge * density - density**2)


def _normal_excess(share: float) -> float:
    """By how much, on average, the highest `share` of a standard normal distribution exceeds its lowest."""
    level = _NORMAL.inv_cdf(1.0 - share)
    return _NORMAL.pdf(level) / share - level
