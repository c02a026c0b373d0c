"""DriftMonitor: what it says of changes, what it refuses, and that it goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from scipy import stats
from support.drift import detector, images, monitor, predictions
from support.methods import Epochs
from support.tampering import altered

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError, NotFittedError
from ensemblead.monitoring import AlarmRate
from ensemblead.monitoring.embedding import Reference
from ensemblead.monitoring.state import advised
from ensemblead.monitoring.watching import largest_by_cell
from ensemblead.report.drift_page import write_drift_page


def same(found: ead.DriftMonitor, expected: ead.DriftMonitor) -> None:
    """To the bit, whatever is kept."""

    def compare(a: Any, b: Any) -> None:
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif hasattr(a, "__dataclass_fields__"):
            for field in fields(a):
                compare(getattr(a, field.name), getattr(b, field.name))
        else:
            assert a == b

    compare(found._kept, expected._kept)
    assert repr(found.state_) == repr(expected.state_)


# What it says


def test_nothing_is_said_of_images_that_have_not_changed() -> None:
    state = monitor().observe(predictions(200, seed=1))
    assert not state.alarm
    assert state.alarm_at is None
    assert state.since is None
    assert state.since_path is None
    assert state.moved == ()
    assert (state.images, state.repeated, state.advice) == (200, 0, "none")
    assert state.score_ratio == pytest.approx(1, abs=0.05)
    assert set(state.evidence) == {"score", "embedding", "regions"}
    assert state.regions is not None
    assert state.regions.shape == (4, 4)
    assert "no alarm" in repr(state)


def test_a_cell_that_changes_is_named_in_the_photograph() -> None:
    watching = monitor(seed=3)
    watching.observe(predictions(50, seed=1))
    state = watching.observe(predictions(60, seed=2, cell=6))
    assert state.alarm
    assert state.alarm_at is not None
    assert 50 <= state.alarm_at < 75
    assert state.since is not None
    assert abs(state.since - 50) <= 2
    assert state.since_path == f"2-{state.since - 50}.png" or state.since < 50
    assert max(state.evidence, key=lambda name: state.evidence[name]) == "regions"
    # Row 1, column 2 of 4 x 4: the photographs are 64 x 32 pixels.
    assert state.moved == ((16.0, 16.0, 32.0, 24.0),)
    assert state.advice == "calibrate"


def test_scores_that_rise_are_told_with_their_ratios() -> None:
    watching = monitor(streams=["score"])
    watching.observe(predictions(20, seed=1))
    state = watching.observe(predictions(60, seed=2, factor=1.8))
    assert list(state.evidence) == ["score"]
    assert state.alarm
    assert state.regions is None
    assert state.score_ratio == pytest.approx(1.8, rel=0.1)
    assert state.score_p90_ratio == pytest.approx(1.8, rel=0.1)
    assert state.alarm_rate.is_raised
    assert state.advice == "extend"
    assert state.total == pytest.approx(state.evidence["score"])
    far = monitor(streams=["score"]).observe(predictions(60, seed=2, factor=3.0))
    assert far.advice == "refit"


def test_features_that_move_raise_an_alarm() -> None:
    moved = predictions(40, seed=2)
    assert moved.features is not None
    moved.features[:] = 0.4 * moved.features + 3.0
    watching = monitor()
    watching.observe(predictions(20, seed=1))
    state = watching.observe(moved)
    assert state.alarm
    assert max(state.evidence, key=lambda name: state.evidence[name]) == "embedding"


def test_an_alarm_stays_until_it_is_reset() -> None:
    watching = monitor(streams=["regions"])
    at = watching.observe(predictions(30, seed=2, cell=0)).alarm_at
    state = watching.observe(predictions(100, seed=5))
    assert state.alarm
    assert state.alarm_at == at
    state = watching.reset().state_
    assert not state.alarm
    assert (state.images, state.total) == (0, 0.0)
    same(watching, monitor(streams=["regions"]))
    with pytest.raises(NotFittedError, match="call calibrate first"):
        _ = watching.reset(keep_reference=False).state_


def test_constant_scores_are_no_change() -> None:
    alike = replace(
        predictions(300, seed=1),
        anomaly_score=np.full(300, 0.5, np.float32),
        anomaly_map=np.full((300, 16, 16), 0.5, np.float32),
        features=np.full((300, 12), 2.0, np.float32),
    )
    watching = ead.DriftMonitor(detector()).calibrate(alike.take(range(60)))
    assert not watching.observe(alike.take(range(60, 300))).alarm


def test_a_mean_run_length_in_place_of_a_probability() -> None:
    watching = monitor(mean_run_length=10_000)
    assert watching.level == pytest.approx(np.log10(20_000))
    assert monitor(mean_run_length=100, streams=["score"]).level == pytest.approx(2)
    state = watching.observe(predictions(100, seed=1))
    assert not state.alarm
    assert state.total > 0  # of Shiryaev and Roberts: about as many as there were images
    assert watching.observe(predictions(60, seed=2, cell=3)).alarm


def test_streams_and_cells_share_the_level() -> None:
    watching = monitor()
    watching.observe(predictions(30, seed=1))
    evidence = watching.observed_.evidence
    np.testing.assert_allclose(evidence[:, 0], evidence[:, 1:].max(axis=1) - np.log10(3), rtol=1e-12)
    cells = watching.state_.regions
    assert cells is not None
    assert evidence[-1, 3] == pytest.approx(cells.max() - np.log10(16))


@pytest.mark.slow
def test_alarms_over_permutations_are_as_rare_as_promised() -> None:
    """200 streams of all three kinds of values, which depend on each other, at a probability of .3."""
    every, alarms = predictions(120), []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(120)
        watching = ead.DriftMonitor(detector(), false_alarm_probability=0.3, seed=seed, regions=2)
        watching.calibrate(every.take(order[:60]))
        alarms.append(watching.observe(every.take(order[60:])).alarm)
    assert np.mean(alarms) <= 0.3


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (20, 20), (1, 1)])
def test_the_interval_is_clopper_and_pearsons(k: int, n: int) -> None:
    found = AlarmRate(k, n, 0.01)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.rate == k / n


@pytest.mark.parametrize(
    ("alarm", "nears", "anomalous", "far", "extends", "advice"),
    [
        (False, False, 0, False, True, "none"),
        (False, False, 20, True, True, "look"),
        (False, False, 1, True, True, "none"),
        (False, True, 0, False, True, "look"),
        (True, True, 0, True, True, "calibrate"),
        (True, False, 20, False, True, "extend"),
        (True, True, 20, True, True, "refit"),
        (True, True, 20, False, False, "refit"),
    ],
)
def test_advice(alarm: bool, nears: bool, anomalous: int, far: bool, extends: bool, advice: str) -> None:
    rate = AlarmRate(anomalous, 20, 0.01)
    assert advised(alarm, nears, rate, far=far, can_extend=extends) == advice


def test_many_defects_are_no_change_but_are_said(tmp_path: Path) -> None:
    watching = monitor(streams=["score"], false_alarm_probability=1e-4)
    watching.observe(predictions(20, seed=2))
    assert watching.state_.advice == "none"
    state = watching.observe(predictions(6, seed=3, factor=2.5))
    assert not state.alarm
    assert (state.advice, state.since) == ("look", None)
    assert state.advice_text.startswith("More images are called anomalous than the detector states")
    page = write_drift_page(watching, tmp_path / "drift.html").read_text()
    assert "<h1>More images than stated are called anomalous</h1>" in page


def test_scores_about_zero_have_no_ratio() -> None:
    def standardised(found: ead.Predictions) -> ead.Predictions:
        return replace(found, anomaly_score=(found.anomaly_score - 1) / 0.16)

    watching = ead.DriftMonitor(detector(), streams=["score"]).calibrate(standardised(predictions(60)))
    state = watching.observe(standardised(predictions(40, seed=2, factor=1.8)))
    assert state.alarm
    assert state.score_ratio is None
    assert state.advice in ("extend", "refit")


def test_a_state_is_plain_values_for_json() -> None:
    watching = monitor()
    watching.observe(predictions(30, seed=2, cell=5))
    document = json.loads(json.dumps(watching.state_.as_dict()))
    assert document["alarm"] is True
    assert document["advice_text"].startswith("The images have changed")
    assert document["alarm_rate"]["images"] == 30 - document["since"]
    assert np.shape(document["regions"]) == (4, 4)


# From images


def test_images_are_predicted_once_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemblead.networks import FeatureExtractor

    run, rows = FeatureExtractor.__call__, list[int]()

    def counted(self: FeatureExtractor, given: Any) -> Any:
        rows.append(len(given))
        return run(self, given)

    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    watching = ead.DriftMonitor(detector(), regions=2).calibrate(images(60, 1))
    assert sum(rows) == 60
    rows.clear()
    given = images(90, 2)
    given[40:] = given[40:] // 2 + 60
    state = watching.observe(given)
    assert sum(rows) == 90
    assert state.alarm
    assert state.since is not None
    assert abs(state.since - 40) <= 3
    assert len(state.moved) == 4
    again = ead.DriftMonitor(detector(), regions=2).calibrate(images(60, 1))
    again.observe(detector().predict(given, features=True))
    np.testing.assert_array_equal(again.observed_.evidence, watching.observed_.evidence)


def test_an_image_counts_once() -> None:
    watching = ead.DriftMonitor(detector()).calibrate(images(60, 1))
    first = watching.observe(images(10, 2))
    with pytest.warns(UserWarning, match="10 images were observed before"):
        second = watching.observe(images(10, 2))
    assert (second.images, second.repeated) == (10, 10)
    assert second.total == first.total
    # Of the calibration, of the fit, and twice in one batch.
    mixed = np.concatenate([images(6, 1), images(4), images(3, 3), images(3, 3)])
    with pytest.warns(UserWarning, match="13 images"):
        third = watching.observe(mixed)
    assert (third.images, third.repeated) == (13, 23)


def test_few_or_learned_images_cannot_calibrate() -> None:
    watching = ead.DriftMonitor(detector())
    with pytest.raises(ValueError, match="at least 40 are needed.*got 39"):
        watching.calibrate(images(39, 1))
    twice = np.concatenate([images(30, 1), images(30, 1)])
    with pytest.raises(ValueError, match="40 are needed different from each other.*got 30"):
        watching.calibrate(twice)
    with pytest.raises(ValueError, match=r"fitted on 1 or more of them \(image 4"):
        watching.calibrate(np.concatenate([images(50, 1)[:4], images(12)[:1], images(50, 1)[4:]]))
    assert not watching.is_calibrated
    with pytest.raises(NotFittedError, match="call calibrate first"):
        watching.observe(images(3, 2))


def test_a_detector_without_networks_has_scores_and_regions() -> None:
    plain = Epochs(batch_size=16).fit(images(20))
    with pytest.warns(UserWarning, match="Epochs runs no network"):
        watching = ead.DriftMonitor(plain).calibrate(images(50, 1))
    assert watching.streams_ == ("score", "regions")
    state = watching.observe(images(40, 2) + 15)
    assert state.alarm
    assert state.advice == "refit"  # what is trained cannot be extended
    named = ead.DriftMonitor(plain, streams=("score", "regions")).calibrate(images(50, 1))
    named.observe(images(40, 2) + 15)
    same(named, watching)
    with pytest.raises(ValueError, match="there is no .embedding. to watch"):
        ead.DriftMonitor(plain, streams=["embedding"]).calibrate(images(50, 1))


# What it refuses


@pytest.mark.parametrize("field", ["anomaly_score", "anomaly_map", "features"])
def test_nan_is_refused_and_changes_nothing(field: str) -> None:
    watching = monitor()
    watching.observe(predictions(5, seed=1))
    spoiled = predictions(6, seed=2)
    getattr(spoiled, field)[4] = np.nan
    with pytest.raises(ValueError, match=rf"{field} of 2-4.png has NaN"):
        watching.observe(spoiled)
    with pytest.raises(ValueError, match="has NaN"):
        ead.DriftMonitor(detector()).calibrate(ead.Predictions.concatenate([spoiled, predictions(60)]))
    expected = monitor()
    expected.observe(predictions(5, seed=1))
    same(watching, expected)


def test_predictions_must_carry_what_is_watched() -> None:
    watching = monitor()
    with pytest.raises(ValueError, match="carry no features.*features=True"):
        watching.observe(replace(predictions(3), features=None))
    with pytest.raises(ValueError, match="have 5 numbers, those of the calibration have 12"):
        watching.observe(predictions(3, dims=5))
    with pytest.raises(ValueError, match="regions must be at most 16"):
        monitor(regions=17)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"streams": ["scores"]}, ValueError, "did you mean score"),
        ({"streams": ()}, ValueError, "one or more of"),
        ({"streams": "score"}, ValueError, "one or more of"),
        ({"regions": 0}, ValueError, "regions must be at least 1"),
        ({"false_alarm_probability": 0}, ValueError, "between 0 and 1, got 0"),
        ({"false_alarm_probability": "1"}, TypeError, "must be a number"),
        ({"mean_run_length": 1}, ValueError, "at least 2"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ead.DriftMonitor(detector(), **options)


def test_a_detector_is_needed_and_must_be_fitted() -> None:
    with pytest.raises(TypeError, match="must be a detector, got str"):
        ead.DriftMonitor("model")  # type: ignore[arg-type]
    with pytest.raises(NotFittedError, match="is not fitted"):
        ead.DriftMonitor(ead.PatchCore("gabor", device="cpu"))


# Saved


def test_a_resumed_monitor_equals_one_that_never_stopped(tmp_path: Path) -> None:
    whole, parts = monitor(mean_run_length=500), monitor(mean_run_length=500)
    changed = ead.Predictions.concatenate([predictions(25, seed=1), predictions(25, seed=2, cell=9)])
    whole.observe(changed)
    for start in range(0, 50, 7):
        parts.observe(changed.take(range(start, min(start + 7, 50))))
        parts.save(tmp_path / "state")
        parts = ead.load(tmp_path / "state", detector=detector())
    same(parts, whole)
    assert [parts.observed_.path(place) for place in (0, 24, 25, 49)] == [
        "1-0.png",
        "1-24.png",
        "2-0.png",
        "2-24.png",
    ]


def test_a_monitor_is_bound_to_its_model(tmp_path: Path) -> None:
    watching = monitor()
    watching.observe(predictions(10, seed=1))
    watching.save(tmp_path / "state")
    detector().save(tmp_path / "model")
    same(ead.load(tmp_path / "state", detector=ead.load(tmp_path / "model")), watching)
    other = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.5, device="cpu")
    other.fit(images(12, 9))
    with pytest.raises(ValueError, match="not the model that the monitor was calibrated for"):
        ead.load(tmp_path / "state", detector=other)
    with pytest.raises(TypeError, match="which watches none"):
        ead.load(tmp_path / "model", detector=other)
    alone = ead.load(tmp_path / "state")
    assert alone.state_.images == 10
    with pytest.raises(ValueError, match="loaded without its detector"):
        alone.observe(predictions(1))
    live: Any = ead.load(tmp_path / "model")
    watching = ead.DriftMonitor(live).calibrate(images(50, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live.extend(images(3, 4))
    with pytest.raises(ValueError, match="has learned, was calibrated or got another threshold since"):
        watching.observe(images(3, 5))
    assert not watching.calibrate(images(50, 1)).observe(images(3, 5)).alarm
    with pytest.raises(NotFittedError):
        ead.DriftMonitor(detector()).save(tmp_path / "none")


def test_a_folder_that_states_what_cannot_be_is_damaged(tmp_path: Path) -> None:
    monitor().save(tmp_path / "state")

    def change(state: dict[str, Any]) -> None:
        state["kept"]["values"]["observed"]["frame"] = [0.0]

    damaged = altered(tmp_path / "state", tmp_path / "damaged", change)
    with pytest.raises(DamagedModelError, match="frame must be four numbers"):
        ead.load(damaged)


_KILLED = """
import os, signal, sys
import ensemblead as ead
from support.drift import images
model, state = sys.argv[1:]
watching = ead.load(state, detector=ead.load(model))
for number, _ in enumerate(watching.observe_batches(images(48, 2)), 1):
    watching.save(state)
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_between_batches_loses_nothing(tmp_path: Path) -> None:
    detector().save(tmp_path / "model")
    whole = ead.DriftMonitor(detector()).calibrate(images(50, 1))
    whole.save(tmp_path / "state")
    arguments = [sys.executable, "-c", _KILLED, str(tmp_path / "model"), str(tmp_path / "state")]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    ended = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert ended.returncode == -9
    found = ead.load(tmp_path / "state", detector=detector())
    assert found.state_.images == 32
    with pytest.warns(UserWarning, match="32 images were observed before"):
        found.observe(images(48, 2))
    whole.observe(images(48, 2))
    assert found.state_.repeated == 32
    found._kept = replace(found._kept, observed=replace(found.observed_, repeated=0))
    same(found, whole)


