"""Saved detectors whose manifests state what no detector can have: damaged, whatever options they are loaded
with. Devices and published networks that are not to be had here are no damage.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tampering import altered, set_tensors
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError

SMALL: dict[str, Any] = {"image_size": None, "resize": None, "batch_size": 4, "device": "cpu"}
PATCHCORE: dict[str, Any] = {**SMALL, "coreset_fraction": 0.3}


def _patchcore() -> ead.PatchCore:
    return ead.PatchCore("gabor", ("layer1",), **PATCHCORE)


def _padim(**options: Any) -> ead.PaDiM:
    return ead.PaDiM("gabor", ("layer1",), **(SMALL | {"num_dimensions": 3} | options))


LEARNED, STATISTICS = ("learned", "values"), ("calibration", "values")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders, read and never written."""
    folder, images = tmp_path_factory.mktemp("saved"), normal_images(4)
    detectors: dict[str, Any] = {
        "patchcore": _patchcore(),
        "padim": _padim(),
        "ensemble": ead.BackboneEnsemble([_patchcore(), _padim()]),
        "tiled": ead.TiledEnsemble(_patchcore(), 32, 32, image_size=64),
    }
    for name, detector in detectors.items():
        detector.fit(images).save(folder / name)
    return {name: folder / name for name in detectors}


def _with(state: dict[str, Any], *keys: str, value: Any) -> None:
    for key in keys[:-1]:
        state = state[key]
    assert keys[-1] in {*state, "median"}
    state[keys[-1]] = value


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}])
@pytest.mark.parametrize(
    ("model", "keys", "value", "message"),
    [
        ("patchcore", ("parameters", "image_size"), [64, 0], "crop must be a positive int"),
        ("patchcore", ("parameters", "image_size"), "64", "crop must be an int"),
        ("patchcore", ("parameters", "resize"), [1, 2, 3], "resize must be a positive int"),
        ("patchcore", ("parameters", "batch_size"), 0, "batch_size must be at least 1"),
        ("patchcore", ("parameters", "precision"), "float3", "precision must be"),
        ("patchcore", ("parameters", "score"), "most", "score must be one of"),
        ("patchcore", ("parameters", "coreset_fraction"), 2, "coreset_fraction must be in"),
        ("patchcore", ("parameters", "index"), "tree", "index must be one of"),
        ("padim", ("parameters", "image_size"), [[4], 4], "crop must be whole numbers"),
        ("padim", ("parameters", "num_dimensions"), 0, "num_dimensions must be at least 1"),
        ("padim", (*LEARNED, "count"), -1, "count must be at least 0"),
        ("padim", (*LEARNED, "grid"), [16], "not enough values"),
        ("padim", (*LEARNED, "grid"), [16, "16"], "grid must be a whole number"),
        ("padim", (*LEARNED, "grid"), [10**9, 10**9], "grid .* must have 256 positions"),
        ("padim", ("parameters", "num_dimensions"), 4, "mean must have 4 dimensions, got 3"),
        ("ensemble", ("fusion",), "sum", "fusion must be one of"),
        ("ensemble", ("weights",), [1], "weights must be one per member"),
        ("ensemble", ("members",), 10**11, "states 100000000000 members"),
        ("ensemble", ("members",), "2", "states 2 members"),
        ("tiled", ("parameters", "tile_size"), [0, 32], "tile_size must be at least 1"),
        ("tiled", ("parameters", "tile_size"), [32, 32, 32], "tile_size"),
        ("tiled", ("parameters", "stride"), [64, 32], "stride must not exceed tile_size"),
        ("tiled", ("parameters", "stride"), [32, 10**30], "stride"),
        ("tiled", ("parameters", "image_size"), [64, 16], "tile_size must not exceed the image"),
        ("tiled", ("parameters", "score"), "sum", "score must be one of"),
        ("tiled", ("parameters", "scales"), [1.0, 0.0], r"scales\[1\] must be positive"),
        ("tiled", ("parameters", "scales"), [1.0, 0.4], "scales: 0.4 leaves no whole tile"),
        ("tiled", ("image_size",), [16, 64], "tile_size must not exceed the image"),
        ("tiled", ("image_size",), ["a"], "image_size"),
        ("tiled", ("image_size",), 64, "not iterable"),
        ("patchcore", ("parameters",), [1], "no attribute 'items'"),
        ("patchcore", ("network",), [1], "list indices"),
        ("patchcore", ("network", "source"), "gabor", "no attribute 'get'"),
        ("patchcore", ("network", "source", "kind"), "hub", "source cannot be .*hub"),
        ("patchcore", ("network", "layers"), ["nope"], "has no layer 'nope'"),
        ("patchcore", ("network", "layers"), [], "layers must not be empty"),
        ("patchcore", ("network", "layers"), ["layer1", "layer1"], "layers must differ"),
        ("patchcore", ("network", "mean"), [1, 2], "mean must be three numbers"),
        ("patchcore", ("network", "mean"), ["1", 2, 3], "mean must be three numbers"),
        ("patchcore", ("network", "std"), [0, 0, 0], "std must be positive"),
        ("padim", ("calibration", "values"), {"map_mean": 0.5}, "missing 6 required"),
        ("padim", ("calibration",), [], "list indices"),
        ("padim", ("calibration", "values"), [], "must be a mapping"),
        ("padim", (*STATISTICS, "requested_rate"), 2.0, "requested_rate must be between 0 and 1"),
        ("padim", (*STATISTICS, "requested_rate"), "x", "requested_rate must be float, got 'x'"),
        ("padim", (*STATISTICS, "map_mean"), "x", "map_mean must be float, got 'x'"),
        ("padim", (*STATISTICS, "map_std"), -1, "map_std must not be negative, got -1"),
        ("padim", (*STATISTICS, "rounding"), -1.0, "rounding must not be negative, got -1.0"),
        ("padim", (*STATISTICS, "origin"), "dreamt", "origin must be .*, got 'dreamt'"),
        ("padim", (*STATISTICS, "images_sha256"), None, "images_sha256 must be str"),
        ("ensemble", ("members",), 1, "states 1 members"),
        ("ensemble", ("members",), 0, "states 0 members"),
        ("tiled", ("parameters",), "x", "no attribute 'items'"),
        ("tiled", (*STATISTICS, "requested_rate"), 0.0, "requested_rate must be between 0 and 1"),
    ],
)
def test_a_manifest_that_no_constructor_takes_is_damaged(
    saved: dict[str, Path],
    tmp_path: Path,
    model: str,
    keys: tuple[str, ...],
    value: Any,
    message: str,
    options: dict[str, Any],
) -> None:
    folder = altered(saved[model], tmp_path / "m", lambda state: _with(state, *keys, value=value))
    with pytest.raises(DamagedModelError, match=f"{folder} .*{message}"):
        ead.load(folder, **options)


