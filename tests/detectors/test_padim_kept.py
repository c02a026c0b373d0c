"""PaDiM: what it refuses, and that it is the same when saved, cloned and in an ensemble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks import NATIVE, TinyNet
from support.padim import BAD, GRID, gabor, tiny
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import (
    BackboneUnavailableError,
    DamagedModelError,
    IllConditionedError,
    NonFiniteFeaturesError,
    NotFittedError,
)

# Misuse


def test_predict_before_fit() -> None:
    detector = gabor()
    for call in (detector.predict, detector.predict_batches, detector.extend, detector.calibrate):
        with pytest.raises(NotFittedError, match="this PaDiM is not fitted; call fit first"):
            call(normal_images(1))
    with pytest.raises(NotFittedError, match="cannot save"):
        detector.save("never-written")
    for name in ("threshold_", "gaussians_", "calibration_"):
        with pytest.raises(NotFittedError, match="this PaDiM is not fitted"):
            getattr(detector, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_dimensions": 0}, "num_dimensions must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"device": "abacus"}, "device must be \"auto\" or a torch device, got 'abacus'"),
        ({"precision": "int8"}, "precision must be"),
        ({"resize": (40, 40), "image_size": 64}, "crop"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gabor(**options)


@pytest.mark.parametrize("name", ["num_dimensions", "batch_size", "seed"])
@pytest.mark.parametrize("value", [2.5, True, "3"])
def test_numbers_that_count_are_whole(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
        gabor(**{name: value})


def test_compile_is_a_bool() -> None:
    with pytest.raises(TypeError, match="compile must be a bool, got 1"):
        gabor(compile=1)


def test_more_dimensions_than_channels() -> None:
    with pytest.raises(ValueError, match=r"num_dimensions is 25, .* only 24 channels together \(10 \+ 14\)"):
        tiny(num_dimensions=25).fit(normal_images(2))
    assert tiny(num_dimensions=None).fit(normal_images(3)).gaussians_.num_dimensions == 24


def test_layers_that_are_wrong() -> None:
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        ead.PaDiM("gabor", ("layer9",), **NATIVE).fit(normal_images(1))
    with pytest.raises(TypeError, match='layers must be "auto" or a sequence of names'):
        ead.PaDiM("gabor", "layer1")


def test_overflow_in_half_precision_is_an_error() -> None:
    net = TinyNet()
    net.first.weight.data *= 1e6
    detector = ead.PaDiM(net, ("first",), **NATIVE, num_dimensions=5, precision="float16", device="cpu")
    with pytest.raises(NonFiniteFeaturesError, match=r"TinyNet .* in float16; use precision='float32'"):
        detector.fit(normal_images(2))
    assert not detector.is_fitted


def test_features_too_large_for_the_covariances() -> None:
    net = TinyNet()
    net.first.weight.data *= 1e7
    detector = ead.PaDiM(net, ("first",), **NATIVE, num_dimensions=10, device="cpu")
    with pytest.raises(IllConditionedError, match=r"not positive definite in float32: variances go up to"):
        detector.fit(normal_images(3))
    assert not detector.is_fitted


# Saved, cloned, in ensembles


@pytest.mark.parametrize("num_dimensions", [7, 61])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, num_dimensions: int) -> None:
    detector = gabor(seed=2, num_dimensions=num_dimensions).fit(normal_images(8))
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m")
    assert isinstance(again, ead.PaDiM)
    assert again.parameters() == detector.parameters()
    expected, found = detector.predict(BAD), again.predict(BAD)
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
    np.testing.assert_array_equal(found.is_anomalous, expected.is_anomalous)
    manifest = json.loads((tmp_path / "m" / "model.json").read_text())
    assert manifest["class"] == "PaDiM"
    learned = manifest["state"]["learned"]["values"]
    assert (learned["count"], learned["grid"]) == (8, list(GRID))
    # Means, and triangles without the zeros above them.
    values = 8 * num_dimensions + 4 * num_dimensions * (num_dimensions + 1) / 2
    assert len((tmp_path / "m" / "learned.safetensors").read_bytes()) == pytest.approx(256 * values, rel=0.05)


def test_a_module_must_be_brought_along(tmp_path: Path) -> None:
    detector = tiny().fit(normal_images(4))
    detector.save(tmp_path / "m")
    with pytest.raises(BackboneUnavailableError, match=r"load\(.*backbone=module\)"):
        ead.load(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=TinyNet(7))
    np.testing.assert_array_equal(again.predict(BAD).anomaly_map, detector.predict(BAD).anomaly_map)


def test_damaged_gaussians_are_refused(tmp_path: Path) -> None:
    fitted = gabor().fit(normal_images(12))
    fitted.save(tmp_path / "m")
    path = tmp_path / "m" / "learned.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedModelError, match=r"learned\.safetensors was altered"):
        ead.load(tmp_path / "m")


def test_a_clone_is_unfitted_and_shares_the_network() -> None:
    detector = tiny().fit(normal_images(4))
    twin = detector._clone()
    assert not twin.is_fitted
    assert twin.parameters() == detector.parameters()
    assert twin.network_.module is detector.network_.module
    expected = detector.predict(BAD).anomaly_map
    np.testing.assert_array_equal(twin.fit(normal_images(4)).predict(BAD).anomaly_map, expected)


def test_with_patchcore_in_one_ensemble(tmp_path: Path) -> None:
    """One pass of the network serves both, and both learn what they would alone."""

    class Counting(TinyNet):
        passes = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            type(self).passes += 1
            return super().forward(images)

    net = Counting()
    padim = ead.PaDiM(net, ("first", "second"), **NATIVE, num_dimensions=9, device="cpu")
    patchcore = ead.PatchCore(net, ("second",), **NATIVE, coreset_fraction=0.05, device="cpu")
    ensemble = ead.BackboneEnsemble([padim, patchcore]).fit(normal_images(10))
    assert Counting.passes == 1
    alone = tiny().fit(normal_images(10))
    np.testing.assert_allclose(padim.calibration_.scores, alone.calibration_.scores, rtol=1e-4)
    found = ensemble.predict(BAD)
    assert found.is_anomalous.all()
    parts = [member.predict(BAD).anomaly_score for member in (padim, patchcore)]
    expected = sum(
        (part - c.score_mean) / c.score_std / 2
        for part, c in zip(parts, (padim.calibration_, patchcore.calibration_), strict=True)
    )
    np.testing.assert_allclose(found.anomaly_score, expected, rtol=1e-4)
    ensemble.save(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=[TinyNet(1), TinyNet(2)])
    np.testing.assert_array_equal(again.predict(BAD).anomaly_map, found.anomaly_map)
