"""DriftMonitor with models that state no rate, do not know their images, or compute in another precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from support.drift import detector, images, monitor, predictions
from support.networks import TinyNet

import ensemblead as ead
from ensemblead.conversion.source import give_state
from ensemblead.report.drift_page import write_drift_page


def small(**options: Any) -> Any:
    return ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.5, device="cpu", **options)


def converted(seed: int = 0, threshold: float | None = None) -> Any:
    """As a model of another tool becomes one: it does not know its images."""
    model = small()
    give_state(model, small().fit(images(12, seed))._state, threshold)
    return model


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_model_without_a_rate_is_watched_and_saved(threshold: float | None, tmp_path: Path) -> None:
    model = converted(threshold=threshold)
    watching = ead.DriftMonitor(model, regions=2).calibrate(images(60, 1))
    state = watching.observe(images(40, 2) // 2 + 60)
    assert state.alarm
    assert state.alarm_rate.stated is None
    assert not state.alarm_rate.is_raised
    assert state.advice == "calibrate"
    assert "states no rate" in state.advice_text
    watching.save(tmp_path / "state")
    model.save(tmp_path / "model")
    again = ead.load(tmp_path / "state", detector=ead.load(tmp_path / "model"))
    assert again.state_.as_dict() == state.as_dict()
    page = write_drift_page(again, tmp_path / "drift.html").read_text()
    assert "no rate stated" in page
    assert not any(word in page for word in ("nan", "NaN", ">inf"))


def test_models_that_do_not_know_their_images_are_told_apart(tmp_path: Path) -> None:
    ead.DriftMonitor(converted(), streams=["score"]).calibrate(images(60, 1)).save(tmp_path / "state")
    with pytest.raises(ValueError, match="not the model that the monitor was calibrated for"):
        ead.load(tmp_path / "state", detector=converted(seed=5))


def test_another_precision_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ead.PatchCore(
        TinyNet(), layers=("first", "second"), resize=None, image_size=None, device="cpu", precision="float32"
    ).fit(images(12))
    model.save(tmp_path / "model")
    watching = ead.DriftMonitor(model).calibrate(images(50, 1))
    watching.save(tmp_path / "state")
    options = {"weights": None, "backbone": TinyNet()}
    other = ead.load(tmp_path / "model", **options, precision="bfloat16")
    with pytest.raises(ValueError, match="compute in bfloat16, and did in float32"):
        ead.load(tmp_path / "state", detector=other)
    watching.detector = other
    with pytest.raises(ValueError, match="compute in bfloat16, and did in float32"):
        watching.observe(images(3, 2))
    assert watching.calibrate(images(50, 1)).observe(images(3, 2)).images == 3


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.9])
def test_nothing_observed_is_no_reason_to_look(probability: float) -> None:
    watching = monitor(false_alarm_probability=probability)
    assert watching.state_.advice == "none"
    assert watching.observe(predictions(3, seed=1)).advice in ("none", "look")


def test_a_cell_alone_is_not_named_without_an_alarm() -> None:
    watching = monitor(seed=3)
    watching.observe(predictions(50, seed=1))
    named = [state for state in map(watching.observe, _one_by_one(predictions(20, seed=2, cell=6)))]
    reached = [state for state in named if state.regions is not None and state.regions.max() >= state.level]
    assert any(not state.alarm for state in reached)
    assert all(state.alarm == bool(state.moved) for state in reached)


def _one_by_one(found: ead.Predictions) -> list[ead.Predictions]:
    return [found.take([place]) for place in range(len(found))]


def test_images_are_taken_by_their_places() -> None:
    found = predictions(5)
    assert found.take(np.array([3, 1])).paths == ["0-3.png", "0-1.png"]
    assert len(found.take([])) == 0
    wrong: Any
    for wrong in (found.anomaly_score > 1, [0.5]):
        with pytest.raises(TypeError, match="places must be whole numbers"):
            found.take(wrong)


def test_only_a_detector_is_watched(tmp_path: Path) -> None:
    monitor().save(tmp_path / "state")
    wrong: Any = "model"
    with pytest.raises(TypeError, match="detector must be a detector, got str"):
        ead.load(tmp_path / "state", detector=wrong)
    assert ead.load(tmp_path / "state", detector=detector()).state_.images == 0
