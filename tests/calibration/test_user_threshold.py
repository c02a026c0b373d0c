"""A threshold that a user sets: it stays beside the statistics, and is called the user's everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import ensemblead as ead
from ensemblead.common.errors import NotFittedError
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.evaluation.gallery import describe_threshold

RNG = np.random.default_rng(21)
GOOD = RNG.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
FRESH = RNG.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)


def patchcore(layer: str = "layer2") -> ead.PatchCore:
    return ead.PatchCore("gabor", [layer], resize=None, coreset_fraction=0.2, device="cpu")


def padim() -> ead.PaDiM:
    return ead.PaDiM("gabor", ["layer2"], resize=None, num_dimensions=4, device="cpu")


MAKERS = {
    "PatchCore": patchcore,
    "PaDiM": padim,
    "BackboneEnsemble": lambda: ead.BackboneEnsemble([patchcore(), padim()]),
    "nested": lambda: ead.BackboneEnsemble(
        [ead.BackboneEnsemble([patchcore(), padim()]), patchcore("layer3")]
    ),
    "TiledEnsemble": lambda: ead.TiledEnsemble(patchcore(), 24, 8, image_size=32),
}


@pytest.fixture(params=MAKERS)
def detector(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]().fit(GOOD)


def between(scores: Any) -> float:
    """A threshold that half of the scores exceed."""
    ordered = np.sort(scores)
    return float((ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2)


def test_it_decides_and_is_called_the_users(detector: Any, tmp_path: Path) -> None:
    measured, before = detector.threshold_, detector.calibration_
    assert before.threshold_origin == before.origin != "user"
    scores = detector.predict(FRESH).anomaly_score
    detector.threshold_ = between(scores)
    known = detector.calibration_
    assert detector.threshold_ == known.threshold == between(scores)
    assert (known.threshold_origin, known.origin, known.is_guaranteed) == ("user", before.origin, False)
    np.testing.assert_array_equal(known.scores, before.scores)
    above = int((before.scores > between(scores) + before.rounding).sum())
    assert known.false_alarm_rate == (above + 1) / (len(GOOD) + 1)
    found = detector.predict(FRESH)
    np.testing.assert_array_equal(found.anomaly_score, scores)
    assert found.is_anomalous.sum() == 3
    assert repr(detector).endswith(" set by the user")
    assert "set by the user" in repr(known)
    assert describe_threshold(detector).startswith("set by the user: false alarms about ")
    assert known.describe_deciding() == ""

    detector.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert loaded.threshold_ == detector.threshold_
    assert loaded.calibration_.threshold_origin == "user"
    np.testing.assert_array_equal(loaded.predict(FRESH).is_anomalous, found.is_anomalous)

    loaded.calibrate(FRESH, 0.2)
    assert loaded.calibration_.threshold_origin == "calibrated"
    assert loaded.calibration_.is_guaranteed
    detector.fit(GOOD)
    assert detector.threshold_ == pytest.approx(measured)
    assert detector.calibration_.threshold_origin == before.origin


@pytest.mark.parametrize("name", ["PatchCore", "BackboneEnsemble"])
def test_extend_keeps_it_and_says_so(name: str) -> None:
    detector = MAKERS[name]().fit(GOOD)
    detector.threshold_ = 123.5
    with pytest.warns(ThresholdWarning, match="was given and stays"):
        detector.extend(FRESH)
    assert detector.threshold_ == 123.5
    assert len(detector.calibration_.scores) == len(GOOD) + len(FRESH)


def test_a_members_threshold_is_not_the_ensembles() -> None:
    ensemble = MAKERS["BackboneEnsemble"]().fit(GOOD)
    before = ensemble.threshold_
    ensemble.members[0].threshold_ = 1e6
    assert ensemble.threshold_ == before
    ensemble.threshold_ = 2.5
    assert ensemble.members[0].threshold_ == 1e6
    assert ensemble.calibration_ is ensemble.calibration_
    ensemble.calibrate(FRESH, 0.2)
    assert ensemble.members[0].calibration_.threshold_origin == "calibrated"


def test_a_guarantee_ends_where_a_threshold_is_set() -> None:
    detector = patchcore().fit(GOOD).calibrate(FRESH, 0.2)
    detector.threshold_ = np.float32(detector.threshold_)  # of the same value
    assert not detector.calibration_.is_guaranteed
    detector.threshold_ = 0
    assert detector.predict(FRESH).is_anomalous.all()
    assert detector.calibration_.false_alarm_rate == 1.0


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (math.nan, ValueError, "threshold_ must be finite, got nan"),
        (math.inf, ValueError, "threshold_ must be finite, got inf"),
        (1e39, ValueError, "threshold_ must be finite"),
        ("3", TypeError, "threshold_ must be a number, got '3'"),
        (True, TypeError, "threshold_ must be a number, got True"),
        (None, TypeError, "threshold_ must be a number, got None"),
    ],
)
def test_what_is_no_threshold(detector: Any, value: Any, error: type[Exception], said: str) -> None:
    before = detector.threshold_
    with pytest.raises(error, match=said):
        detector.threshold_ = value
    assert detector.threshold_ == before


@pytest.mark.parametrize("name", MAKERS)
def test_before_fit_there_is_nothing_to_set(name: str) -> None:
    with pytest.raises(NotFittedError, match="not fitted; call fit first"):
        MAKERS[name]().threshold_ = 1.0
