"""Misses against false alarms: counts, intervals and the proposal, against loops over thresholds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.common.errors import NotFittedError
from ensemblead.evaluation import TradeOff, trade_off


def errors_at(normal: Any, defective: Any, threshold: float, rounding: float) -> tuple[int, int]:
    limit = np.float32(threshold + rounding)
    return sum(score > limit for score in normal), sum(not score > limit for score in defective)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("miss_cost", [1.0, 0.3, 5.0])
def test_the_proposal_costs_least_and_lies_in_the_widest_gap(seed: int, miss_cost: float) -> None:
    rng = np.random.default_rng(seed)
    # Scores of few values, so that there are ties within and between both sets.
    normal = np.round(rng.normal(0, 1, 14), 1).astype(np.float32)
    defective = np.round(rng.normal(1.2, 1, 9), 1).astype(np.float32)
    rounding = 0.01 * (seed % 2)
    found = TradeOff(normal, defective, rounding=rounding, miss_cost=miss_cost)

    def cost(threshold: float) -> float:
        alarms, misses = errors_at(normal, defective, threshold, rounding)
        return alarms / 14 + miss_cost * misses / 9

    proposal = found.proposal
    everywhere = np.linspace(normal.min(), defective.max() + 1, 4001)
    least = min(map(cost, everywhere))
    assert cost(proposal.threshold) == pytest.approx(least)
    every = sorted({*normal.tolist(), *defective.tolist()})
    gaps = [
        (high - low, (low + high) / 2)
        for low, high in itertools.pairwise(every)
        if cost((low + high) / 2) <= least + 1e-9
    ]
    if gaps:
        assert (proposal.threshold) == pytest.approx(max(gaps)[1])


@pytest.mark.parametrize("rounding", [0.0, 0.05])
def test_counts_are_those_of_the_verdict(rounding: float) -> None:
    rng = np.random.default_rng(0)
    normal, defective = (rng.normal(mean, 1, 20).astype(np.float32) for mean in (0, 2))
    found = TradeOff(normal, defective, rounding=rounding, threshold=float(normal[3]))
    points = found.points()
    assert [point.threshold for point in points] == sorted({point.threshold for point in points})
    for point in [*points, *found.notable().values()]:
        expected = errors_at(normal, defective, point.threshold, rounding)
        assert (point.false_alarms, point.misses) == expected
        assert (point.false_alarm_rate, point.miss_rate) == (expected[0] / 20, expected[1] / 20)
        assert point.miss_interval[0] <= point.miss_rate <= point.miss_interval[1]
    notable = found.notable()
    assert notable["no false alarm"].false_alarms == notable["no miss"].misses == 0
    assert notable["model"].threshold == float(normal[3])
    # One image more: the next normal score below, and the lowest defect.
    second = float(np.sort(normal)[-2])
    assert found.at(second).false_alarms == 1
    assert found.at(float(defective.min())).misses >= 1


def test_what_is_refused() -> None:
    scores = np.ones(3, np.float32)
    for arguments, error, message in (
        ({"normal": scores[:0], "defective": scores}, ValueError, "normal must be finite scores"),
        ({"normal": scores, "defective": scores * np.nan}, ValueError, "defective must be finite scores"),
        ({"normal": scores, "defective": scores, "miss_cost": 0}, ValueError, "miss_cost must be positive"),
        ({"normal": scores, "defective": scores, "confidence": 1.0}, ValueError, "confidence must be"),
    ):
        with pytest.raises(error, match=message):
            TradeOff(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must be finite"):
        TradeOff(scores, scores).at(float("inf"))
    # Defects that score as the least normal image cannot all be found.
    assert "no miss" not in TradeOff(scores, scores).notable()


@pytest.fixture(scope="module")
def detector() -> ead.PatchCore:
    detector = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu")
    return detector.fit(normal_images(12))


def test_of_a_detector(detector: ead.PatchCore) -> None:
    spoiled, _ = with_defects(normal_images(4, seed=2))
    found = trade_off(detector, spoiled)
    np.testing.assert_array_equal(found.normal, detector.calibration_.scores)
    np.testing.assert_array_equal(found.defective, detector.predict(spoiled).anomaly_score)
    assert (found.origin, found.threshold) == ("leave_one_out", detector.threshold_)
    before = detector.threshold_
    assert found.proposal.misses == 0
    assert detector.threshold_ == before  # nothing is taken
    fresh = normal_images(9, seed=3)
    calibrated = ead.create(detector.describe()).fit(normal_images(12)).calibrate(fresh, 0.1)
    assert trade_off(calibrated, spoiled).origin == "calibrated"


def test_a_detector_that_cannot_say(detector: ead.PatchCore) -> None:
    good = normal_images(12)
    with pytest.raises(ValueError, match="defects: the detector has learned 2 of them as normal"):
        trade_off(detector, good[:2])
    with pytest.warns(UserWarning, match="half of them score no higher"):
        trade_off(detector, normal_images(2, seed=9))
    with pytest.raises(NotFittedError):
        trade_off(ead.create(detector.describe()), good)
