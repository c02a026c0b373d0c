"""The interval of a rate, against its definition by binomial tails."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from ensemblead.metrics import rate_interval

pytest.importorskip("scipy")


def at_least(count: int, total: int, rate: float) -> float:
    """The probability of `count` cases or more."""
    return sum(comb(total, i) * rate**i * (1 - rate) ** (total - i) for i in range(count, total + 1))


@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 9), (4, 9), (8, 9), (17, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_ends_are_where_the_tails_begin(count: int, total: int, confidence: float) -> None:
    low, high = (float(end) for end in rate_interval(count, total, confidence))
    tail = (1 - confidence) / 2
    assert at_least(count, total, low) == pytest.approx(tail, rel=1e-6)
    if count < total:
        assert 1 - at_least(count + 1, total, high) == pytest.approx(tail, rel=1e-6)


def test_none_and_all_of_them() -> None:
    low, high = rate_interval(np.array([0, 9, 0]), np.array([9, 9, 0]))
    np.testing.assert_allclose(low, [0.0, 0.025 ** (1 / 9), 0.0])
    np.testing.assert_allclose(high, [1 - 0.025 ** (1 / 9), 1.0, 1.0])
