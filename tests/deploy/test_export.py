"""PatchCore as a graph: the same scores, maps and verdicts in OpenVINO and in ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
import torch
from PIL import Image
from support.exports import assert_same, exported
from support.networks import NATIVE, TinyNet
from support.textures import normal_images

import ensemblead as ead
from ensemblead.calibration import Calibration
from ensemblead.deploy.contract import read_export
from ensemblead.deploy.resizing import Resize
from ensemblead.deploy.verify import checksum_of_model, verify
from ensemblead.images import Geometry
from ensemblead.kernels.patch_operators import PatchOperators

OPTIONS: dict[str, Any] = {"coreset_fraction": 0.05, "batch_size": 4, "device": "cpu"}
FORMATS = ("openvino", "onnx")
# Where the formats hardly differ.
MOSTLY_OPENVINO = ("openvino", pytest.param("onnx", marks=pytest.mark.slow))


def patchcore(**options: Any) -> ead.PatchCore:
    return ead.PatchCore(TinyNet(), ("first", "second"), **(NATIVE | OPTIONS | options))


@pytest.fixture(scope="module")
def images() -> Any:
    return normal_images(6, side=40)


@pytest.fixture(scope="module")
def probe() -> Any:
    """Twelve images, three of them with a defect."""
    made = normal_images(12, 1, side=40)
    made[9:, 10:30, 10:30] = np.array([255, 0, 128])[:, None, None, None]
    return made


@pytest.fixture(scope="module")
def fitted(images: Any) -> ead.PatchCore:
    return patchcore().fit(images)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, fitted: ead.PatchCore, probe: Any) -> Path:
    """An export of `fitted` in each format."""
    folder = tmp_path_factory.mktemp("exports")
    for format in FORMATS:
        fitted.export(folder / format, verify=probe, format=format)
    return folder


@pytest.mark.parametrize(
    ("score", "num_neighbors", "aggregation", "format"),
    [
        pytest.param("max", 1, "adaptive", "openvino", marks=pytest.mark.slow),
        ("topk", 3, "concat", "openvino"),
        ("topk", 1, "adaptive", "onnx"),
        ("reweighted", 1, "adaptive", "openvino"),
        ("reweighted", 2, "concat", "onnx"),
    ],
)
def test_every_way_of_scoring(
    tmp_path: Path, images: Any, probe: Any, score: str, num_neighbors: int, aggregation: str, format: str
) -> None:
    # Bins that are no whole channels, so that the general form is taken.
    dims = {"pretrain_dim": 11, "target_dim": 9} if aggregation == "adaptive" else {}
    detector = patchcore(aggregation=aggregation, score=score, num_neighbors=num_neighbors, **dims).fit(
        images
    )
    expected = detector.predict(probe)
    assert expected.is_anomalous.any()
    assert not expected.is_anomalous.all()
    assert_same(exported(detector, tmp_path / "out", probe, format=format).predict(probe), expected)


def test_a_model_of_another_tool(tmp_path: Path, images: Any, probe: Any) -> None:
    """Maps as anomalib makes them, and a threshold that comes from elsewhere, or none."""
    like = {
        "interpolation": "nearest",
        "map_kind": "nearest",
        "num_dimensions": (0, 3, 5, 9),
        "device": "cpu",
    }
    for detector, threshold in (
        (ead.PaDiM(TinyNet(), ("first", "second"), **NATIVE, **like), None),
        (patchcore(map_kind="reflect"), 1.5),
    ):
        detector.fit(images)
        detector._calibration = Calibration.without_images(threshold, detector.calibration_.rounding)
        found = exported(detector, tmp_path / type(detector).__name__, probe)
        assert_same(found.predict(probe), detector.predict(probe))
        assert found.threshold_ == detector.threshold_
        assert np.isnan(found.contract.false_alarm_rate)
        with pytest.raises(ead.EnsembleADError, match="scores move by up to 1 "):
            _scaled(found, detector, probe)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_known_defects_are_in_the_graph(
    tmp_path: Path, images: Any, probe: Any, metric: str, format: str
) -> None:
    for number in (9, 10):
        Image.fromarray(probe[number]).save(tmp_path / f"{number}.png")
    without = patchcore(metric=metric).fit(images)
    detector = patchcore(metric=metric, defects=[tmp_path / "9.png", tmp_path / "10.png"]).fit(images)
    expected = detector.predict(probe)
    assert (expected.anomaly_score[9:11] > 1.5 * without.predict(probe).anomaly_score[9:11]).all()
    assert_same(exported(detector, tmp_path / "out", probe, format=format).predict(probe), expected)


def _scaled(found: Any, detector: Any, probe: Any) -> None:
    """Verify an export whose scores are twice what they were."""
    run = found._session.run
    found._session.run = lambda image: (2 * run(image)[0], *run(image)[1:])
    verify(found, detector, probe)


def test_a_bank_of_one_row(tmp_path: Path, images: Any, probe: Any) -> None:
    detector = patchcore(coreset_fraction=0.0001, score="reweighted").fit(images)
    assert_same(exported(detector, tmp_path / "one", probe).predict(probe), detector.predict(probe))


@pytest.mark.parametrize("format", MOSTLY_OPENVINO)
def test_the_graph_resizes_as_the_detector_does(tmp_path: Path, images: Any, probe: Any, format: str) -> None:
    detector = patchcore(resize=(50, 37), image_size=(45, 33)).fit(images)
    found = exported(detector, tmp_path / "out", probe, format=format)
    assert found.contract.size == probe.shape[1:3]
    assert_same(found.predict(probe), detector.predict(probe))


@pytest.mark.parametrize(
    ("native", "geometry"),
    [
        ((64, 48), Geometry((32, 24), None)),
        ((31, 57), Geometry(20, 17)),
        ((30, 40), Geometry((61, 40), (50, 40))),
        ((40, 40), Geometry((50, 37), (45, 33))),
        ((700, 30), Geometry((25, 360), None)),
        ((30, 40), Geometry(None, (11, 40))),
    ],
)
def test_resizing_by_operators_is_the_kernels(native: tuple[int, int], geometry: Geometry) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, *native, 3), dtype=np.uint8)
    found = Resize(geometry, native)(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    expected = np.stack([geometry.apply(image) for image in pixels])
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("format", MOSTLY_OPENVINO)
def test_resized_input_takes_images_of_any_size(tmp_path: Path, images: Any, probe: Any, format: str) -> None:
    detector = patchcore(resize=(48, 40)).fit(images)
    found = exported(detector, tmp_path / "out", probe, format=format, input="resized")
    assert found.contract.size == (48, 40)
    other = normal_images(3, 5, side=91)
    assert_same(found.predict(other), detector.predict(other))


def test_batches_of_any_size(written: Path, fitted: ead.PatchCore, probe: Any) -> None:
    import onnxruntime
    import openvino

    expected = fitted.predict(probe)
    session = onnxruntime.InferenceSession(
        written / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    compiled = openvino.Core().compile_model(
        written / "openvino" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for count in (1, 7):
        theirs = session.run(None, {"image": probe[:count]})
        ours = compiled({"image": probe[:count]})
        for number, name in enumerate(("anomaly_score", "anomaly_map", "is_anomalous")):
            wanted = getattr(expected, name)[:count]
            np.testing.assert_allclose(theirs[number], wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ours[name], wanted, rtol=1e-4, atol=1e-5)


def test_the_same_forms_of_images_as_a_detector(
    tmp_path: Path, written: Path, fitted: ead.PatchCore, probe: Any
) -> None:
    found = ead.load_exported(written / "openvino", threads=1)
    for number, pixels in enumerate(probe):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    pictures = [Image.fromarray(pixels) for pixels in probe]
    paths = sorted(str(path) for path in tmp_path.glob("*.png"))
    for given in (paths, pictures, probe):
        assert_same(found.predict(given), fitted.predict(given))
    assert_same(found.predict(pictures[9]), fitted.predict(pictures[9]))
    assert_same(next(found.predict_batches(paths)), fitted.predict(paths[:1]))


def test_objects_are_those_of_the_detector(written: Path, fitted: ead.PatchCore, probe: Any) -> None:
    found, expected = ead.load_exported(written / "openvino", threads=1).predict(probe), fitted.predict(probe)
    assert found.sizes == expected.sizes
    assert found.pixel_threshold == expected.pixel_threshold == fitted.calibration_.pixel_threshold()
    threshold = float(np.median(expected.anomaly_map))  # many regions
    ours, theirs = found.objects(threshold, min_area=30), expected.objects(threshold, min_area=30)
    np.testing.assert_allclose(sum(one.area for one in ours), sum(one.area for one in theirs), rtol=0.01)


@pytest.mark.filterwarnings("ignore:.*16-bit pixels")
def test_files_of_twelve_bits_are_read_as_the_detector_reads_them(tmp_path: Path, probe: Any) -> None:
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(probe):
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 8).save(tmp_path / "images" / f"{number}.png")
    detector = patchcore().fit(tmp_path / "images")
    assert detector.bits_ == 12
    found = exported(detector, tmp_path / "out", tmp_path / "images")
    assert found.contract.bits == 12
    assert_same(found.predict(tmp_path / "images"), detector.predict(tmp_path / "images"))


@pytest.mark.parametrize("format", MOSTLY_OPENVINO)
def test_threads_share_an_export(written: Path, fitted: ead.PatchCore, probe: Any, format: str) -> None:
    found, expected = ead.load_exported(written / format, threads=1), fitted.predict(probe)

    def scores(number: int) -> list[float]:
        return [found.predict(probe[number : number + 1]).anomaly_score[0] for _ in range(40)]

    with ThreadPoolExecutor(4) as pool:
        for number, own in zip((0, 4, 9, 11), pool.map(scores, (0, 4, 9, 11)), strict=True):
            np.testing.assert_allclose(own, expected.anomaly_score[number], rtol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_many_images_are_predicted_several_at_a_time(
    tmp_path: Path, written: Path, fitted: ead.PatchCore, probe: Any, format: str
) -> None:
    many = np.concatenate([probe, probe[::-1], probe])
    found, seen = ead.load_exported(written / format, threads=2), []
    expected = fitted.predict(many)
    assert_same(found.predict(many, progress=lambda *one: seen.append(one)), expected)
    assert seen == [("predict", number + 1, 36) for number in range(36)]
    assert_same(found.predict(many), expected)
    assert_same(found.predict(probe), fitted.predict(probe))
    Image.fromarray(probe[0][:20]).save(tmp_path / "other.png")
    pictures = [*map(Image.fromarray, many), Image.open(tmp_path / "other.png")]
    taken = found.predict_batches(pictures)
    assert next(taken).anomaly_score[0] == pytest.approx(expected.anomaly_score[0], rel=1e-4)
    with pytest.raises(ValueError, match="image 36: the graph was exported for images of 40 x 40 pixels"):
        list(taken)
    left = found.predict_batches(many)
    next(left)
    left.close()  # and no thread stays
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("ensemblead-predict")]
    for thread in threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)


WITHOUT_TORCH = """
import json, sys
for name in ("torch", "timm", "safetensors", "faiss", "scipy", "typer", "rich", "yaml", sys.argv[3]):
    sys.modules[name] = None
