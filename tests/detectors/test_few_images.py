"""One, two, four and eight images: all that is fitted on them, and what is said of the threshold."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.textures import normal_images

import ensemblead as ead
from ensemblead.calibration import Calibration

SIDE = 32
MANY = normal_images(8, side=SIDE)
BAD = normal_images(4, seed=3, side=SIDE)
BAD[:, 8:24:2, 8:24:2] = 255
BAD[:, 9:24:2, 9:24:2] = 0


def patchcore(**options: Any) -> ead.PatchCore:
    given: dict[str, Any] = {**NATIVE, "coreset_fraction": 1.0, "device": "cpu", **options}
    return ead.PatchCore(TinyNet(), ("second", "first"), **given)


def padim() -> ead.PaDiM:
    return ead.PaDiM(TinyNet(), ("first", "second"), num_dimensions=8, **NATIVE, device="cpu")


MAKERS: dict[str, Callable[[], Any]] = {
    "joint": patchcore,
    "augmented": lambda: patchcore(augment="rotations"),
    "per layer": lambda: patchcore(banks="per_layer", metric="cosine"),
    "PaDiM": padim,
    "ensemble": lambda: ead.BackboneEnsemble([patchcore(), padim()]),
    "tiles": lambda: ead.TiledEnsemble(patchcore(), 16, 16, image_size=SIDE),
    "shared tiles": lambda: ead.TiledEnsemble(patchcore(), 16, 16, image_size=SIDE, shared=True),
}


def fitted(make: Callable[[], Any], images: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which have tests of their own
        return make().fit(images)


@pytest.mark.parametrize("name", MAKERS)
def test_defects_score_higher_from_one_image_on(name: str) -> None:
    for count in (1, 2, 4, 8):
        found = fitted(MAKERS[name], MANY[:count])
        calibration = found.calibration_
        assert calibration.origin == ("trained_on" if count == 1 else "leave_one_out")
        assert len(calibration.scores) == count
        assert np.isfinite(found.threshold_)
        scores = found.predict(BAD).anomaly_score
        assert np.isfinite(scores).all()
        fresh = found.predict(normal_images(4, seed=9, side=SIDE)).anomaly_score
        assert ead.auroc(np.concatenate([fresh, scores]), np.repeat([0, 1], 4)) > 0.8


def test_one_image_says_nothing_of_false_alarms() -> None:
    with pytest.warns(UserWarning, match="no training image can be scored without its own"):
        found = patchcore().fit(MANY[:1])
    calibration = found.calibration_
    assert "trained_on, false alarms more than 0.5" in repr(calibration)
    assert calibration.describe_rate().startswith("the threshold is that of images which were learned")
    # As is to be expected of a threshold by the image itself.
    assert found.predict(MANY[1:]).is_anomalous.all()


def test_a_second_image_takes_the_place_of_what_says_nothing() -> None:
    found = fitted(patchcore, MANY[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.extend(MANY[1:4])
    calibration = found.calibration_
    assert (calibration.origin, len(calibration.scores)) == ("leave_one_out", 3)
    assert found.threshold_ > 0
    # A threshold of the user's stays.
    other = fitted(patchcore, MANY[:1])
    other.threshold_ = 5.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.extend(MANY[1:4])
    assert (other.threshold_, other.calibration_.origin) == (5.0, "leave_one_out")


def test_layers_of_one_image_are_scaled_by_how_much_they_vary() -> None:
    found = fitted(lambda: patchcore(banks="per_layer"), MANY[:1])
    for bank, scale in zip(found.memory_banks_, found.state_.scales, strict=True):
        assert scale == pytest.approx(float(bank.rows_.double().var(0, correction=0).sum()), rel=1e-6)
    # A layer of which a single image is known counts as one of which two are: by its own spread.
    two = fitted(lambda: patchcore(banks="per_layer"), MANY[:2])
    ratios = [one / other for one, other in zip(found.state_.scales, two.state_.scales, strict=True)]
    assert max(ratios) < 10 * min(ratios)


class TestWhatIsSaid:
    def of(self, count: int, origin: Any, **more: Any) -> Calibration:
        scores = np.linspace(1, 2, count, dtype=np.float32)
        pixels = np.zeros((count, 4), dtype=np.float32)
        return Calibration(scores, pixels, 0.0, 1.0, 0.01, origin, "", **more)

    def test_an_estimate(self) -> None:
        assert self.of(4, "leave_one_out").describe_rate() == (
            "an estimate by 4 images shows no false-alarm rate below 1 in 5, and guarantees none: calibrate "
            "with 99 fresh ones guarantees 0.01"
        )

    def test_a_guarantee(self) -> None:
        said = self.of(8, "calibrated").describe_rate()
        assert said == "8 fresh images guarantee a rate of 1 in 9 at best, 99 guarantee 0.01"

    def test_nothing_where_there_are_enough_or_the_threshold_is_given(self) -> None:
        assert self.of(99, "leave_one_out").describe_rate() == ""
        assert self.of(99, "calibrated").describe_rate() == ""
        assert self.of(4, "leave_one_out", given=3.0).describe_rate() == ""
        assert self.of(99, "trained_on").describe_rate() != ""


def test_the_bank_of_one_image_may_be_all_that_it_has() -> None:
    found = fitted(patchcore, MANY[:1])
    assert len(found.memory_bank_) == 64
    assert torch.equal(found.memory_bank_.images_, torch.zeros(64, dtype=torch.int64))
