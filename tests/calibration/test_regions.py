"""The pixel threshold: how many false regions normal images have above it, and where defects come back."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
import torch
from scipy import ndimage
from support.registry import separate_registry
from support.textures import normal_images

import ensemblead as ead
from ensemblead.calibration import NormalSample
from ensemblead.calibration.regions import cell_peaks, region_tops
from ensemblead.common.objects import pixel_scale
from ensemblead.common.regions import label_regions


def naive_tops(cells: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By counting regions at every value, from the highest on."""
    side = round(cells.shape[1] ** 0.5)
    level = float(np.median(cells.max(axis=1)))
    found = []
    for one in cells:
        most = 0
        for value in np.unique(one)[::-1]:
            count = label_regions(one.reshape(side, side) >= value)[1]
            found += [value] * (count - most if most else min(count, 1)) if value > level or not most else []
            most = max(most, count)
    return np.sort(found)[-len(cells) :]


class TestTops:
    def test_against_counting(self) -> None:
        rng = np.random.default_rng(0)
        for trial in range(40):
            cells = rng.random((rng.integers(1, 9), rng.integers(1, 9) ** 2))
            if trial % 2:  # no two cells alike, or many
                cells = np.round(cells, 2)
                cells[:, 0] = rng.random(len(cells)) + 1.0  # the maximum of each image stands alone
            np.testing.assert_allclose(region_tops(cells.astype(np.float32)), naive_tops(np.float32(cells)))

    def test_equal_values(self) -> None:
        assert region_tops(np.zeros((4, 9), np.float32)).tolist() == [0.0] * 4
        two = np.zeros((1, 9), np.float32)
        two[0, [0, 8]] = 1.0  # two regions of one height; one image gives one value
        assert region_tops(two).tolist() == [1.0]
        both = np.concatenate([two, np.full((1, 9), 0.5, np.float32)])
        assert region_tops(both).tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("size", [(1, 1), (5, 40), (32, 32), (70, 33)])
    def test_peaks_are_the_largest_values(self, size: tuple[int, int]) -> None:
        maps = np.random.default_rng(0).random((3, *size), dtype=np.float32)
        peaks = cell_peaks(torch.from_numpy(maps), 32).numpy()
        assert peaks.shape == (3, 1024)
        np.testing.assert_array_equal(peaks.max(axis=1), maps.max(axis=(1, 2)))
        above = (maps > 0.9).any(axis=(1, 2))
        np.testing.assert_array_equal((peaks > 0.9).any(axis=1), above)


