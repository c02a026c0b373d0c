"""P-values and bets against their definitions: uniformity, fair bets, Ville's bound, mean run length."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from scipy import stats

from ensemblead.monitoring.martingales import JUMP, Bets, Jumper, PowerMixture, shared
from ensemblead.monitoring.ranks import OnlineRanks, uniforms

Betting = Jumper | PowerMixture
BOTH: list[Betting] = [Jumper(), PowerMixture()]


def ranked(known: Any, new: Any, seed: int = 0) -> np.ndarray:
    """P-values `[n, 2]` of one series."""
    ranks = OnlineRanks([np.asarray(known, np.float32)])
    values = np.asarray(new, np.float32)[:, None]
    return np.concatenate([ranks.p_values(row, uniforms(seed, i, 1)) for i, row in enumerate(values, 1)])


def run(betting: Betting, p: np.ndarray, *, restarting: bool = False) -> tuple[Bets, np.ndarray]:
    """All images of many streams, p-values `[n, streams]`: the bets, and evidence `[n, streams]`."""
    bets = betting.start(p.shape[1])
    evidence = np.empty_like(p)
    for i, row in enumerate(p):
        bets = betting.step(bets, np.stack([row, 1.0 - row], axis=1), i + 1, restarting=restarting)
        evidence[i] = bets.evidence
    return bets, evidence


def uniform(images: int, streams: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1e-12, 1 - 1e-12, (images, streams))


@pytest.mark.parametrize("kind", ["normal", "ties", "constant"])
def test_p_values_are_uniform_and_independent(kind: str) -> None:
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(size=10_060),
        "ties": rng.integers(0, 5, 10_060),
        "constant": np.full(10_060, 3.25),
    }[kind]
    p = ranked(values[:60], values[60:])
    assert stats.kstest(p[:, 0], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[:-1, 0], p[1:, 0])[0, 1]) < 4 / np.sqrt(len(p))
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)


def test_p_values_follow_their_definition() -> None:
    rng = np.random.default_rng(2)
    known, new = rng.integers(0, 6, 7), rng.integers(0, 6, 30)
    found, so_far = ranked(known, new, seed=5), list(known)
    for i, (value, p) in enumerate(zip(new, found, strict=True), 1):
        so_far.append(value)
        (u,) = uniforms(5, i, 1)
        above, equal = sum(v > value for v in so_far), sum(v == value for v in so_far)
        assert p[0] == (above + u * equal) / len(so_far)


def test_the_numbers_that_settle_ties_are_of_their_image() -> None:
    again = uniforms(3, 17, 4)
    np.testing.assert_array_equal(uniforms(3, 17, 4), again)
    assert not np.intersect1d(again, uniforms(3, 18, 4)).size
    assert not np.intersect1d(again, uniforms(4, 17, 4)).size
    assert ((again > 0) & (again < 1)).all()


def test_bets_follow_their_definition() -> None:
    p = uniform(12, 1, seed=3)[:, 0]
    exponents = [0.02 + 0.04 * k for k in range(25)]
    tails = [np.prod([e * q ** (e - 1) for q in side]) for e in exponents for side in (p, 1 - p)]
    _, evidence = run(PowerMixture(), p[:, None])
    assert 10 ** evidence[-1, 0] == pytest.approx(np.mean(tails), rel=1e-9)
    shares = np.full(3, 1 / 3)
    for q in p:
        shares = (1 - JUMP) * shares + JUMP / 3 * shares.sum()
        shares *= 1 + np.array([-1, 0, 1]) * (q - 0.5)
    _, evidence = run(Jumper(), p[:, None])
    assert 10 ** evidence[-1, 0] == pytest.approx(shares.sum(), rel=1e-9)


def test_a_fair_bet_keeps_its_capital_on_average() -> None:
    _, evidence = run(Jumper(), uniform(40, 20_000))
    capital = 10 ** evidence[-1]
    error = capital.std() / np.sqrt(len(capital))
    assert abs(capital.mean() - 1) < 4 * error
    assert error < 0.02


def test_a_power_bet_is_a_density() -> None:
    """Its mean over uniform p-values is 1, with an infinite variance. Drawn from the density that it should
    be, the inverse of the bet has the mean 1 if it is that density, and a small variance.
    """
    rng = np.random.default_rng(8)
    exponents = rng.choice(0.02 + 0.04 * np.arange(25), 50_000)
    small = np.maximum(rng.uniform(size=50_000) ** (1 / exponents), 1e-300)
    p = np.stack([small, 1 - small], axis=1)
    p[::2] = p[::2, ::-1]
    p = np.maximum(p, 1e-300)
    inverse = 10 ** -PowerMixture().step(PowerMixture().start(50_000), p, 1, restarting=False).evidence
    error = inverse.std() / np.sqrt(len(inverse))
    assert abs(inverse.mean() - 1) < 4 * error
    assert error < 0.01


@pytest.mark.parametrize("betting", BOTH, ids=lambda one: type(one).__name__)
def test_alarms_are_as_rare_as_ville_says(betting: Betting) -> None:
    """2,000 streams of 100 images, each against 40 that are known, with online p-values."""
    rng = np.random.default_rng(4)
    known, new = rng.normal(size=(2000, 40)).astype(np.float32), rng.normal(size=(100, 2000))
    ranks = OnlineRanks(list(known))
    bets, highest = betting.start(2000), np.full(2000, -np.inf)
    for i, row in enumerate(new.astype(np.float32), 1):
        bets = betting.step(bets, ranks.p_values(row, uniforms(0, i, 2000)), i, restarting=False)
        highest = np.maximum(highest, bets.evidence)
    for level in (5, 20, 100):
        assert np.mean(highest >= np.log10(level)) <= 1 / level, level
    assert highest.max() > 0.5  # they do bet


@pytest.mark.parametrize("betting", BOTH, ids=lambda one: type(one).__name__)
def test_alarms_of_shiryaev_roberts_are_as_far_apart_as_stated(betting: Betting) -> None:
    _, evidence = run(betting, uniform(2000, 150), restarting=True)
    crossed = evidence >= np.log10(60)
    first = np.where(crossed.any(axis=0), crossed.argmax(axis=0) + 1, len(crossed))
    assert first.mean() >= 60  # those that never alarm count as 2,000, which is too little
    assert crossed.any(axis=0).mean() > 0.8


def test_restarting_finds_a_change_sooner_after_long_calm() -> None:
    calm = uniform(2000, 40, seed=6)
    changed = uniform(200, 40, seed=7) ** 2  # small p-values are frequent
    found = {}
    for restarting, level in ((False, 2.0), (True, 4.0)):
        _, evidence = run(PowerMixture(), np.concatenate([calm, changed]), restarting=restarting)
        crossed = evidence[2000:] >= level
        found[restarting] = np.median(np.where(crossed.any(axis=0), crossed.argmax(axis=0), 200))
    assert found[True] < found[False]


@pytest.mark.parametrize("betting", BOTH, ids=lambda one: type(one).__name__)
def test_the_first_changed_image_is_estimated(betting: Betting) -> None:
    places = []
    for seed in range(20):
        p = np.concatenate([uniform(80, 1, seed), 0.15 * uniform(60, 1, seed + 100)])
        places.append(run(betting, p)[0].first_changed())
    assert abs(np.median(places) - 80) <= 6
    assert np.mean(np.abs(np.array(places) - 80) <= 20) >= 0.8


def test_large_evidence_stays_finite() -> None:
    p = np.full((5000, 1), 1e-15)
    _, evidence = run(PowerMixture(), p)
    assert np.isfinite(evidence).all()
    assert evidence[-1, 0] > 10_000


def test_why_several_are_not_averaged() -> None:
    """Ranks of one value are independent; in the history of two values they need not be. Three images with
    two values each, in any order: if both values order the first two images alike, the third is not the one
    with the largest first value.
    """
    orders = list(itertools.permutations([(1, 2), (2, 1), (3, 3)]))
    alike = [order for order in orders if (order[0][0] < order[1][0]) == (order[0][1] < order[1][1])]
    assert sum(order[2][0] == 3 for order in orders) == len(orders) / 3
    assert sum(order[2][0] == 3 for order in alike) == 0 < len(alike)


def test_several_share_the_level() -> None:
    assert shared(np.array([2.0, -np.inf])) == pytest.approx(np.log10(50))
    assert shared(np.array([4000.0] * 10)) == pytest.approx(3999.0)
    assert shared(np.array([1.5])) == 1.5
