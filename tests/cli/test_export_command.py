"""`ensemblead export` and `ensemblead verify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
from PIL import Image
from support.commands import call, call_json
from support.textures import normal_images, with_defects

import ensemblead as ead


def draw(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images, images to verify with, and a model."""
    folder = tmp_path_factory.mktemp("line")
    good = draw(folder / "good", normal_images(6, side=40))
    probe = normal_images(10, 1, side=40)
    probe[8:] = with_defects(probe[8:])[0]
    draw(folder / "probe", probe)
    options = {"weights": None, "resize": (32, 32), "coreset_fraction": 0.1, "device": "cpu"}
    ead.PatchCore("resnet18", ("layer1",), **options).fit(good).save(folder / "model")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "onnx", "--input", "resized"],
        pytest.param(["--image-size", "40x40", "--tolerance", "0.01"], marks=pytest.mark.slow),
    ],
)
def test_export_and_verify(folder: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "export"
    summary = call_json("export", folder / "model", "--out", out, "--verify", folder / "probe", *options)
    assert summary["images"] == 10
    assert summary["largest_score_change"] < 1e-4
    found = ead.load_exported(out).predict(folder / "probe")
    expected = ead.load(folder / "model").predict(folder / "probe")
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-4)
    outcome = call("verify", out, "--model", folder / "model", "--images", folder / "probe")
    assert outcome.exit_code == 0, outcome.stderr
    assert "10 images in" in outcome.stdout
    found = call_json("info", out)
    assert (found["format"], found["size"]) == (
        ("onnx", [32, 32]) if "onnx" in options else ("openvino", [40, 40])
    )
    assert found["verification"]["images"] == 10
    assert found["threshold"] == pytest.approx(ead.load(folder / "model").threshold_)
    shown = call("info", out)
    assert "export of PatchCore(backbone='resnet18'" in shown.stdout
    assert "verified on   10 images" in shown.stdout
    assert "verdicts: 0 change" in outcome.stdout


def test_failures_have_exit_codes(folder: Path, tmp_path: Path) -> None:
    arguments = ["--out", tmp_path / "export", "--verify", folder / "probe"]
    outcome = call("export", folder / "model", *arguments, "--format", "tflite")
    assert outcome.exit_code == 2
    assert "format must be one of openvino, onnx" in outcome.stderr
    outcome = call("export", folder / "model", *arguments, "--image-size", "40by40")
    assert outcome.exit_code == 2
    outcome = call("export", folder / "model", *arguments, "--tolerance", "1e-30")
    assert outcome.exit_code == 1
    assert "the worst is" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_verify_refuses(folder: Path, tmp_path: Path) -> None:
    arguments = ["--out", tmp_path / "export", "--verify", folder / "probe"]
    assert call("export", folder / "model", *arguments).exit_code == 0
    options = {"weights": None, "resize": (32, 32), "coreset_fraction": 0.1, "device": "cpu"}
    other = ead.PatchCore("resnet18", ("layer1",), **options, seed=1).fit(folder / "good")
    other.save(tmp_path / "other")
    compared = ["verify", tmp_path / "export", "--model", tmp_path / "other", "--images", folder / "probe"]
    outcome = call(*compared)
    assert outcome.exit_code == 1
    assert "the export was made of another model" in outcome.stderr
    (tmp_path / "export" / "model.bin").unlink()
    outcome = call(*compared)
    assert outcome.exit_code == 1
    assert "model.bin is missing" in outcome.stderr
