"""Detectors that are copied, fitted once more, or calibrated on repeats."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from support.textures import normal_images

import ensemblead as ead
from ensemblead.detectors.detector import Detector


def detector() -> Detector:
    return ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.1, batch_size=4, device="cpu")


@pytest.mark.parametrize("way", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_fitted_detector_predicts_the_same(way: Any) -> None:
    fitted, images = detector().fit(normal_images(6, side=48)), normal_images(2, seed=3, side=48)
    known = fitted.predict(images).anomaly_score
    np.testing.assert_array_equal(way(fitted).predict(images).anomaly_score, known)


@pytest.mark.parametrize("kind", ["alone", "ensemble"])
def test_a_second_fit_decides_the_size_anew(kind: str) -> None:
    square = normal_images(6, side=96)
    wide = np.concatenate([square, normal_images(6, seed=1, side=96)], axis=2)
    made = detector() if kind == "alone" else ead.BackboneEnsemble([detector()])
    once = made.fit(wide).predict(wide).anomaly_map
    again = made.fit(square).fit(wide).predict(wide).anomaly_map
    np.testing.assert_array_equal(again, once)


def test_a_batch_of_repeats_is_calibrated_on() -> None:
    fitted, fresh = detector().fit(normal_images(6, side=48)), normal_images(20, seed=2, side=48)
    fitted.calibrate(np.concatenate([fresh, fresh]), 0.1)
    assert len(fitted.calibration_.scores) == len(fresh)


@pytest.mark.parametrize("kind", ["alone", "padim", "ensemble", "tiles", "shared tiles"])
def test_images_that_are_known_say_nothing_new(kind: str) -> None:
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}
    core = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.5, batch_size=4, **sizes)
    made: Detector = core
    if kind == "padim":
        made = ead.PaDiM("gabor", num_dimensions=8, **sizes)
    elif kind == "ensemble":
        made = ead.BackboneEnsemble([core])
    elif "tiles" in kind:
        made = ead.TiledEnsemble(core, 32, 32, image_size=64, shared="shared" in kind)
    images, more = normal_images(8, side=64), normal_images(3, seed=1, side=64)
    made.fit(images)
    before = made.calibration_
    with pytest.raises(ValueError, match="images: the detector has learned all of them already"):
        made.extend(images[2:5])
    assert made.calibration_ is before
    with pytest.warns(UserWarning, match="6 of the images were learned already"):
        made.extend(np.concatenate([images[:6], more]))
    after = made.calibration_.scores
    assert len(after) == 11
    if kind in ("alone", "padim"):  # ensembles have units that go with all their statistics
        np.testing.assert_array_equal(after[:8], before.scores)
        assert after[8:].min() > 0.1 * before.scores.min()


def test_more_known_images_than_are_sampled() -> None:
    images, more = normal_images(500, side=16), normal_images(3, seed=1, side=16)
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}
    made = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.5, **sizes).fit(images)
    with pytest.warns(UserWarning, match="500 of the images were learned already"):
        made.extend(np.concatenate([images, more]))
    assert len(made.calibration_.scores) == 403
