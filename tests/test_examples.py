"""The examples for experiment trackers run: with those that are installed, and MLflow's also without."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.brightness import draw_category

pytest.importorskip("torch")

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
    assert good["params"]["members.0.layers"] == "['layer2', 'layer3']"
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
