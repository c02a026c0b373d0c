"""The examples run: those for experiment trackers with what is installed, MLflow's also without."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.brightness import draw_category
from support.registry import separate_registry

pytest.importorskip("torch")

import ensemblead as ead
from ensemblead.evaluation import Suite, run

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A file with a detector that works and one that fails."""
    gabor = {"type": "PatchCore", "backbone": "gabor", "resize": [24, 28], "image_size": None}
    draw_category(tmp_path / "part", 0)
    configuration = {
        "bootstrap": 10,
        "device": "cpu",
        "detectors": [
            {
                "name": "good",
                "type": "BackboneEnsemble",
                "members": [{**gabor, "coreset_fraction": 0.2}],
            },
            {"name": "bad", **gabor, "num_neighbors": 100_000},
        ],
        "datasets": [{"type": "MVTecAD", "root": str(tmp_path / "part")}],
    }
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(configuration))
    return path


class FakeMLflow(ModuleType):
    """The functions of MLflow that the example calls, with MLflow's own checks of what it is given."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: list[dict[str, Any]] = []
        self._active: dict[str, Any] | None = None

    @contextlib.contextmanager
    def start_run(self, *, run_name: str) -> Iterator[None]:
        assert self._active is None, "a run is active already"
        self._active = {"name": run_name, "tags": {}, "params": {}, "metrics": {}, "texts": {}}
        self.runs.append(self._active)
        yield
        self._active = None

    def set_tags(self, tags: dict[str, Any]) -> None:
        assert self._active is not None
        self._active["tags"] |= tags

    def log_params(self, params: dict[str, Any]) -> None:
        assert self._active is not None
        assert all(len(str(value)) <= 6000 for value in params.values())
        self._active["params"] |= params

    def log_metrics(self, metrics: dict[str, float]) -> None:
        assert self._active is not None
        assert all(isinstance(value, (int, float)) for value in metrics.values())
        self._active["metrics"] |= metrics

    def log_text(self, text: str, artifact_file: str) -> None:
        assert self._active is not None
        self._active["texts"][artifact_file] = text


@pytest.mark.slow
def test_mlflow_by_a_module_of_its_interface(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    load_example("track_with_mlflow").main(str(suite), str(tmp_path / "out"))
    good, bad = fake.runs
    report = run(suite, tmp_path / "out").report("good", "part")
    assert good["name"] == "good on part"
    assert good["tags"] == {"detector": "good", "dataset": "part", "category": "part", "status": "done"}
    assert good["params"]["members.0.coreset_fraction"] == "0.2"
    assert good["params"]["members.0.layers"] == "auto"
    assert good["metrics"]["image_auroc"] == report.image_auroc
    low, high = report.details["part"].intervals["aupro"]
    assert (good["metrics"]["aupro.low"], good["metrics"]["aupro.high"]) == (low, high)
    assert (bad["tags"]["status"], bad["metrics"]) == ("failed", {})
    assert bad["texts"]["failure.txt"].startswith("ValueError: num_neighbors")


def test_mlflow_itself(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")
    mlflow: Any = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    load_example("track_with_mlflow").main(str(suite), str(tmp_path / "out"))
    found = {one.info.run_name: one.data for one in mlflow.search_runs(output_format="list")}
    report = run(suite, tmp_path / "out").report("good", "part")
    assert set(found) == {"good on part", "bad on part"}
    assert found["good on part"].metrics["aupro"] == pytest.approx(report.aupro)
    assert found["good on part"].params["members.0.backbone"] == "gabor"
    assert found["bad on part"].tags["status"] == "failed"


@pytest.mark.slow
def test_tensorboard(suite: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    example = load_example("track_with_tensorboard")
    example.main(str(suite), str(tmp_path / "out"), str(tmp_path / "logs"))
    report = run(Suite.read(suite), tmp_path / "out").report("good", "part")
    events = EventAccumulator(str(tmp_path / "logs/good/part/part"))
    events.Reload()
    tags = events.Tags()
    (scalar,) = events.Scalars("image_auroc")
    assert scalar.value == pytest.approx(report.image_auroc)
    assert {"aupro/low", "aupro/high", "fit_seconds"} <= set(tags["scalars"])
    assert set(tags["histograms"]) == {"scores/normal", "scores/anomalous"}
    assert len(tags["images"]) == 8
    assert any(tag.startswith("maps/shiny/") for tag in tags["images"])
    failed = EventAccumulator(str(tmp_path / "logs/bad/part/part"))
    failed.Reload()
    assert failed.Tags()["tensors"] == ["failure/text_summary"]


@pytest.fixture
def mean_colour(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, whose class is registered for the length of a test."""
    separate_registry(monkeypatch)
    monkeypatch.setitem(sys.modules, "mean_colour", ModuleType("mean_colour"))  # dataclasses look there
    example = load_example("mean_colour")
    monkeypatch.setitem(sys.modules, "mean_colour", example)
    return example


def test_mean_colour_finds_another_colour(mean_colour: Any) -> None:
    good, parts = mean_colour.draw_parts(40), mean_colour.draw_parts(4, seed=1)
    parts[0, 32:64, 64:96] = (200, 90, 90)
    detector = mean_colour.MeanColour(device="cpu").fit(good)
    found = detector.predict(parts)
    assert found.is_anomalous[0]
    assert found.anomaly_score[0] > 10 * found.anomaly_score[1:].max()
    place = divmod(int(found.anomaly_map[0].argmax()), found.anomaly_map.shape[2])
    assert 64 <= place[0] < 128 <= place[1] < 192  # the map is of 256 x 256 pixels, the part of 128 x 128


def test_mean_colour_by_hand(mean_colour: Any) -> None:
    """Two images of one colour each: by leave-one-out either scores the distance between the colours."""
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1] = (3, 4, 0)
    detector = mean_colour.MeanColour(resize=None, device="cpu").fit(images)
    assert detector.calibration_.scores.tolist() == pytest.approx([5.0, 5.0], abs=1e-4)
    assert detector.predict(images).anomaly_score.tolist() == pytest.approx([2.5, 2.5], abs=1e-4)
    assert detector.extend(images[1:] + 1).state_.count == 3


def test_mean_colour_is_known_by_its_name(mean_colour: Any) -> None:
    detector = mean_colour.MeanColour(8, device="cpu")
    assert ead.create(detector.describe()).patch_size == 8
    with pytest.raises(ValueError, match="patch_size must be"):
        mean_colour.MeanColour(0)


@pytest.mark.slow
def test_mean_colour_keeps_all_promises(mean_colour: Any, capsys: pytest.CaptureFixture[str]) -> None:
    mean_colour.main()
    assert "check_detector has nothing to object to" in capsys.readouterr().out
