"""`holdout=`: the share of the images that is held out for the statistics, alone and in ensembles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.textures import normal_images
from support.trained import distilled, stop_at

import ensemblead as ead
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.detectors import Detector
from ensemblead.detectors.learning import learned_from
from ensemblead.detectors.one_pass import SharedPass, shared_pass
from ensemblead.detectors.parts import Run
from ensemblead.evaluation.gallery import describe_threshold
from ensemblead.images import open_images

SIDE = 32
TRAIN, FRESH = normal_images(20, side=SIDE), normal_images(3, seed=7, side=SIDE)
OPTIMISTIC = "holdout=0 trains on all images, so that the statistics and the threshold are of images that are"


pytestmark = pytest.mark.usefixtures("one_thread")


def small(**options: Any) -> ead.ReverseDistillation:
    defaults: dict[str, Any] = {"steps": 2, "batch_size": 4, "resize": None, "device": "cpu"}
    return ead.ReverseDistillation("gabor", **(defaults | options))


def patchcore() -> ead.PatchCore:
    return ead.PatchCore("gabor", ("layer2",), resize=None, coreset_fraction=0.1, device="cpu")


def read_in(detector: Detector, images: Any = TRAIN) -> list[int]:
    """How many images each training reads."""
    totals: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "embed" and done == total:
            totals.append(total)

    detector.fit(images, progress=progress)
    return totals


@pytest.mark.parametrize(("share", "positions"), [(0.1, (5, 15)), (0.25, (2, 6, 10, 14, 18)), (0.001, (10,))])
def test_the_share_is_held_out(share: float, positions: tuple[int, ...]) -> None:
    detector = distilled(holdout=share, steps=2)
    assert read_in(detector) == [20 - len(positions)]
    assert detector.calibration_.positions == positions
    assert detector.calibration_.origin == "held_out"


def test_a_tenth_is_the_default() -> None:
    one, other = distilled(steps=2).fit(TRAIN), distilled(steps=2, holdout=0.1).fit(TRAIN)
    np.testing.assert_array_equal(one.predict(FRESH).anomaly_map, other.predict(FRESH).anomaly_map)
    for method in (ead.ReverseDistillation, ead.FastFlow, ead.EfficientAD, ead.DRAEM):
        assert method(device="cpu", **({} if method is ead.DRAEM else {"backbone": "gabor"})).holdout == 0.1


def test_without_any_the_threshold_is_optimistic(tmp_path: Path) -> None:
    detector = small(holdout=0)
    with pytest.warns(ThresholdWarning, match=OPTIMISTIC):
        assert read_in(detector) == [20]
    assert detector.calibration_.origin == "trained_on"
    assert len(detector.calibration_.scores) == 20
    assert not detector.calibration_.is_guaranteed
    assert "trained_on, false alarms more than" in repr(detector.calibration_)
    found = describe_threshold(detector)
    assert found.startswith("from 20 images that were trained on, too low: false alarms more than 0.0")
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert (again.holdout, again.calibration_.origin) == (0.0, "trained_on")
    assert ead.create(detector.describe()).holdout == 0.0
    with pytest.warns(UserWarning, match="3 images cannot guarantee"):
        assert again.calibrate(FRESH).calibration_.origin == "calibrated"


EVERY: dict[str, Callable[[float], Detector]] = {
    "FastFlow": lambda share: ead.FastFlow(
        "gabor", steps=2, batch_size=2, resize=None, device="cpu", holdout=share
    ),
    "EfficientAD": lambda share: ead.EfficientAD(
        "small", "gabor", steps=1, resize=(64, 64), device="cpu", holdout=share, penalty_images=None
    ),
    "DRAEM": lambda share: ead.DRAEM(2, steps=1, batch_size=2, resize=None, device="cpu", holdout=share),
}


@pytest.mark.parametrize("method", EVERY)
def test_every_method_takes_it(method: str) -> None:
    detector = EVERY[method](0.5).fit(TRAIN[:6])
    assert detector.calibration_.positions == (1, 3, 5)
    everything = EVERY[method](0.0)
    with pytest.warns(ThresholdWarning, match=OPTIMISTIC):
        everything.fit(TRAIN[:6])
    assert everything.calibration_.origin == "trained_on"
    assert everything.calibration_.positions == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"holdout must be a share of the images.*got {value}"):
        distilled(holdout=value)


@pytest.mark.parametrize("value", [True, "0.1", None])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="holdout must be a number, got"):
        distilled(holdout=value)


@pytest.mark.parametrize("form", ["alone", "tiles"])
def test_a_share_that_leaves_nothing_is_refused(form: str) -> None:
    detector: Detector = distilled(holdout=0.98)
    if form == "tiles":
        detector = ead.TiledEnsemble(detector, 32, 32, image_size=(32, 64))
    with pytest.raises(ValueError, match=r"holdout: 0\.98 of 20 different images leaves none to train on"):
        detector.fit(TRAIN)
    assert not detector.is_fitted
    assert distilled(holdout=0.8, steps=1).fit(TRAIN).calibration_.positions[-1] == 19


def test_of_copies_the_share_is_of_different_images() -> None:
    detector = distilled(holdout=0.5, steps=1).fit(TRAIN[[0, 0, 1, 2, 3, 4]])
    assert (detector.calibration_.positions, detector.calibration_.origin) == ((2, 4), "held_out")
    with pytest.raises(ValueError, match=r"holdout: 0\.84 of 3 different images leaves none to train on"):
        distilled(holdout=0.84, steps=1).fit(TRAIN[[0, 0, 1, 2]])
    # What comes often is trained on, and does not go whole for the share.
    often = TRAIN[[0] * 9 + [1]]
    assert read_in(distilled(steps=1), often) == [9]


# Ensembles


def test_members_hold_out_the_same_images() -> None:
    ensemble = ead.BackboneEnsemble([small(holdout=0.25), patchcore(), small(holdout=0.25, seed=1)])
    ensemble.fit(TRAIN)
    assert ensemble.calibration_.origin == "held_out"
    assert {member.calibration_.positions for member in ensemble.members} == {(2, 6, 10, 14, 18)}


def test_members_of_different_shares_are_refused() -> None:
    nested = ead.TiledEnsemble(small(holdout=0.25), 32, 32, image_size=(32, 64))
    for other in (small(holdout=0.25), nested):
        ensemble = ead.BackboneEnsemble([small(), patchcore(), other])
        with pytest.raises(ValueError, match=r"holdout must be the same in all members.*got 0\.1 and 0\.25"):
            ensemble.fit(TRAIN)
        assert not any(member.is_fitted for member in ensemble.members)


def test_in_an_ensemble_the_weakest_origin_counts() -> None:
    ensemble = ead.BackboneEnsemble([small(holdout=0), patchcore()])
    with pytest.warns(ThresholdWarning, match=OPTIMISTIC):
        ensemble.fit(TRAIN)
    assert [member.calibration_.origin for member in ensemble.members] == ["trained_on", "leave_one_out"]
    assert ensemble.calibration_.origin == "trained_on"


@pytest.mark.parametrize("shared", [False, True])
def test_tiles(shared: bool, tmp_path: Path) -> None:
    def tiled(share: float) -> ead.TiledEnsemble:
        return ead.TiledEnsemble(small(holdout=share), 32, 32, image_size=(32, 64), shared=shared)

    held = tiled(0.25).fit(TRAIN)
    assert held.calibration_.positions == (2, 6, 10, 14, 18)
    everything = tiled(0)
    where = "" if shared else r".*\(so at 2 of 2 tile locations\)"
    with pytest.warns(ThresholdWarning, match=f"{OPTIMISTIC}{where}"):
        everything.fit(TRAIN)
    assert everything.calibration_.origin == "trained_on"
    everything.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert (again.member.holdout, again.calibration_.origin) == (0.0, "trained_on")


def test_tiles_of_one_image_that_is_held_out_do_not_vary() -> None:
    message = r"do not vary between the training images \(of which one is held out\).*give a larger holdout"
    with pytest.warns(UserWarning, match=message):
        ead.TiledEnsemble(small(), 32, 32, image_size=(32, 64)).fit(TRAIN[:8])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_member_fitted_apart_holds_out_the_same(share: float) -> None:
    """As an executor fits it."""
    ensemble, source = ead.BackboneEnsemble([small(holdout=share), patchcore()]), open_images(TRAIN)
    shared = shared_pass(ensemble, source, "raise")
    assert shared == SharedPass(16, None, share)
    run = Run(lambda *_: None, len(source), frozenset())
    apart = learned_from(patchcore(), source, "raise", run, shared=shared).calibrations[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        ensemble.fit(TRAIN)
    together = ensemble.members[1].calibration_
    assert apart.positions == together.positions
    np.testing.assert_array_equal(apart.scores, together.scores)


def test_a_checkpoint_of_another_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        distilled().fit(TRAIN, progress=stop_at(1), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"with other holdout \(0\.1 there, 0\.25 here\)"):
        distilled(holdout=0.25).fit(TRAIN, checkpoint=tmp_path / "c")
