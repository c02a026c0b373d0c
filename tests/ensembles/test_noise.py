"""Networks whose features depend a little on the batch: no verdict, unit or threshold may rest on that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.networks import NATIVE, NoisyNet
from support.tiles import BAD, GOOD, SIDE, TRAIN, tiled

import ensemblead as ead

PRECISIONS = ["float32", "bfloat16"]


def patchcore(seed: int = 0, **options: Any) -> ead.PatchCore:
    defaults: dict[str, Any] = {**NATIVE, "coreset_fraction": 0.1, "batch_size": 4, "device": "cpu"}
    return ead.PatchCore(NoisyNet(seed), ("first", "second"), **(defaults | options))


def padim(**options: Any) -> ead.PaDiM:
    defaults: dict[str, Any] = {**NATIVE, "num_dimensions": 4, "batch_size": 4, "device": "cpu"}
    return ead.PaDiM(NoisyNet(), ("first", "second"), **(defaults | options))


DETECTORS: dict[str, Callable[..., ead.Detector]] = {
    "max": patchcore,
    "topk": lambda **options: patchcore(score="topk", **options),
    "reweighted": lambda **options: patchcore(score="reweighted", **options),
    "several neighbours": lambda **options: patchcore(num_neighbors=3, **options),
    "padim": padim,
    "fused": lambda **options: ead.BackboneEnsemble([patchcore(**options), patchcore(1, **options)]),
    "largest": lambda **options: ead.BackboneEnsemble(
        [padim(**options), patchcore(1, **options)], fusion="max"
    ),
    "ranks": lambda **options: ead.BackboneEnsemble(
        [padim(**options), patchcore(1, **options)], fusion="rank"
    ),
}


@contextmanager
def half_precision(precision: str) -> Iterator[None]:
    """In half precision small networks say little that is more than noise, and a warning may say so."""
    with warnings.catch_warnings():
        if precision != "float32":
            warnings.filterwarnings("ignore", ".* do not vary between the training images", UserWarning)
        yield


def batched(detector: ead.Detector, images: Any, size: int) -> Any:
    """Verdicts on images that come in batches of `size`."""
    parts = [detector.predict(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate([part.is_anomalous for part in parts])


def test_the_noise_is_there() -> None:
    detector = patchcore().fit(TRAIN)
    whole, single = detector.predict(GOOD), detector.predict(GOOD[1:2])
    assert whole.anomaly_score[1] != single.anomaly_score[0]
    np.testing.assert_allclose(whole.anomaly_score[1], single.anomaly_score[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("kind", DETECTORS)
def test_an_image_alone_and_in_a_batch_gets_the_same_verdict(kind: str, tiles: bool, precision: str) -> None:
    member = DETECTORS[kind](precision=precision)
    with half_precision(precision):
        detector = (tiled(member, 24, 24) if tiles else member).fit(TRAIN)
    # The training images are among them, one of which may have set the threshold.
    images = np.concatenate([TRAIN, GOOD, BAD])
    expected = batched(detector, images, len(images))
    if precision == "float32" and kind not in ("padim", "ranks"):  # which need more images for that
        assert expected[-len(BAD) :].all()
    for size in (1, 3):
        np.testing.assert_array_equal(batched(detector, images, size), expected)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("kind", DETECTORS)
def test_copies_of_one_image_are_normal_in_every_batch(kind: str, tiles: bool, precision: str) -> None:
    copies = np.repeat(TRAIN[:1], 5, 0)
    member = DETECTORS[kind](precision=precision)
    detector = tiled(member, 24, 24) if tiles else member
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector.fit(copies)
    messages = [str(warning.message) for warning in caught]
    assert any("training image" in message and "scored without it" in message for message in messages)
    if tiles:
        assert any("do not vary between the training images" in message for message in messages)
    for size in (1, 2, 3, 5):
        assert not batched(detector, copies, size).any()
    if precision == "float32" and kind != "ranks":
        assert detector.predict(BAD).is_anomalous.all()
    assert np.isfinite(detector.predict(BAD).anomaly_map).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", DETECTORS)
def test_a_corner_where_nothing_varies_does_not_shout(kind: str, precision: str) -> None:
    def framed(images: Any) -> Any:
        images = images.copy()
        images[:, :24, :24] = 200
        return images

    ensemble = tiled(DETECTORS[kind](precision=precision), 24, 24)
    with half_precision(precision):
        ensemble.fit(framed(TRAIN))
    calibrations = [member.calibration_ for member in ensemble.members_]
    if kind not in ("fused", "largest", "ranks"):  # whose unit is the deviation itself
        assert calibrations[0].score_std <= calibrations[0].rounding
        assert calibrations[0].score_std < min(c.score_std for c in calibrations[1:])
    assert len(ensemble.calibration_.scores) == len(TRAIN)
    calm = framed(GOOD)
    found = ensemble.predict(calm)
    assert np.isfinite(found.anomaly_map).all()
    noisy = calm.copy()
    noisy[:, :24, :24] += np.random.default_rng(0).integers(0, 2, (3, 24, 24, 3), dtype=np.uint8)
    assert ensemble.predict(noisy).anomaly_score.max() < found.anomaly_score.max() + 1
    noisy[:, 6:14, 6:14] = 20
    if precision == "float32" and kind != "ranks":  # a rank in one of four places says little
        assert ensemble.predict(noisy).is_anomalous.all()


def test_equal_patches_of_several_images_stand_in_for_each_other() -> None:
    """The coreset takes one of equal patches; without its image, the others have it all the same."""
    plain = np.full((6, SIDE, SIDE, 3), 90, dtype=np.uint8)
    plain[np.arange(6), 40, 40] = np.arange(6)[:, None] * 40  # no two are equal
    detector = patchcore(coreset_fraction=1.0).fit(plain)
    calibration = detector.calibration_
    grids = calibration.pixels.reshape(6, 32, 32)
    assert len(calibration.scores) == 6
    assert grids[:, :16, :16].max() <= calibration.rounding
    assert calibration.score_mean > 100 * calibration.rounding
