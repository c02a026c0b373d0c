"""PaDiM where others use it: in tiled ensembles and in ensembles of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from support.textures import normal_images, with_defects

import ensemblead as ead

NATIVE: dict[str, Any] = {"image_size": None, "resize": None, "device": "cpu"}


def _gabor(**options: Any) -> ead.PaDiM:
    return ead.PaDiM("gabor", ("layer1", "layer2"), **(NATIVE | {"num_dimensions": 12} | options))


# Tiles


@pytest.mark.slow
def test_every_tile_location_has_its_own_gaussians(tmp_path: Path) -> None:
    images, bad = normal_images(9), with_defects(normal_images(3, seed=4))[0]
    tiled = ead.TiledEnsemble(_gabor(), 32, 32, image_size=64, normalization="none", seam_smoothing=False)
    tiled.fit(images)
    corners = [(0, 0), (0, 32), (32, 0), (32, 32)]
    found = tiled.predict(bad)
    for member, (y, x) in zip(tiled.members_, corners, strict=True):
        alone = _gabor().fit(images[:, y : y + 32, x : x + 32])
        np.testing.assert_allclose(member.calibration_.scores, alone.calibration_.scores, rtol=1e-4)
        expected = alone.predict(bad[:, y : y + 32, x : x + 32]).anomaly_map
        np.testing.assert_allclose(found.anomaly_map[:, y : y + 32, x : x + 32], expected, rtol=1e-4)
    tiled.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    np.testing.assert_array_equal(again.predict(bad).anomaly_map, found.anomaly_map)
    more = normal_images(3, seed=7)
    np.testing.assert_array_equal(again.extend(more).predict(bad).anomaly_score, _scores(tiled, more, bad))


def test_tiles_of_two_images_have_no_unit() -> None:
    images, bad = normal_images(6), with_defects(normal_images(3, seed=4))[0]
    plain = ead.TiledEnsemble(_gabor(), 32, 32, image_size=64, normalization="none")
    tiled = ead.TiledEnsemble(_gabor(), 32, 32, image_size=64)
    with pytest.warns(UserWarning, match="two training images are each scored against the other alone"):
        plain.fit(images[:2])
    with (
        pytest.warns(UserWarning, match="two training images are each scored against the other alone"),
        pytest.warns(UserWarning, match="the scores of the tiles do not vary .* two for PaDiM"),
    ):
        tiled.fit(images[:2])
    # Less the means of the locations, and not divided.
    shift = np.mean([member.calibration_.score_mean for member in tiled.members_])
    expected = plain.predict(bad).anomaly_score - shift
    np.testing.assert_allclose(tiled.predict(bad).anomaly_score, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["padim", "patchcore"])
def test_tiles_of_one_image_keep_their_unit_when_they_are_extended(method: str) -> None:
    images, bad = normal_images(12), with_defects(normal_images(3, seed=4))[0]
    patchcore = ead.PatchCore("gabor", ("layer1",), **NATIVE, coreset_fraction=1.0)
    tiled = ead.TiledEnsemble(_gabor() if method == "padim" else patchcore, 32, 32, image_size=64)
    with (
        pytest.warns(UserWarning, match="training image(, or copies of one,)? can"),
        pytest.warns(UserWarning, match="of the tiles do not vary .*, after extend too"),
    ):
        tiled.fit(images[:1])
    tiled.extend(images[1:])
    good, found = tiled.predict(normal_images(3, seed=9)), tiled.predict(bad)
    assert np.isfinite(found.anomaly_map).all()
    assert good.anomaly_score.max() < found.anomaly_score.min() < found.anomaly_map.max() < 1000


def _scores(detector: Any, more: Any, images: Any) -> Any:
    return detector.extend(more).predict(images).anomaly_score


def test_groups_of_locations_learn_the_same() -> None:
    images, bad = normal_images(6), with_defects(normal_images(2, seed=4))[0]
    small, large = (
        ead.TiledEnsemble(_gabor(), 32, 16, image_size=64, memory_budget=budget).fit(images).predict(bad)
        for budget in (1, 1 << 30)
    )
    np.testing.assert_allclose(small.anomaly_map, large.anomaly_map, rtol=1e-3, atol=1e-3)


def test_one_padim_for_all_locations() -> None:
    """An image is scored without any of its tiles; location by location is not what they are."""
    images, bad = normal_images(7), with_defects(normal_images(3, seed=4))[0]
    tiled = ead.TiledEnsemble(
        _gabor(), 32, 32, image_size=64, shared=True, normalization="none", seam_smoothing=False
    ).fit(images)
    (member,) = tiled.members_
    assert isinstance(member, ead.PaDiM)
    assert member.gaussians_.count == 28
    assert tiled.predict(bad).is_anomalous.all()

    def cut(pictures: Any) -> Any:
        return np.concatenate([pictures[:, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)])

    for left_out in (0, 6):
        alone = _gabor().fit(cut(np.delete(images, left_out, 0)))
        expected = alone.predict(cut(images[left_out : left_out + 1])).anomaly_score.mean()
        assert tiled.calibration_.scores[left_out] == pytest.approx(expected, rel=1e-3)


def test_tiles_of_an_ensemble_of_both_methods() -> None:
    images, bad = normal_images(8), with_defects(normal_images(3, seed=4))[0]
    patchcore = ead.PatchCore("gabor", ("layer1",), **NATIVE, coreset_fraction=0.1)
    member = ead.BackboneEnsemble([_gabor(), patchcore])
    tiled = ead.TiledEnsemble(member, 32, 32, image_size=64).fit(images)
    predictions = tiled.predict(bad)
    assert predictions.anomaly_map.shape == (3, 64, 64)
    assert predictions.anomaly_score.min() > tiled.predict(normal_images(4, seed=9)).anomaly_score.max()


@pytest.mark.parametrize("form", ["alone", "tiles", "backbones"])
def test_extend_ends_the_guarantee_of_calibrate(form: str) -> None:
    rng = np.random.default_rng(3)
    shape = (20, 32, 32, 3)
    base = rng.integers(60, 190, (1, *shape[1:]))
    noisy = np.clip(base + rng.integers(-40, 40, (2, *shape)), 0, 255).astype(np.uint8)
    alike = np.repeat(base, 20, 0).astype(np.uint8)
    options: dict[str, Any] = {"resize": None, "image_size": None, "device": "cpu"}
    padim = ead.PaDiM("gabor", ("layer1",), num_dimensions=4, **options)
    detector: ead.Detector = padim
    if form == "tiles":
        detector = ead.TiledEnsemble(padim, 16, 16, image_size=None)
    elif form == "backbones":
        bank = ead.PatchCore("gabor", ("layer1",), **options)
        detector = ead.BackboneEnsemble([bank, padim], weights=[0, 1])
    detector.fit(noisy[0]).calibrate(noisy[1], 0.1)
    before, threshold = detector.predict(noisy[1]).anomaly_score, detector.threshold_
    assert detector.calibration_.is_guaranteed
    with pytest.warns(UserWarning, match="the guarantee of calibrate does not hold after extend"):
        detector.extend(alike)
    after = detector.predict(noisy[1]).anomaly_score
    assert np.median(after) > np.median(before)
    assert (after > threshold).mean() > 0.1
    assert not detector.calibration_.is_guaranteed
    assert len(detector.calibration_.scores) == 21  # copies count once