def test_an_unknown_statistic_is_damage(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = altered(
        saved["tiled"], tmp_path / "m", lambda state: _with(state, *STATISTICS, "median", value=1)
    )
    with pytest.raises(DamagedModelError, match=r"unknown fields \['median'\]"):
        ead.load(folder, device="cpu")


@pytest.mark.parametrize(
    "arrays",
    [
        {"scores": np.zeros(0, np.float32), "pixels": np.zeros((0, 1024), np.float32)},
        {"scores": np.zeros(4), "pixels": np.zeros((4, 1024), np.float32)},
        {"scores": np.zeros(4, np.float32), "pixels": np.zeros((3, 1024), np.float32)},
        {"scores": np.full(4, np.nan, np.float32), "pixels": np.zeros((4, 1024), np.float32)},
    ],
)
def test_samples_that_are_none_are_refused(saved: dict[str, Path], arrays: dict[str, Any]) -> None:
    known = ead.load(saved["padim"]).calibration_
    with pytest.raises(ValueError, match=r"(scores|pixels) must be finite float32 \["):
        dataclasses.replace(known, **arrays)


def test_the_callers_errors_and_the_machines_are_no_damage(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device must be .* got 'gpu'"):
        ead.load(saved["patchcore"], device="gpu")
    with pytest.raises(ValueError, match="the gabor backbone has none"):
        ead.load(saved["ensemble"], weights=["nowhere", None])
    with pytest.raises(ValueError, match="weights must be one per member"):
        ead.load(saved["ensemble"], weights=[None])
    # A model of a machine with a GPU that this one has not.
    elsewhere = altered(
        saved["padim"], tmp_path / "m", lambda state: _with(state, "parameters", "device", value="cuda:99")
    )
    with pytest.raises(ValueError, match="device is 'cuda:99'"):
        ead.load(elsewhere)
    assert ead.load(elsewhere, device="cpu").predict(normal_images(1)).anomaly_score.shape == (1,)


@pytest.mark.parametrize("num_dimensions", [3, None])
@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("mean", torch.zeros(1, 3000, dtype=torch.float64), "whitening must have 8 blocks, got 1"),
        (
            "mean",
            torch.zeros(1, 3, dtype=torch.float64),
            r"must be \(1, 6\), got shape \(256, 6\)",
        ),
        ("mean", torch.zeros(256, 3), "torch.float64 of shape .* got torch.float32"),
        ("mean", torch.zeros(256, dtype=torch.float64), r"mean must be \[P, D\], got shape \(256,\)"),
        ("whitening.0", torch.zeros(256, 5), "whitening0 must be"),
        ("whitening.0", torch.zeros(1, 6), "whitening0 must be"),
        ("whitening.0", torch.zeros(256, 6, dtype=torch.float64), "whitening 0 of the Gaussians must be"),
        ("whitening.0", None, "no attribute"),
    ],
)
def test_gaussians_that_do_not_fit_are_refused_before_room_is_made_for_them(
    saved: dict[str, Path], tmp_path: Path, num_dimensions: int | None, name: str, array: Any, message: str
) -> None:
    # None: only the arrays tell.
    parameters = ("parameters", "num_dimensions")
    folder = altered(
        saved["padim"], tmp_path / "m", lambda state: _with(state, *parameters, value=num_dimensions)
    )
    set_tensors(folder, "learned.safetensors", **{name: array})
    with pytest.raises(DamagedModelError, match=f"{folder} .*{message}"):
        ead.load(folder)


def test_a_wide_mean_asks_for_no_matrices_of_its_width(saved: dict[str, Path], tmp_path: Path) -> None:
    """At the one position of its grid; 20 TB of block rows."""

    def change(state: dict[str, Any]) -> None:
        _with(state, "parameters", "num_dimensions", value=None)
        _with(state, *LEARNED, "grid", value=[1, 1])
        _with(state, *LEARNED, "whitening", value=[None] * 8)

    folder = altered(saved["padim"], tmp_path / "m", change)
    packed = {f"whitening.{i}": torch.zeros(1, 6) for i in range(8)}
    set_tensors(folder, "learned.safetensors", mean=torch.zeros(1, 3_000_000, dtype=torch.float64), **packed)
    with pytest.raises(DamagedModelError, match=r"whitening0 must be .* got shape \(1, 6\)"):
        ead.load(folder)