# Parts


def test_cells_are_the_largest_values_of_their_part() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 10, 7)).astype(np.float32)
    found = largest_by_cell(maps, 3).reshape(3, 3, 3)
    for row, (top, bottom) in enumerate([(0, 3), (3, 6), (6, 10)]):
        for column, (left, right) in enumerate([(0, 2), (2, 4), (4, 7)]):
            expected = maps[:, top:bottom, left:right].max(axis=(1, 2))
            np.testing.assert_array_equal(found[:, row, column], expected)


def test_distances_whiten_what_varies_and_pool_the_rest() -> None:
    rng = np.random.default_rng(0)
    known = (rng.normal(size=(400, 20)) * np.linspace(1, 9, 20)).astype(np.float32)
    known[:, 3] = known[:, 2]  # a direction that never varies
    reference = Reference.of(known)
    assert reference.directions.shape == (8, 20)
    near = reference.distances(known)
    assert 1.5 < np.median(near) < 2.2
    assert reference.distances(known[:5] + np.float32(40)).min() > near.max()
    constant = Reference.of(np.full((20, 6), 3.0, np.float32))
    np.testing.assert_array_equal(constant.distances(np.full((2, 6), 3.0, np.float32)), [0, 0])
    assert np.isfinite(constant.distances(np.full((2, 6), 4.0, np.float32))).all()
