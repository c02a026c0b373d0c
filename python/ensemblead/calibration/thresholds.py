"""From scores of normal images to a threshold, and what is known of its false-alarm rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


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


def estimated_threshold(scores: npt.NDArray[Any], rate: float) -> tuple[float, float]:
    """The threshold from leave-one-out or held-out scores, and the rate that is to be expected at it.

    As `conformal_threshold` where there are enough images for that. With fewer, that rule would take the
    largest score, and one odd image among the training set would decide. Then it is the lower of the largest
    score and the one-sided prediction bound of a normal distribution, `mean + t * std * sqrt(1 + 1/n)` with
    Student's t of n - 1 degrees of freedom. The rate is `(k + 1)/(n + 1)` for the k scores above the
    threshold: an estimate, for neither is the distribution known nor are the scores those of fresh images.
    """
    largest, stated = conformal_threshold(scores, rate)
    n = len(scores)
    if stated == rate or n < 2:
        return largest, stated
    from scipy.special import stdtrit

    values = np.asarray(scores, dtype=np.float64)
    spread = float(values.std(ddof=1)) * math.sqrt(1.0 + 1.0 / n)
    threshold = min(largest, float(values.mean()) + float(stdtrit(n - 1, 1.0 - rate)) * spread)
    return threshold, max(rate, (int((values > threshold).sum()) + 1) / (n + 1))