import ensemblead as ead
found = ead.load_exported(sys.argv[1]).predict(sys.argv[2])
print(json.dumps([found.anomaly_score.tolist(), found.is_anomalous.tolist(), float(found.anomaly_map.max())]))
"""


@pytest.mark.parametrize(
    ("format", "other", "input"), [("openvino", "onnxruntime", "image"), ("onnx", "openvino", "resized")]
)
def test_without_torch(tmp_path: Path, images: Any, probe: Any, format: str, other: str, input: str) -> None:
    detector = patchcore(resize=(48, 40)).fit(images)
    detector.export(tmp_path / "out", verify=probe, format=format, input=input)
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(probe):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    expected = detector.predict(tmp_path / "images")
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, tmp_path / "out", tmp_path / "images", other],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    scores, verdicts, largest = json.loads(outcome.stdout)
    np.testing.assert_allclose(scores, expected.anomaly_score, rtol=1e-4)
    assert verdicts == expected.is_anomalous.tolist()
    assert largest == pytest.approx(expected.anomaly_map.max(), rel=1e-4)


def test_the_contract(tmp_path: Path, fitted: ead.PatchCore, probe: Any) -> None:
    report = fitted.export(tmp_path / "out", verify=probe)
    contract, _ = read_export(tmp_path / "out")
    assert contract.threshold == fitted.threshold_ == ead.load_exported(tmp_path / "out").threshold_
    assert contract.false_alarm_rate == fitted.calibration_.false_alarm_rate
    assert contract.source["checksum"] == checksum_of_model(fitted)
    assert contract.verification == report.summary()
    assert contract.verification["changed_verdicts"] == 0
    assert len(contract.verification["table"]) == len(probe)
    document = json.loads((tmp_path / "out" / "export.json").read_text())
    assert document["input"]["shape"] == ["batch", *probe.shape[1:]]
    assert document["input"]["colours"] == "RGB"
    assert set(document["files"]) == {"model.xml", "model.bin"}
    assert "openvino" in document["versions"]


def test_a_threshold_of_the_users(tmp_path: Path, images: Any, probe: Any) -> None:
    detector = patchcore().fit(images)
    scores = np.sort(detector.predict(probe).anomaly_score)
    detector.threshold_ = float(scores[:2].mean())
    detector.export(tmp_path / "out", verify=probe)
    contract, _ = read_export(tmp_path / "out")
    assert contract.threshold == detector.threshold_
    assert contract.source["threshold"] == "user"
    assert not contract.is_guaranteed
    found = ead.load_exported(tmp_path / "out").predict(probe)
    assert found.is_anomalous.sum() == len(probe) - 1


def test_the_checksum_is_that_of_the_saved_model(tmp_path: Path, images: Any) -> None:
    detector = ead.PatchCore("gabor", **NATIVE, **OPTIONS).fit(images)
    detector.save(tmp_path / "model")
    stated = json.loads((tmp_path / "model" / "model.json").read_text())["checksum"]
    assert checksum_of_model(detector) == checksum_of_model(ead.load(tmp_path / "model")) == stated


def test_the_checksum_is_that_of_the_model_it_was_loaded_from(tmp_path: Path, images: Any) -> None:
    """However it was saved, and whatever it runs on: the command line loads on the CPU."""
    first, second = (ead.PatchCore("gabor", **NATIVE, **OPTIONS).fit(part) for part in (images, images[:8]))
    for number, detector in enumerate((first, ead.BackboneEnsemble([first, second]))):
        folder = tmp_path / str(number)
        detector.save(folder, half=True)
        stated = json.loads((folder / "model.json").read_text())["checksum"]
        loaded = ead.load(folder)
        assert checksum_of_model(loaded) == stated
        changed = loaded.members[0] if number else loaded
        changed.threshold_ = 9.0
        assert checksum_of_model(loaded) != stated


def test_bfloat16_keeps_distances_in_float32(tmp_path: Path, images: Any, probe: Any) -> None:
    from ensemblead.networks.engines.openvino import cpu_capabilities

    if "BF16" not in cpu_capabilities():
        pytest.skip("this CPU has no bfloat16")
    detector = patchcore(resize=(48, 40)).fit(images)
    found = exported(detector, tmp_path / "out", probe, precision="bfloat16")
    expected = detector.predict(probe)
    assert_same(found.predict(probe), expected, 5e-2)
    assert np.abs(found.predict(probe).anomaly_score - expected.anomaly_score).max() > 0


def test_int8_is_the_quantized_network(tmp_path: Path, images: Any, probe: Any) -> None:
    pytest.importorskip("nncf")
    detector = patchcore(resize=(48, 40)).fit(images)
    before = detector.predict(probe)
    detector.quantize(images)
    found = exported(detector, tmp_path / "out", probe, precision="int8").predict(probe)
    expected = detector.predict(probe)
    apart = np.abs(found.anomaly_score - expected.anomaly_score).max()
    assert apart < np.abs(before.anomaly_score - expected.anomaly_score).max()
    assert_same(found, expected, 5e-3)


def test_in_inference_mode_and_with_another_default_dtype(tmp_path: Path, images: Any, probe: Any) -> None:
    with torch.inference_mode():
        detector = patchcore().fit(images)
        found = exported(detector, tmp_path / "out", probe)
    assert_same(found.predict(probe), detector.predict(probe))


@pytest.mark.parametrize("mode", ["adaptive", "concat"])
@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize(
    ("pretrain_dim", "target_dim"), [("auto", 1024), (7, 5), (16, 20), (40, 1024), ([3, 28], 4)]
)
def test_patch_operators_are_the_kernels(
    mode: Any, patch_size: int, pretrain_dim: Any, target_dim: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    channels, grids = (10, 14), ((8, 9), (4, 5))
    maps = [torch.rand(2, own, *grid, generator=generator) for own, grid in zip(channels, grids, strict=True)]
    options = {"patch_size": patch_size, "pretrain_dim": pretrain_dim, "target_dim": target_dim, "mode": mode}
    expected = ead.aggregate_patches(maps, **options)
    found = PatchOperators(channels, grids[0], **options)(maps)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=2e-6)
