"""Rates as counts of independent cases, and how well they are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.extras import require

Doubles = NDArray[np.float64]


def rate_interval(count: Any, total: Any, confidence: float = 0.95) -> tuple[Doubles, Doubles]:
    """The interval of Clopper and Pearson (Biometrika 26, 1934) for rates of `count` cases of `total`.

    For any true rate it holds that rate with at least the probability `confidence`. Both arguments may be
    numbers or arrays; with `total` 0 the interval is `(0, 1)`.
    """
    require("scipy", "the interval of a rate")
    from scipy import special

    k, n = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(total, np.float64))
    tail = (1.0 - confidence) / 2.0
    # Where there is no case, or nothing but cases, the end of the interval is exact.
    low = np.where(k > 0, special.betaincinv(np.maximum(k, 1), n - k + 1, tail), 0.0)
    high = np.where(k < n, special.betaincinv(k + 1, np.maximum(n - k, 1), 1.0 - tail), 1.0)
    return low, high
