"""PatchCore's banks of few rows: a threshold that is too high, and a warning."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from support.textures import SIDE, normal_images, with_defects

import ensemblead as ead
from ensemblead.common.warnings import ThresholdWarning

FEW = "the memory bank has only {} rows.* too high; set a larger coreset_fraction or give more images"
TRAIN = normal_images(10)


def _gabor(rows: int, images: int = len(TRAIN), **options: Any) -> ead.PatchCore:
    """With a bank of so many rows, of images of 256 patches."""
    fraction = (rows + 0.5) / (256 * images)
    return ead.PatchCore(
        "gabor", ("layer1",), image_size=None, resize=None, coreset_fraction=fraction, device="cpu", **options
    )


@pytest.mark.parametrize("rows", [10, 49])
def test_few_rows_are_warned_of(rows: int) -> None:
    with pytest.warns(UserWarning, match=FEW.format(rows)):
        detector = _gabor(rows).fit(TRAIN)
    assert len(detector.memory_bank_) == rows


def test_the_threshold_of_few_rows_misses_what_a_calibrated_one_finds() -> None:
    with pytest.warns(UserWarning, match=FEW.format(10)):
        detector = _gabor(10).fit(TRAIN)
    clean = normal_images(10, seed=5)
    blots, masks = with_defects(clean)
    faint = np.where(masks[..., None], 0.6 * clean + 0.4 * blots, clean).astype(np.uint8)
    missed = detector.predict(faint)
    assert not missed.is_anomalous.any()
    detector.calibrate(normal_images(99, seed=7))
    assert detector.predict(faint).is_anomalous.all()
    np.testing.assert_array_equal(detector.predict(faint).anomaly_score, missed.anomaly_score)


def test_enough_rows_and_all_there_are_need_no_warning() -> None:
    flat = np.stack([np.full((SIDE, SIDE, 3), grey, np.uint8) for grey in (90, 99, 108)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _gabor(50).fit(TRAIN)
        # More was asked for than there are different patches.
        assert len(_gabor(45, 3).fit(flat).memory_bank_) < 45
        # Every patch.
        tiny = ead.PatchCore(
            "gabor", ("layer3",), image_size=None, resize=16, coreset_fraction=1.0, device="cpu"
        )
        assert len(tiny.fit(TRAIN[:3]).memory_bank_) < 50


@pytest.mark.parametrize("budget", [1, 10**9])
@pytest.mark.parametrize("fused", [False, True])
def test_tiles_warn_once_and_of_the_callers_line(budget: int, fused: bool) -> None:
    member = ead.BackboneEnsemble([_gabor(30), _gabor(34)]) if fused else _gabor(30)
    tiled = ead.TiledEnsemble(member, 32, 32, image_size=64, memory_budget=budget)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiled.fit(TRAIN)
    assert len(tiled.members_) == 4
    said = [(str(warning.message), warning.filename) for warning in caught]
    assert [filename for _, filename in said] == [__file__] * (2 if fused else 1)
    for (message, _), rows in zip(said, (7, 8), strict=False):
        assert re.search(FEW.format(rows) + r".* \(so at 4 of 4 tile locations\)", message)


def test_ensembles_warn_of_the_callers_line_each_thing_once() -> None:
    ensemble = ead.BackboneEnsemble([ead.BackboneEnsemble([_gabor(10)]), _gabor(10), _gabor(12)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ensemble.fit(TRAIN)
    assert [warning.filename for warning in caught] == [__file__] * 2
    assert [str(warning.message)[:31] for warning in caught] == [
        f"the memory bank has only {rows} row" for rows in (10, 12)
    ]
    with pytest.warns(UserWarning, match="10 images cannot guarantee") as told:
        ensemble.calibrate(normal_images(10, seed=7))
    assert [warning.filename for warning in told] == [__file__]


def test_a_warning_that_is_an_error_leaves_the_detector_as_it_was() -> None:
    detector = _gabor(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ThresholdWarning)
        with pytest.raises(ThresholdWarning, match="the memory bank has only 10 rows"):
            detector.fit(TRAIN)
    assert not detector.is_fitted


def test_of_large_embeddings_fewer_images_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _gabor(50).fit(TRAIN)
    image_bytes = 256 * whole.memory_bank_.rows_.shape[1] * 4
    one_pass = "ensemblead.detectors.one_pass"
    monkeypatch.setattr(f"{one_pass}.HELD_IMAGES", 2)
    for held, positions in ((10, range(10)), (4.9, (0, 3, 6, 9)), (0, (0, 9))):
        monkeypatch.setattr(f"{one_pass}._HELD_BYTES", int(held * image_bytes))
        calibration = _gabor(50).fit(TRAIN).calibration_
        expected = whole.calibration_.scores[list(positions)]
        np.testing.assert_allclose(calibration.scores, expected, rtol=1e-5)
        assert calibration.positions == tuple(positions)
