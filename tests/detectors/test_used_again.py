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
