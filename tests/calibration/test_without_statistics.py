"""Detectors whose threshold came from elsewhere, or that have none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.calibration import Calibration
from ensemblead.common.errors import NotFittedError
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.evaluation.gallery import color_scale

NORMAL = normal_images(8)
BAD, MASKS = with_defects(normal_images(4, seed=5))
COMMON = {"resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}


def detector(threshold: float | None, layer: str = "layer1") -> ead.PatchCore:
    fitted = ead.PatchCore("gabor", (layer,), **COMMON).fit(NORMAL)
    fitted._accept([Calibration.without_images(threshold)])
    return fitted


def test_without_a_threshold_nothing_is_anomalous(tmp_path: Path) -> None:
    known = detector(None)
    assert known.threshold_ == math.inf
    assert repr(known).endswith(", no threshold")
    assert not known.predict(BAD).is_anomalous.any()
    known.save(tmp_path / "model")
    loaded = ead.load(tmp_path / "model")
    assert loaded.threshold_ == math.inf
    np.testing.assert_array_equal(loaded.predict(BAD).anomaly_score, known.predict(BAD).anomaly_score)


def test_a_given_threshold_is_the_threshold(tmp_path: Path) -> None:
    scores = detector(None).predict(BAD).anomaly_score
    middle = float(np.sort(scores)[1:3].mean())
    known = detector(middle)
    known.save(tmp_path / "model")
    for one in (known, ead.load(tmp_path / "model")):
        assert one.threshold_ == middle
        assert math.isnan(one.calibration_.false_alarm_rate)
        np.testing.assert_array_equal(one.predict(BAD).is_anomalous, scores > middle)


def test_calibrate_gives_statistics_and_extend_keeps_what_was_given() -> None:
    more = normal_images(6, seed=9)
    with pytest.warns(ThresholdWarning, match="was given and stays, though the scores .* have changed"):
        assert detector(3.5).extend(more).threshold_ == 3.5
    extended = detector(None).extend(more)
    assert extended.calibration_.origin == "leave_one_out"
    calibrated = detector(3.5).calibrate(normal_images(20, seed=3), 0.1)
    assert calibrated.calibration_.origin == "calibrated"
    assert calibrated.threshold_ != 3.5


def test_ensembles_of_members_without_statistics() -> None:
    members = [detector(None), detector(None, "layer2")]
    for fusion in ("calibrated", "max", "rank"):
        with pytest.raises(NotFittedError, match="needs statistics of normal images"):
            ead.BackboneEnsemble(members, fusion=fusion).predict(BAD)
    scores = [member.predict(BAD).anomaly_score for member in members]
    mean = ead.BackboneEnsemble(members, fusion="mean").predict(BAD)
    np.testing.assert_allclose(mean.anomaly_score, np.mean(scores, axis=0), rtol=1e-6)
    scaled = ead.BackboneEnsemble(members, fusion="minmax").predict_set(BAD)
    parts = [(one - one.min()) / (one.max() - one.min()) for one in scores]
    np.testing.assert_allclose(scaled.anomaly_score, np.mean(parts, axis=0), rtol=1e-5)
    assert not mean.is_anomalous.any()
    assert not scaled.is_anomalous.any()


def test_contradictions_are_refused() -> None:
    known = Calibration.without_images(1.0)
    with pytest.raises(ValueError, match="given must be finite"):
        replace(known, given=math.inf)
    with pytest.raises(ValueError, match="scores must be empty with the origin 'given', got 1"):
        replace(known, scores=np.ones(1, np.float32))
    with pytest.raises(ValueError, match="of at least one image"):
        replace(known, origin="calibrated")
    assert not bool(known.is_anomalous(torch.tensor([1.0])))


def test_colours_without_statistics_need_a_scale() -> None:
    with pytest.raises(
        ValueError, match=r"give a scale \(--scale LOW HIGH, such as --scale 0 3.5, up to the"
    ):
        color_scale(detector(3.5))
    with pytest.raises(ValueError, match=r"give a scale \(--scale LOW HIGH\)"):
        color_scale(detector(None))


def test_evaluation_knows_no_verdict_without_a_threshold(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for place, images in (("good", NORMAL[:3]), ("bad", BAD)):
        (tmp_path / place).mkdir()
        for i, pixels in enumerate(images):
            image.fromarray(pixels).save(tmp_path / place / f"{i}.png")
    data = ead.Folder(tmp_path, normal="good", anomalous="bad", holdout=0.34)
    with pytest.warns(UserWarning, match="the detector has no threshold: nothing is called"):
        report = ead.evaluate(detector(None), data)
    assert math.isnan(report.rows[0].threshold)
    report.to_html(tmp_path / "report.html")