def fields(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Smooth random maps whose strength differs from one to the next."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((count, 32, 32)), (0, 1, 1))
    maps = ndimage.gaussian_filter(ndimage.zoom(noise, (1, 3, 3), order=1), (0, 2, 2))
    return np.asarray(maps * rng.lognormal(0, 0.2, (count, 1, 1)), np.float32)


def calibration_of(maps: npt.NDArray[np.float32], origin: Any) -> Any:
    sample = NormalSample()
    values = torch.from_numpy(maps)
    sample.add(values.flatten(1).amax(1), values)
    return sample.calibration(0.01, origin, "")


class TestRate:
    @pytest.mark.parametrize("rate", [0.02, 0.1])
    @pytest.mark.parametrize("origin", ["calibrated", "leave_one_out"])
    def test_it_holds_on_fresh_images(self, rate: float, origin: str) -> None:
        known, fresh = fields(300, 1), fields(400, 2)
        threshold = calibration_of(known, origin).pixel_threshold(rate)
        counts = np.array([label_regions(one > threshold)[1] for one in fresh])
        # Both sets are samples: four standard errors of the counts, and of as many known ones.
        error = counts.std() * (1 / len(fresh) + 1 / len(known)) ** 0.5
        assert 0 < counts.mean() < rate + 4 * error
        assert counts.mean() > rate - 4 * max(error, (rate / 300) ** 0.5)

    def test_the_promise_on_images_is_conformal(self) -> None:
        """Above the threshold lie no more of the known images' maxima than the rank allows."""
        known = fields(99, 3)
        calibration = calibration_of(known, "calibrated")
        for rate in (0.01, 0.05, 0.5):
            above = (known.max(axis=(1, 2)) > calibration.pixel_threshold(rate)).sum()
            assert above <= rate * 100 - 1 + 1e-9
            assert calibration.false_region_rate(rate) == rate
        assert calibration.false_region_rate(0.001) == 0.01  # too few images: the largest value

    @pytest.mark.parametrize(
        ("rate", "error"), [(0, ValueError), (0.6, ValueError), (float("nan"), ValueError), ("a", TypeError)]
    )
    def test_rates_that_are_none(self, rate: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="false_regions must be"):
            calibration_of(fields(3, 0), "calibrated").pixel_threshold(rate)


def painted(images: npt.NDArray[np.uint8], box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """Images with a bright rectangle (x, y, width, height)."""
    x, y, width, height = box
    changed = images.copy()
    changed[:, y : y + height, x : x + width] = 250
    return changed


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example of a method, whose maps are as fine as its patches."""
    separate_registry(monkeypatch)
    path = Path(__file__).parents[2] / "examples/mean_colour.py"
    spec = importlib.util.spec_from_file_location("mean_colour", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mean_colour", module)
    spec.loader.exec_module(module)
    return lambda patch_size=4, **more: module.MeanColour(
        patch_size, device="cpu", **{"resize": None, **more}
    )


def detector_of(kind: str, colour: Any) -> Any:
    if kind == "tiles":
        return ead.TiledEnsemble(colour(), 48, 24, image_size=96)
    if kind == "ensemble":
        return ead.BackboneEnsemble([colour(4), colour(6)])
    sizes = {"auto": ("auto", None), "crop": ((96, 64), (80, 48)), "squashed": ((64, 96), None)}
    resize, crop = sizes[kind]
    return colour(resize=resize, image_size=crop)


class TestDetectors:
    @pytest.mark.parametrize("kind", ["auto", "crop", "squashed", "tiles", "ensemble"])
    def test_a_painted_square_comes_back_at_its_place(self, kind: str, colour: Any, tmp_path: Path) -> None:
        good = normal_images(8, side=192)[:, :, :128]
        box = (40, 60, 40, 60)
        detector = detector_of(kind, colour).fit(good[:6])
        found = detector.predict(painted(good[6:7], box))
        assert found.sizes == [(192, 128)]
        # At half of the square's height a blur leaves the sides where they are.
        normal = detector.predict(good[7:]).anomaly_map.mean()
        largest = max(found.objects(float(normal + found.anomaly_map.max()) / 2), key=lambda one: one.area)
        x, y, width, height = largest.box
        # Two pixels of the map, and half a patch, which lies partly on the square.
        pixel = pixel_scale(detector.geometry, (192, 128), found.anomaly_map.shape[1:])
        assert np.abs(np.array([x - 40, x + width - 80]) / pixel[0]).max() <= 4
        assert np.abs(np.array([y - 60, y + height - 120]) / pixel[1]).max() <= 4
        assert abs(x + width / 2 - 60) <= 2 * pixel[0]
        assert abs(y + height / 2 - 90) <= 2 * pixel[1]
        (whole,) = (one for one in found.objects() if one.maximum == largest.maximum)
        assert whole.area >= largest.area
        detector.save(tmp_path / "model")
        loaded = ead.load(tmp_path / "model").predict(painted(good[6:7], box))
        assert loaded.pixel_threshold == found.pixel_threshold == detector.calibration_.pixel_threshold()

    def test_calibrate_and_extend_keep_statistics_of_regions(self, colour: Any) -> None:
        images = normal_images(30, side=32)
        detector = colour().fit(images[:10])
        assert detector.calibration_.peaks.shape == (10, 1024)
        np.testing.assert_array_equal(detector.calibration_.peaks.max(axis=1), detector.calibration_.scores)
        detector.extend(images[10:16])
        assert detector.calibration_.peaks.shape == (16, 1024)
        detector.calibrate(images[16:], 0.1)
        found = detector.predict(images[16:])
        assert found.pixel_threshold == detector.calibration_.pixel_threshold()
        assert found.objects() == []  # 14 images and a rate of 0.05: the threshold is their largest value
        assert detector.calibration_.false_region_rate() == pytest.approx(1 / 15)

    def test_tile_locations_keep_none(self, colour: Any) -> None:
        ensemble = ead.TiledEnsemble(colour(), 32, 32, image_size=64).fit(normal_images(4))
        assert ensemble.calibration_.knows_regions
        assert not any(member.calibration_.knows_regions for member in ensemble.members_)

    @pytest.mark.parametrize("fusion", ["calibrated", "max", "mean", "rank"])
    def test_fused_peaks_bound_the_fused_maps(self, fusion: str, colour: Any) -> None:
        images = normal_images(18)
        ensemble = ead.BackboneEnsemble([colour(4), colour(8)], fusion=fusion).fit(images[:6])
        ensemble.calibrate(images[6:], 0.1)
        bound = ensemble.calibration_.peaks.max(axis=1)
        maps = ensemble.predict(images[6:]).anomaly_map
        exact = maps.max(axis=(1, 2))
        assert (bound >= exact - 1e-5 * np.abs(exact)).all()
        assert (bound - exact).mean() < 0.5 * maps.std()

    def test_members_that_were_fitted_apart_have_none(self, colour: Any) -> None:
        images = normal_images(24, side=32)
        ensemble = ead.BackboneEnsemble([colour().fit(images[i : i + 6]) for i in (0, 6)])
        found = ensemble.predict(images[:1])
        assert found.pixel_threshold is None
        with pytest.raises(ead.EnsembleADError, match="calibrate"):
            found.objects()
        with pytest.raises(ead.EnsembleADError, match="calibrate"):
            ensemble.calibration_.pixel_threshold()
        ensemble.calibrate(images[18:], 0.2)
        assert ensemble.predict(images[:1]).pixel_threshold is not None

    def test_models_of_before_have_none(self) -> None:
        loaded = ead.load(Path(__file__).parents[1] / "saved_models/format1/patchcore")
        assert not loaded.calibration_.knows_regions
        assert loaded.threshold_ > 0

    def test_statistics_without_regions_are_saved_as_such(self, colour: Any, tmp_path: Path) -> None:
        detector = colour().fit(normal_images(4, side=32))
        detector._accept([replace(detector.calibration_, peaks=None)])
        detector.save(tmp_path / "model")
        loaded = ead.load(tmp_path / "model")
        assert not loaded.calibration_.knows_regions
        loaded.extend(normal_images(3, seed=1, side=32))
        assert not loaded.calibration_.knows_regions  # of some images alone nothing follows
        loaded.calibrate(normal_images(9, seed=2, side=32), 0.1)
        assert loaded.calibration_.knows_regions

    def test_peaks_that_are_none(self) -> None:
        calibration = calibration_of(fields(3, 0), "calibrated")
        for wrong in (
            calibration.peaks[:2],
            calibration.peaks.astype(np.float64),
            calibration.peaks * np.nan,
        ):
            with pytest.raises(ValueError, match="peaks must be finite float32"):
                replace(calibration, peaks=wrong)
