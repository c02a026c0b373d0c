"""Detectors that are copied, fitted once more, or calibrated on repeats."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.textures import normal_images

import ensemblead as ead
from ensemblead.detectors.detector import Detector


def detector() -> Detector:
    return ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.1, batch_size=4, device="cpu")


def _pickled(detector: Detector, protocol: int) -> Detector:
    twin: Detector = pickle.loads(pickle.dumps(detector, protocol))
    return twin


WAYS = [copy.deepcopy, *(partial(_pickled, protocol=protocol) for protocol in range(6))]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_fitted_detector_predicts_the_same(way: Any) -> None:
    fitted, images = detector().fit(normal_images(6, side=48)), normal_images(2, seed=3, side=48)
    known = fitted.predict(images).anomaly_score
    np.testing.assert_array_equal(way(fitted).predict(images).anomaly_score, known)


# In inference mode


@pytest.mark.parametrize("kind", ["patchcore", "padim", "tiles"])
def test_inference_mode_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Around load, fit and predict; what was learned in it is extended outside, and the other way round."""
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu", "batch_size": 4}

    def made() -> Detector:
        if kind == "padim":
            return ead.PaDiM("gabor", ("layer1",), num_dimensions=4, **sizes)
        core = ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.1, **sizes)
        return ead.TiledEnsemble(core, 32, 32, image_size=64) if kind == "tiles" else core

    train, more, images = (normal_images(count, seed=count, side=64) for count in (8, 4, 2))
    outside = made().fit(train)
    with torch.inference_mode():
        inside = made().fit(train)
        inside.save(tmp_path / "model")
        loaded = ead.load(tmp_path / "model")
        found = [one.predict(images).anomaly_map for one in (inside, loaded, outside)]
    found += [one.predict(images).anomaly_map for one in (inside, loaded)]
    for one in found:
        np.testing.assert_array_equal(one, outside.predict(images).anomaly_map)
    with torch.inference_mode():
        outside.extend(more)
    known = outside.predict(images).anomaly_map
    for one in (inside, loaded):
        np.testing.assert_array_equal(one.extend(more).predict(images).anomaly_map, known)


# Fitted once more


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
    with pytest.raises(ValueError, match="images: all of them have been learned already"):
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


def _plain(**options: Any) -> ead.PatchCore:
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}
    return ead.PatchCore("gabor", ("layer1",), coreset_fraction=0.5, batch_size=4, **sizes, **options)


def _files(folder: Path, images: Any, damaged: int) -> list[str]:
    """The images as files, of which one is damaged."""
    paths = []
    for i, image in enumerate(images):
        path = folder / f"{i:04d}.png"
        Image.fromarray(image).save(path)
        paths.append(str(path))
    Path(paths[damaged]).write_bytes(b"no image")
    return paths


@pytest.mark.filterwarnings("ignore:left out 1 of:UserWarning")
def test_a_new_image_counts_in_the_place_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    learned, (new,) = normal_images(30, side=16), normal_images(1, seed=1, side=16)
    made = _plain().fit(learned)
    # The second of 1,000 images is none of those evenly spread.
    images = [learned[0], new, *(learned[i % 30] for i in range(998))]
    with pytest.warns(UserWarning, match="998 of the images were learned already"):
        made.extend(_files(tmp_path, images, 0), errors="skip")
    assert len(made.calibration_.scores) == 31


@pytest.mark.filterwarnings("ignore:left out 1 of:UserWarning")
@pytest.mark.filterwarnings("ignore::ensemblead.common.warnings.ThresholdWarning")
@pytest.mark.parametrize("again", [False, True])
def test_shared_tiles_of_a_single_image_after_one_that_cannot_be_read(tmp_path: Path, again: bool) -> None:
    options: dict[str, Any] = {"shared": True, "memory_budget": 1, "normalization": "none"}
    made = ead.TiledEnsemble(_plain(), 16, 16, image_size=32, **options)
    count = 0
    if again:
        count = len(made.fit(normal_images(10, side=32)).calibration_.scores)
    getattr(made, "extend" if again else "fit")(
        _files(tmp_path, normal_images(10, seed=1, side=32), 0), errors="skip"
    )
    assert len(made.calibration_.scores) == count + 1


