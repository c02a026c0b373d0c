"""PatchCore's banks of few rows: a threshold that is too high, and a warning."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from textures import SIDE, normal_images, with_defects

import ensemblead as ead

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
    flat = np.full((3, SIDE, SIDE, 3), 99, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _gabor(50).fit(TRAIN)
        # More was asked for than there are different patches.
        assert len(_gabor(45, 3).fit(flat).memory_bank_) < 45
        # Every patch.
        tiny = ead.PatchCore("gabor", ("layer3",), image_size=None, resize=16, coreset_fraction=1.0)
        assert len(tiny.fit(TRAIN[:3]).memory_bank_) < 50


def test_tiles_warn_once() -> None:
    tiled = ead.TiledEnsemble(_gabor(30), 32, 32, image_size=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        tiled.fit(TRAIN)
    assert len(tiled.members_) == 4
    assert [str(warning.message)[:29] for warning in caught] == ["the memory bank has only 7 ro"]
