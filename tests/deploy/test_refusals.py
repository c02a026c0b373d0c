"""Exports that must not come to be, folders that must not be read, and graphs that must not pass."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
import torch
from PIL import Image
from support.exports import replace_file, rewrite
from support.networks import NATIVE, TinyNet
from support.textures import normal_images
from torch import nn

import ensemblead as ead
from ensemblead.calibration import Calibration
from ensemblead.common.errors import (
    DamagedModelError,
    EngineError,
    ExportError,
    MissingExtraError,
    NewerFormatError,
    NotExportableError,
    NotFittedError,
)
from ensemblead.deploy import openvino as exported_openvino
from ensemblead.deploy.verify import verify
from ensemblead.detectors.exporting import ExportReport

OPTIONS: dict[str, Any] = NATIVE | {"coreset_fraction": 0.05, "batch_size": 4, "device": "cpu"}
LAYERS = ("first", "second")


@pytest.fixture(scope="module")
def images() -> Any:
    return normal_images(6, side=40)


@pytest.fixture(scope="module")
def probe() -> Any:
    made = normal_images(10, 1, side=40)
    made[8:, 10:30, 10:30] = 255
    return made


@pytest.fixture(scope="module")
def fitted(images: Any) -> ead.PatchCore:
    return ead.PatchCore(TinyNet(), LAYERS, **OPTIONS).fit(images)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, fitted: ead.PatchCore, probe: Any) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for format in ("openvino", "onnx"):
        fitted.export(folder / format, verify=probe, format=format)
    return folder


@pytest.fixture
def export(written: Path, tmp_path: Path) -> Path:
    """A copy of an export for OpenVINO, to be damaged."""
    return Path(shutil.copytree(written / "openvino", tmp_path / "export"))


# Options and detectors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"format": "onxx"},
            ValueError,
            "format must be one of openvino, onnx, got 'onxx'; did you mean onnx",
        ),
        ({"precision": "float16"}, ValueError, "precision must be one of float32, bfloat16, int8"),
        ({"input": "images"}, ValueError, "input must be one of image, resized"),
        ({"format": "onnx", "precision": "bfloat16"}, ValueError, "goes with format='openvino'"),
        ({"precision": "int8"}, ValueError, "but they compute in float32; call quantize"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be positive"),
        ({"tolerance": "1"}, TypeError, "tolerance must be a number"),
        ({"allow_flag_changes": -1}, ValueError, "allow_flag_changes must be at least 0"),
        ({"image_size": 0}, ValueError, "image_size must be at least 1"),
        ({"image_size": (40, 41)}, ValueError, "one size, which is 40 x 41 pixels, but image 0 has 40 x 40"),
    ],
)
def test_options(
    tmp_path: Path,
    fitted: ead.PatchCore,
    probe: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        fitted.export(tmp_path / "out", verify=probe, **options)
    assert list(tmp_path.iterdir()) == []


def test_images_to_verify_with(tmp_path: Path, fitted: ead.PatchCore, probe: Any) -> None:
    with pytest.raises(ValueError, match="verify must be 10 images at least, .* got 9"):
        fitted.export(tmp_path / "out", verify=probe[:9])
    pictures = [Image.fromarray(pixels) for pixels in probe]
    pictures[7] = pictures[7].resize((41, 40))
    with pytest.raises(ValueError, match="but image 7 has 40 x 41; input='resized' resizes them first"):
        fitted.export(tmp_path / "out", verify=pictures)
    with pytest.raises(ValueError, match=r"which is 40 x 40 pixels, but image 7 has 40 x 41$"):
        fitted.export(tmp_path / "out", verify=pictures, input="resized")


def test_an_unfitted_detector(tmp_path: Path, probe: Any) -> None:
    with pytest.raises(NotFittedError, match="cannot export: this PatchCore is not fitted"):
        ead.PatchCore(TinyNet(), LAYERS, **OPTIONS).export(tmp_path / "out", verify=probe)


def test_a_path_that_exists_is_left_alone(tmp_path: Path, fitted: ead.PatchCore, probe: Any) -> None:
    fitted.save(tmp_path / "model", include_backbone=True)
    with pytest.raises(ValueError, match="model exists; choose another, or remove it"):
        fitted.export(tmp_path / "model", verify=probe)
    assert (tmp_path / "model" / "model.json").is_file()


def test_a_folder_made_meanwhile_is_left_alone(tmp_path: Path, fitted: ead.PatchCore, probe: Any) -> None:
    def interfere(stage: str, done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "notes").write_text("theirs")

    with pytest.raises(ValueError, match="out exists: it was made while this export was written"):
        fitted.export(tmp_path / "out", verify=probe, progress=interfere)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes"]


@pytest.mark.parametrize("fusion", ["rank", "minmax"])
def test_fusions_without_a_graph(tmp_path: Path, fitted: ead.PatchCore, probe: Any, fusion: str) -> None:
    ensemble = ead.BackboneEnsemble([fitted], fusion=fusion)
    with pytest.raises(ValueError, match=f"fusion='{fusion}'"):
        ensemble.export(tmp_path / "out", verify=probe)


def test_a_method_without_a_graph(tmp_path: Path, images: Any, probe: Any) -> None:
    from support.checked_methods import CellMeans

    with pytest.raises(NotExportableError, match="CellMeans cannot be exported"):
        CellMeans(device="cpu").fit(images).export(tmp_path / "out", verify=probe)


def test_a_bank_too_large_for_a_graph(
    tmp_path: Path, fitted: ead.PatchCore, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["ensemblead.detectors.patchcore.graph"], "_MOST_EXPORTED", 2)
    with pytest.raises(ValueError, match=r"bank of \d+ rows is too large .*max_rows=2"):
        fitted.export(tmp_path / "out", verify=probe)


def test_an_approximate_index_is_exported_as_an_exact_one(tmp_path: Path, images: Any, probe: Any) -> None:
    pytest.importorskip("faiss")
    detector = ead.PatchCore(TinyNet(), LAYERS, **OPTIONS, index="hnsw").fit(images)
    with pytest.warns(UserWarning, match='index="hnsw" finds nearest rows approximately'):
        detector.export(tmp_path / "out", verify=probe, tolerance=0.5)


def test_members_that_resize_differently_take_whole_images(
    tmp_path: Path, fitted: ead.PatchCore, images: Any, probe: Any
) -> None:
    other = ead.PatchCore(TinyNet(1), LAYERS, **OPTIONS | {"resize": (32, 32)}).fit(images)
    ensemble = ead.BackboneEnsemble([fitted, other])
    with pytest.raises(ValueError, match="input='resized' needs members that resize images alike"):
        ensemble.export(tmp_path / "out", verify=probe, input="resized")


class Sorted(TinyNet):
    """It has an operation that no converter knows."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        first = self.first(values)
        return self.second(first + torch.linalg.pinv(first[:, :, :2, :2]).sum())  # type: ignore[no-any-return]


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_a_network_without_a_graph(
    tmp_path: Path, images: Any, probe: Any, format: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    detector = ead.PatchCore(Sorted(), LAYERS, **OPTIONS).fit(images)
    with pytest.raises(EngineError, match=f"cannot be written as a graph of {format}"):
        detector.export(tmp_path / "out", verify=probe, format=format)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_a_quantized_detector_is_not_exported_in_float32(tmp_path: Path, images: Any, probe: Any) -> None:
    pytest.importorskip("nncf")
    detector = ead.PatchCore(TinyNet(), LAYERS, **OPTIONS).fit(images).quantize(images)
    with pytest.raises(ValueError, match="precision='float32': the detector's networks are quantized"):
        detector.export(tmp_path / "out", verify=probe)


def test_a_detector_in_half_precision_is_not_exported_in_float32(
    tmp_path: Path, images: Any, probe: Any
) -> None:
    detector = ead.PatchCore(TinyNet(), LAYERS, **OPTIONS, precision="bfloat16").fit(images)
    with pytest.raises(ValueError, match="precision='float32': the detector's networks compute in bfloat16"):
        detector.export(tmp_path / "out", verify=probe)


@pytest.mark.parametrize(("format", "module"), [("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_a_missing_runtime_is_named(
    tmp_path: Path,
    written: Path,
    fitted: ead.PatchCore,
    probe: Any,
    format: Any,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=f"format='{format}' needs {module}"):
        fitted.export(tmp_path / "out", verify=probe, format=format)
    with pytest.raises(MissingExtraError, match=f"needs {module}, which is not installed"):
        ead.load_exported(written / format)


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so() -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    with pytest.warns(RuntimeWarning, match="this CPU has no bfloat16"):
        assert exported_openvino.precision_hint(Core(), "bfloat16") == "f32"
    assert exported_openvino.precision_hint(Core(), "int8") == "f32"


# Graphs that compute something else


class Wrong(nn.Module):
    """A graph whose scores are a hundredth off."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Any, maps: Any) -> Any:
        grids, scores = self.inner(pixels, maps)
        return grids, scores * 1.01


def test_a_wrong_graph_is_not_written(
    tmp_path: Path, fitted: ead.PatchCore, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ead.PatchCore.graph
    monkeypatch.setattr(ead.PatchCore, "graph", lambda self, *given: Wrong(right(self, *given)))
    with pytest.raises(ExportError, match=r"where 0.001 is allowed; the worst is image \d") as caught:
        fitted.export(tmp_path / "out", verify=probe)
    assert list(tmp_path.iterdir()) == []
    report = caught.value.report
    assert isinstance(report, ExportReport)
    assert report.largest_score_change == pytest.approx(1e-2, rel=0.01)
    assert report.largest_map_change < 1e-4
    assert fitted.export(tmp_path / "out", verify=probe, tolerance=2e-2).passed


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_a_sabotaged_graph_fails_verify(
    tmp_path: Path, written: Path, fitted: ead.PatchCore, probe: Any, format: str
) -> None:
    folder = Path(shutil.copytree(written / format, tmp_path / "export"))
    assert verify(ead.load_exported(folder), fitted, probe).passed
    name = {"openvino": "model.bin", "onnx": "model.onnx"}[format]
    weight = fitted.network_.module.first.weight.detach().numpy()
    data, old = bytearray((folder / name).read_bytes()), weight[3].tobytes()
    place = data.find(old)
    assert place > 0
    data[place : place + len(old)] = (weight[3] + 0.05).tobytes()
    replace_file(folder, name, bytes(data))
    with pytest.raises(ExportError, match=r"^the exported graph does not .*; the worst is image \d+, "):
        verify(ead.load_exported(folder), fitted, probe)


def test_another_model_fails_verify(written: Path, images: Any, probe: Any) -> None:
    other = ead.PatchCore(TinyNet(1), LAYERS, **OPTIONS).fit(images)
    with pytest.raises(ExportError, match="^the export was made of another model; the exported"):
        verify(ead.load_exported(written / "openvino"), other, probe)


def test_another_threshold_fails_verify(written: Path, images: Any, probe: Any) -> None:
    """Though no verdict of these images changes."""
    other = ead.PatchCore(TinyNet(), LAYERS, **OPTIONS).fit(images)
    other._calibration = Calibration.without_images(other.threshold_ * 1.01)
    with pytest.raises(ExportError, match="by another threshold, .*: export it again"):
        verify(ead.load_exported(written / "onnx"), other, probe)


# Folders


def _drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _flip(folder: Path) -> None:
    data = bytearray((folder / "model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.bin").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("export.json"), "is no exported detector: it has no export.json"),
        (_drop("model.bin"), "incomplete: model.bin is missing"),
        (_flip, "model.bin was altered"),
        (lambda folder: (folder / "model.xml").write_text("<net/>"), "model.xml has 6 bytes"),
        (lambda folder: (folder / "export.json").write_text("{"), "export.json is damaged"),
        (lambda folder: (folder / "export.json").write_text("[]"), "it states no format"),
        (lambda folder: (folder / "export.json").write_text('{"format": 1, "a": NaN}'), "damaged|altered"),
        (lambda folder: rewrite(folder, lambda c: c.pop("threshold")), "damaged: 'threshold'"),
        (lambda folder: rewrite(folder, lambda c: c["input"].update(shape=[1])), "export.json is damaged"),
        (
            lambda folder: rewrite(folder, lambda c: c["graph"].update(format="tflite")),
            "format must be one of",
        ),
        (lambda folder: rewrite(folder, lambda c: c["files"].update({"../x": 1})), "states the files"),
        (
            lambda folder: rewrite(folder, lambda c: c.update(files=list(c["files"]))),
            "export.json is damaged",
        ),
        (lambda folder: rewrite(folder, lambda c: c.update(bits=9)), "damaged: bits must be"),
        (
            lambda folder: rewrite(folder, lambda c: c["files"].update({"model.bin": {}})),
            "no size and checksum",
        ),
    ],
)
def test_damaged_folders(export: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(export)
    with pytest.raises(DamagedModelError, match=message):
        ead.load_exported(export)


def test_a_contract_of_another_size_gives_no_scores(export: Path) -> None:
    rewrite(export, lambda contract: contract["input"].update(shape=["batch", 50, 50, 3]))
    with pytest.raises(RuntimeError, match="shape"):
        ead.load_exported(export).predict(np.zeros((1, 50, 50, 3), np.uint8))


def test_an_edited_contract(export: Path) -> None:
    contract = json.loads((export / "export.json").read_text())
    contract["threshold"] *= 2
    (export / "export.json").write_text(json.dumps(contract))
    with pytest.raises(DamagedModelError, match="export.json was altered"):
        ead.load_exported(export)


def test_a_folder_mixed_of_two_exports(tmp_path: Path, export: Path, images: Any, probe: Any) -> None:
    other = ead.PatchCore(TinyNet(1), LAYERS, **OPTIONS).fit(images)
    other.export(tmp_path / "other", verify=probe)
    shutil.copy(tmp_path / "other" / "model.bin", export)
    with pytest.raises(DamagedModelError, match="model.bin"):
        ead.load_exported(export)


def test_a_later_format(export: Path) -> None:
    rewrite(export, lambda contract: contract.update(format=3, written_by="ensemblead 9.0"))
    with pytest.raises(NewerFormatError, match="has format 3, written by ensemblead 9.0"):
        ead.load_exported(export)


def test_nothing_there_and_a_model(tmp_path: Path, fitted: ead.PatchCore, written: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported detector at"):
        ead.load_exported(tmp_path / "none")
    fitted.save(tmp_path / "model")
    with pytest.raises(DamagedModelError, match="it has no export.json"):
        ead.load_exported(tmp_path / "model")
    with pytest.raises(DamagedModelError, match="is no saved model"):
        ead.load(written / "onnx")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        ead.load_exported(written / "onnx", threads=0)


# Images


def test_images_of_another_size(written: Path, tmp_path: Path) -> None:
    exported = ead.load_exported(written / "onnx")
    with pytest.raises(
        ValueError, match=r"image 0: .* for images of 40 x 40 pixels, got 41 x 40; .*\(41, 40\)"
    ):
        exported.predict(np.zeros((1, 41, 40, 3), np.uint8))
    Image.new("RGB", (40, 50)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match=r"long.png: the graph was exported for"):
        exported.predict(tmp_path / "long.png")
    with pytest.raises(TypeError, match="images must be uint8"):
        exported.predict(np.zeros((1, 40, 40, 3), np.float32))


def test_resized_images_of_another_size(tmp_path: Path, images: Any, probe: Any) -> None:
    detector = ead.PatchCore(TinyNet(), LAYERS, **OPTIONS | {"resize": 32}).fit(images)
    detector.export(tmp_path / "out", verify=probe, input="resized")
    exported = ead.load_exported(tmp_path / "out")
    assert len(exported.predict(np.zeros((1, 80, 80, 3), np.uint8))) == 1
    with pytest.raises(ValueError, match="got 80 x 160 that become 32 x 64"):
        exported.predict(np.zeros((1, 80, 160, 3), np.uint8))
    with pytest.raises(ValueError, match="image 0: crop|exported for"):
        exported.predict(np.zeros((1, 80, 40, 3), np.uint8))