def test_images_that_a_member_has_learned() -> None:
    images = normal_images(20, side=32)
    members = [_plain(seed=i).fit(images[10 * i : 10 * (i + 1)]) for i in (0, 1)]
    ensemble = ead.BackboneEnsemble(members)
    with pytest.raises(ValueError, match="learned already, by the detector or by a member of it"):
        ensemble.extend(images[10:])


def test_copies_of_a_known_image_are_counted() -> None:
    images, more = normal_images(8, side=16), normal_images(3, seed=1, side=16)
    made = _plain().fit(images)
    with pytest.warns(UserWarning, match="3 of the images were learned already"):
        made.extend(np.concatenate([images[:1], images[:1], images[:1], more]))


def test_an_image_takes_the_place_of_a_copy() -> None:
    images = normal_images(401, side=16)
    images[1] = images[0]
    # 400 of 401 are wanted, and as many differ.
    calibration = _plain().fit(images).calibration_
    assert len(calibration.scores) == 400
    assert calibration.positions == (0, *range(2, 401))


@pytest.mark.parametrize("kind", ["alone", "padim", "ensemble", "tiles", "shared tiles"])
def test_images_in_another_order_give_the_same_model(kind: str) -> None:
    core = _plain()
    sizes: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}
    padim = ead.PaDiM("gabor", num_dimensions=8, **sizes)
    made: dict[str, Any] = {
        "alone": lambda: core._clone(),
        "padim": lambda: padim._clone(),
        "ensemble": lambda: ead.BackboneEnsemble([core._clone(), padim._clone()]),
        "tiles": lambda: ead.TiledEnsemble(core._clone(), 16, 16, image_size=32),
        "shared tiles": lambda: ead.TiledEnsemble(core._clone(), 16, 16, image_size=32, shared=True),
    }
    images, test = normal_images(24, side=32), normal_images(4, seed=1, side=32)
    order = np.random.default_rng(0).permutation(24)
    first, second = made[kind]().fit(images), made[kind]().fit(images[order])
    np.testing.assert_allclose(
        first.predict(test).anomaly_map, second.predict(test).anomaly_map, rtol=1e-4, atol=1e-6
    )
    assert first.threshold_ == pytest.approx(second.threshold_, rel=1e-4)
    one, other = first.calibration_, second.calibration_
    np.testing.assert_allclose(np.sort(one.scores), np.sort(other.scores), rtol=1e-4)
    assert set(one.positions) == {int(order[place]) for place in other.positions}


def test_what_is_printed_is_a_line() -> None:
    made = _plain(seed=3)
    assert repr(made).startswith("PatchCore(backbone='gabor'")
    assert repr(made).endswith("seed=3), not fitted")
    assert "score=" not in repr(made)  # the default
    made.fit(normal_images(8, side=16))
    assert repr(made).endswith(f"), threshold {made.threshold_:.4g}")
    assert repr(made.calibration_) == (
        f"Calibration(threshold {made.threshold_:.4g} by 8 images, leave_one_out, false alarms about "
        f"{made.calibration_.false_alarm_rate:.2g})"
    )
    assert repr(made.predict(normal_images(2, seed=1, side=16))).startswith("Predictions(2 images, ")
    ensemble = ead.BackboneEnsemble([made, _plain(score="max")])
    assert "members=[PatchCore(" in repr(ensemble)
    assert repr(ensemble).endswith("not fitted")
    assert all("\n" not in repr(one) for one in (made, ensemble, made.calibration_))
    assert repr(object.__new__(ead.PatchCore)).endswith("not fitted")  # as a debugger may see it


def test_images_that_are_known_are_told_after_a_prediction() -> None:
    images, new = normal_images(8, side=16), normal_images(3, seed=1, side=16)
    made = _plain().fit(images)
    made.predict(np.concatenate([new[:1], images[3:5], new[1:]]))
    assert made.known_ == [1, 2]
    made.predict(new)
    assert made.known_ == []
