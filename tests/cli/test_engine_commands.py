"""`quantize`, `benchmark`, and `predict --engine`: other engines for a saved model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("openvino")
pytest.importorskip("nncf")
from PIL import Image
from support.commands import call, call_json
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.calibration import Calibration
from ensemblead.common.errors import NonFiniteFeaturesError
from ensemblead.common.warnings import ThresholdWarning
from ensemblead.detectors.exporting import score_changes
from ensemblead.evaluation import speed
from ensemblead.evaluation.speed import Measured, recommended
from ensemblead.images import open_images


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for number, pixels in enumerate(normal_images(6, side=32)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, good: Path) -> Path:
    path = tmp_path_factory.mktemp("fitted") / "model"
    options = {"weights": None, "resize": None, "coreset_fraction": 0.1, "batch_size": 4, "device": "cpu"}
    ead.PatchCore("resnet18", ("layer1",), **options).fit(good).save(path)
    return path


def test_quantize_saves_int8_and_keeps_the_threshold(good: Path, model: Path, tmp_path: Path) -> None:
    summary = call_json("quantize", model, good, "--out", tmp_path / "int8", "--max-images", 4)
    assert summary["threshold"] == summary["threshold_before"] == ead.load(model).threshold_
    assert summary["images"] == 6
    found = ead.load(tmp_path / "int8")
    assert (found.engine, found.precision) == ("openvino", "int8")
    expected = ead.load(model).quantize(good, max_images=4).predict(good)
    np.testing.assert_array_equal(found.predict(good).anomaly_score, expected.anomaly_score)
    exact = call_json(
        "predict",
        tmp_path / "int8",
        good,
        "--out",
        tmp_path / "out",
        "--engine",
        "torch",
        "--precision",
        "float32",
    )
    scores = [one["anomaly_score"] for one in exact["predictions"]]
    np.testing.assert_array_equal(scores, ead.load(model).predict(good).anomaly_score.tolist())
    refused = call("predict", tmp_path / "int8", good, "--out", tmp_path / "out", "--engine", "torch")
    assert refused.exit_code == 2
    assert "precision must be float32, bfloat16 or float16 with engine='torch', got 'int8'" in refused.stderr


def test_benchmark_measures_and_recommends(
    good: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "CHOICES", (speed.CHOICES[0], *speed.CHOICES[2::2]))
    defects, _ = with_defects(normal_images(2, 5, side=32))
    for number, pixels in enumerate(defects):
        Image.fromarray(pixels).save(tmp_path / f"bad{number}.png")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    found = call_json("benchmark", model, good, tmp_path, "--rounds", 1)
    names = [(one["engine"], one["precision"]) for one in found["measured"]]
    assert names == [("torch", "float32"), ("openvino", "float32"), ("openvino", "int8")]
    exact, same, rounded = found["measured"]
    assert exact["largest_change"] == 0 < rounded["largest_change"]
    assert same["largest_change"] < 1e-3
    assert all(one["one"] > 0 and one["many"] > 0 for one in found["measured"])
    assert (found["recommended"]["engine"], found["recommended"]["precision"]) in names
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_choice_that_fails_leaves_the_others(
    good: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = speed._prepared

    def prepared(path: object, choice: tuple[str, str], *given: object) -> object:
        if choice[1] == "bfloat16":
            raise NonFiniteFeaturesError("the network put out NaN")
        return real(path, choice, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(speed, "CHOICES", speed.CHOICES[:2])
    monkeypatch.setattr(speed, "_prepared", prepared)
    exact, rounded = speed.measure_engines(model, open_images(good), rounds=1)
    assert (exact.failure, rounded.failure) == (None, "the network put out NaN")


def test_benchmark_without_openvino_says_what_to_install(
    good: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "CHOICES", speed.CHOICES[::4])
    monkeypatch.setitem(sys.modules, "openvino", None)
    outcome = call("benchmark", model, good, "--rounds", 1, "--count", 2)
    assert outcome.exit_code == 0, outcome.stderr
    assert "Take engine='torch', precision='float32': no other that changes no verdict" in outcome.stdout
    assert "openvino" in outcome.stdout


def test_benchmark_of_a_model_without_a_frozen_network(good: Path, tmp_path: Path) -> None:
    own = {"steps": 1, "batch_size": 4, "resize": None, "device": "cpu"}
    ead.DRAEM(4, **own).fit(good).save(tmp_path / "model")
    found = call_json("benchmark", tmp_path / "model", good, "--rounds", 1)["measured"]
    failures = {one["precision"]: one["failure"] for one in found}
    assert failures["int8"] == "the model has no frozen network, and int8 is for those"
    assert found[1]["largest_change"] > 0  # of bfloat16
    by_openvino = next(one for one in found if one["engine"] == "openvino")
    assert by_openvino["failure"] is None
    assert 0 <= by_openvino["largest_change"] < 1e-3  # in float32


def test_benchmark_of_tiles(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks are those of its members."""
    options = {"resize": None, "image_size": None, "coreset_fraction": 1.0, "device": "cpu"}
    member = ead.PatchCore("gabor", ("layer1",), **options)
    ead.TiledEnsemble(member, 16, 16, image_size=32).fit(good).save(tmp_path / "model")
    monkeypatch.setattr(speed, "CHOICES", speed.CHOICES[:3:2])
    _, quick = speed.measure_engines(tmp_path / "model", open_images(good), rounds=1)
    assert quick.failure is None
    assert quick.largest_change < 1e-3


def test_what_is_recommended() -> None:
    def measured(precision: str, many: float, changed: int = 0, failure: str | None = None) -> Measured:
        return Measured("openvino", precision, many, many, many, many, 0.0, 0.0, changed, failure)

    exact = measured("float32", 10.0)
    assert recommended([exact, measured("bfloat16", 9.5)]) is exact  # gains too little
    quick = measured("bfloat16", 5.0)
    assert recommended([exact, quick, measured("int8", 2.0, changed=1)]) is quick
    assert recommended([exact, Measured("openvino", "int8", failure="not installed"), quick]) is quick


def test_changes_are_seen_where_there_is_no_threshold() -> None:
    found, exact = np.array([2.0, 1.1, 0.1], np.float32), np.array([1.0, 1.0, 0.0], np.float32)
    np.testing.assert_allclose(score_changes(found, exact, np.inf, 0.0), [1.0, 0.1, 0.15], rtol=1e-6)
    np.testing.assert_allclose(score_changes(found, exact, -4.0, 0.0), [0.25, 0.025, 0.025], rtol=1e-6)
    np.testing.assert_allclose(score_changes(found * 0, exact * 0, np.inf, 0.5), 0.0)


def test_a_model_without_a_threshold_is_said_to_have_none(good: Path, model: Path, tmp_path: Path) -> None:
    detector = ead.load(model)
    detector._accept([Calibration.without_images()])
    detector.save(tmp_path / "model")
    with pytest.warns(ThresholdWarning, match="no threshold, so that no verdict can change"):
        found = speed.measure_engines(tmp_path / "model", open_images(good), rounds=1)
    assert found[0].largest_change == 0.0
    assert all(one.largest_change > 0 for one in found if one.precision == "int8")
