"""Suites: running, resuming, failing, and the tables."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.brightness import draw, draw_category, draw_two_categories
from support.report_page import Page
from support.suites import GABOR, SMALL, SMALL_PADIM, Config, two_by_two

pytest.importorskip("torch")
pytest.importorskip("yaml")

import ensemblead as ead
from ensemblead.evaluation import CellResult, ScoredImage, SuiteResults, evaluate, run
from ensemblead.evaluation.results import COLUMNS, TYPE_COLUMNS
from ensemblead.suites.cells import cell_key
from ensemblead.suites.suite import Suite


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories in MVTec layout."""
    return draw_two_categories(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data: Path) -> Config:
    return two_by_two(data)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A folder in which such a suite has been run, and the suite; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("out")
    suite = two_by_two(data)
    run(suite, out)
    return out, suite


def copied(finished: tuple[Path, Config], to: Path) -> tuple[Path, Config]:
    shutil.copytree(finished[0], to / "out")
    return to / "out", copy.deepcopy(finished[1])


def statuses(results: SuiteResults) -> list[tuple[str, str, bool]]:
    return [(cell.detector, cell.category, cell.reused) for cell in results.cells]


class TestRun:
    @pytest.mark.slow
    def test_numbers_are_those_of_evaluate(self, finished: tuple[Path, Config], data: Path) -> None:
        out, config = finished
        results = run(config, out)
        assert results.is_complete
        detector = ead.PatchCore("gabor", ["layer1"], seed=2, device="cpu", **SMALL)
        expected = evaluate(
            lambda category: detector._clone().fit(list(category.train)),
            ead.MVTecAD(data),
            bootstrap=20,
            seed=2,
        )
        report = results.report("one", "parts")
        for row, other in zip(report.rows, expected.rows, strict=True):
            for name in COLUMNS[:20]:
                assert getattr(row, name) == pytest.approx(getattr(other, name), nan_ok=True), name
            mine, theirs = report.details[row.category], expected.details[row.category]
            assert mine.images == theirs.images
            assert mine.intervals == theirs.intervals
            assert mine.types == theirs.types
            assert mine.exact is True
            assert set(mine.curves) == set(theirs.curves)
            for name, curve in mine.curves.items():
                np.testing.assert_array_equal(curve, theirs.curves[name])
        assert report.aupro == pytest.approx(expected.aupro)
        assert report.rows[0].fit_seconds > 0
        assert 10 < report.rows[0].peak_memory_mb < 1e5
        assert set(results.reports()) == {("one", "parts"), ("two", "parts")}
        with pytest.raises(KeyError, match="no results of 'three' on 'parts'"):
            results.report("three", "parts")

    def test_pages(self, finished: tuple[Path, Config], tmp_path: Path) -> None:
        first, config = finished
        out = tmp_path / "out"
        shutil.copytree(first, out)
        paths = sorted((out / "reports").iterdir())
        assert [path.name for path in paths] == ["one-parts.html", "two-parts.html"]
        before = Page(paths[0])
        assert "one on parts" in before.words
        paths[0].unlink()
        times = paths[1].stat().st_mtime_ns
        run(config, out)  # from what was kept
        assert paths[1].stat().st_mtime_ns == times
        assert Page(paths[0]).data == before.data
        assert {item["category"] for item in before.data["items"]} == {0, 1}

    def test_pages_are_those_of_this_configuration(
        self, finished: tuple[Path, Config], tmp_path: Path
    ) -> None:
        out, config = copied(finished, tmp_path)
        pages = [out / "reports/one-parts.html", out / "reports/two-parts.html"]
        nut = {**config["datasets"][0], "category": "nut"}
        run({**config, "datasets": [nut]}, out)
        assert not any("bolt" in Page(path).words for path in pages)
        # And back: all cells are there already, but the pages are of others.
        assert all(reused for *_, reused in statuses(run(config, out)))
        assert all("bolt" in Page(path).words for path in pages)

    @pytest.mark.slow
    def test_an_interrupted_run_leaves_no_page_of_another(
        self, finished: tuple[Path, Config], tmp_path: Path
    ) -> None:
        out, config = copied(finished, tmp_path)
        config["bootstrap"] = 7

        def stop(cell: CellResult) -> None:
            if cell.detector == "two":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(config, out, on_result=stop)
        results = run(config, out)
        assert all(cell.reused for cell in results.cells if cell.detector == "one")
        assert "7 bootstrap replicates" in Page(out / "reports/one-parts.html").words

    def test_tables(self, finished: tuple[Path, Config]) -> None:
        out, _ = finished
        assert sorted(path.name for path in out.iterdir()) == [
            "cells",
            "reports",
            "results.csv",
            "results.json",
            "results.md",
            "types.csv",
        ]
        with (out / "results.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["detector", "dataset", *COLUMNS, "error"]
        assert [(row["detector"], row["category"]) for row in rows] == [
            (detector, category) for detector in ("one", "two") for category in ("bolt", "nut", "mean")
        ]
        mean = (float(rows[0]["aupro"]) + float(rows[1]["aupro"])) / 2
        assert float(rows[2]["aupro"]) == pytest.approx(mean, rel=1e-6)
        with (out / "types.csv").open(newline="") as file:
            types = list(csv.DictReader(file))
        assert list(types[0]) == ["detector", "dataset", "category", *TYPE_COLUMNS]
        assert [(row["detector"], row["category"], row["defect_type"]) for row in types] == [
            (detector, category, kind)
            for detector in ("one", "two")
            for category in ("bolt", "nut")
            for kind in ("dull", "shiny")
        ]
        document = json.loads((out / "results.json").read_text())
        assert document["complete"] is True
        assert document["cells"][0]["types"][0]["aupro"] == pytest.approx(float(types[0]["aupro"]), rel=1e-6)
        assert document["settings"]["seed"] == 2
        assert document["detectors"][0]["num_neighbors"] == 1
        assert document["datasets"] == {"parts": ["bolt", "nut"]}
        assert [cell["status"] for cell in document["cells"]] == ["done"] * 4
        assert len(document["cells"][0]["intervals"]["aupro"]) == 2
        assert [row["category"] for row in document["means"]] == ["mean", "mean"]
        text = (out / "results.md").read_text()
        assert "## Means over categories" in text
        lines = [line for line in text.splitlines() if line.startswith("| one |")]
        assert [line.split(" | ")[1] for line in lines] == ["parts", "bolt", "nut", "mean"]
        assert lines[0].split(" | ")[2:] == lines[3].split(" | ")[2:]

    def test_nothing_is_run_twice(
        self, finished: tuple[Path, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, config = copied(finished, tmp_path)

        def fail(*_: object, **__: object) -> None:
            raise AssertionError("run again")

        monkeypatch.setattr("ensemblead.suites.measuring.measure_category", fail)
        assert all(reused for *_, reused in statuses(run(config, out)))

    def test_only_what_changed_is_run(self, finished: tuple[Path, Config], tmp_path: Path) -> None:
        out, config = copied(finished, tmp_path)
        config["detectors"][0]["num_neighbors"] = 2
        config["detectors"][1]["name"] = "renamed"
        config["detectors"].reverse()
        assert statuses(run(config, out)) == [
            ("renamed", "bolt", True),
            ("renamed", "nut", True),
            ("one", "bolt", False),
            ("one", "nut", False),
        ]
        # And back: what was measured before is still there.
        del config["detectors"][1]["num_neighbors"]
        assert all(reused for *_, reused in statuses(run(config, out)))
        config["bootstrap"] = 0
        del config["detectors"][0]
        assert not any(reused for *_, reused in statuses(run(config, out)))

    @pytest.mark.slow
    def test_changed_data_are_measured_anew(self, config: Config, tmp_path: Path) -> None:
        for index, name in enumerate(("a", "b")):
            draw_category(tmp_path / "data" / name, 100 * index)
        config["datasets"] = [{"type": "MVTecAD", "root": str(tmp_path / "data")}]
        config["detectors"] = config["detectors"][:1]
        run(config, tmp_path / "out")
        draw(tmp_path / "data/a/test/good/0.png", 999)
        assert statuses(run(config, tmp_path / "out")) == [("one", "a", False), ("one", "b", True)]
        draw(tmp_path / "data/b/train/good/new.png", 998)
        assert statuses(run(config, tmp_path / "out")) == [("one", "a", True), ("one", "b", False)]

    def test_files_that_a_detector_names_belong_to_the_key(self, config: Config, tmp_path: Path) -> None:
        """Also those of a list, and those in a folder."""
        for name in ("bad.png", "textures/0.png"):
            draw(tmp_path / name, 1)
        config["detectors"] = [
            {"name": "list", **GABOR, "defects": [str(tmp_path / "bad.png")]},
            {"name": "folder", "type": "DRAEM", "textures": str(tmp_path / "textures")},
        ]
        config["datasets"][0]["category"] = "nut"
        suite = Suite.parse(config)

        def keys() -> list[str]:
            return [cell_key(cell, suite.settings) for cell in suite.cells()]

        before = keys()
        os.utime(tmp_path / "bad.png", (0, 0))
        assert [key == known for key, known in zip(keys(), before, strict=True)] == [False, True]
        before = keys()
        os.utime(tmp_path / "textures/0.png", (0, 0))
        assert [key == known for key, known in zip(keys(), before, strict=True)] == [True, False]

    def test_cells_from_before_types_are_not_measured_anew(
        self, finished: tuple[Path, Config], tmp_path: Path
    ) -> None:
        out, config = copied(finished, tmp_path)
        for path in (out / "cells").iterdir():
            document = json.loads(path.read_text())
            assert [row["defect_type"] for row in document.pop("types")] == ["dull", "shiny"]
            path.write_text(json.dumps(document))
        results = run(config, out)
        assert all(reused for *_, reused in statuses(results))
        assert all(cell.finished is not None and not cell.finished.details.types for cell in results.cells)

    def test_damaged_cells_are_measured_anew(self, finished: tuple[Path, Config], tmp_path: Path) -> None:
        out, config = copied(finished, tmp_path)
        first, second, *_ = sorted((out / "cells").iterdir())
        first.write_text(first.read_text()[:-40])
        document = json.loads(second.read_text())
        del document["row"]["aupro"]
        second.write_text(json.dumps(document))
        assert [reused for *_, reused in statuses(run(config, out))] == [False, False, True, True]
        assert len(list((out / "cells").iterdir())) == 4

    def test_hooks_see_new_cells_only(self, finished: tuple[Path, Config], tmp_path: Path) -> None:
        out, config = copied(finished, tmp_path)
        config["detectors"][0]["seed"] = 9
        images: list[tuple[str, str]] = []
        done: list[CellResult] = []
        steps = set()

        def see(cell: CellResult, image: ScoredImage) -> None:
            images.append((str(cell), image.sample.defect_type))

        run(
            config,
            out,
            on_image=see,
            on_result=done.append,
            progress=lambda cell, stage, *_: steps.add((str(cell), stage)),
        )
        assert [str(cell) for cell in done] == ["one on parts/bolt", "one on parts/nut"]
        assert all(cell.finished is not None and not cell.reused for cell in done)
        assert images[:1] == [("one on parts/bolt", "dull")]
        assert len(images) == 22
        assert ("one on parts/nut", "evaluate") in steps
        assert ("one on parts/nut", "embed") in steps

    @pytest.mark.slow
    def test_every_kind_of_detector(self, config: Config, tmp_path: Path) -> None:
        """Every detector of the library runs as a cell and is found again."""
        size = {"resize": None, "image_size": None}
        pair = {"type": "BackboneEnsemble", "members": [{**GABOR, **size}] * 2}
        kinds: dict[str, Config] = {
            "PatchCore": GABOR,
            "BackboneEnsemble": pair,
            "TiledEnsemble": {"member": pair, "tile_size": [24, 32], "stride": [16, 16], "image_size": None},
            "PaDiM": {**SMALL_PADIM},
        }
        config["detectors"] = [{**kind, "type": name} for name, kind in kinds.items()]
        config["datasets"][0]["category"] = "nut"
        results = run(config, tmp_path / "out")
        assert [str(cell.failure) for cell in results.failures] == []
        assert all(cell.reused for cell in run(config, tmp_path / "out").cells)

    def test_a_training_tells_its_loss(self, config: Config, tmp_path: Path) -> None:
        class Told:
            def __init__(self) -> None:
                self.notes: list[str] = []

            def __call__(self, cell: object, stage: str, done: int, total: int) -> None:
                assert str(cell) == "trained on parts/nut"

            def note(self, text: str, stays: bool) -> None:
                self.notes.append(text)

        training = {"type": "ReverseDistillation", "steps": 3, "batch_size": 2}
        size = {"resize": (32, 32), "image_size": None}
        config["detectors"] = [{"name": "trained", "backbone": "gabor", **training, **size}]
        config["datasets"][0]["category"] = "nut"
        told = Told()
        assert run(config, tmp_path / "out", progress=told).is_complete
        assert len(told.notes) == 3
        assert all(text.endswith(" s a step") for text in told.notes[1:])

    def test_what_a_hook_raises_ends_the_run(self, config: Config, tmp_path: Path) -> None:
        def see(*_: object) -> None:
            raise RuntimeError("the tracker is down")

        with pytest.raises(RuntimeError, match="the tracker is down"):
            run(config, tmp_path / "out", on_image=see)
        assert "pending" in (tmp_path / "out/results.json").read_text()

    @pytest.mark.slow
    def test_saved_models(self, config: Config, data: Path, tmp_path: Path) -> None:
        detector = ead.PatchCore("gabor", device="cpu", **SMALL)
        for name in ("bolt", "nut"):
            detector.fit(list(ead.MVTecAD(data, name).train)).save(tmp_path / "models" / name)
        config["detectors"] = [
            {"model": str(tmp_path / "models")},
            {"name": "bolt's", "model": str(tmp_path / "models/bolt")},
        ]
        results = run(config, tmp_path / "out")
        each, bolts = results.report("models", "parts"), results.report("bolt's", "parts")
        assert each["bolt"].image_auroc == bolts["bolt"].image_auroc
        assert each["nut"].threshold != bolts["nut"].threshold == bolts["bolt"].threshold
        assert math.isnan(each.fit_seconds)
        other = ead.PatchCore("gabor", ["layer1"], device="cpu", **SMALL)
        other.fit(list(ead.MVTecAD(data, "nut").train)).save(tmp_path / "models/nut")
        again = run(config, tmp_path / "out")
        assert [cell.category for cell in again.cells if not cell.reused] == ["nut"]
        for path in (tmp_path / "models/nut").glob("*.safetensors"):
            path.write_bytes(b"")
        with pytest.raises(ead.EnsembleADError, match="nut"):
            run({**config, "seed": 5}, tmp_path / "out")

    def test_saved_models_are_checked_on_the_device_of_the_suite(
        self, config: Config, data: Path, tmp_path: Path
    ) -> None:
        detector = ead.PatchCore("gabor", device="cpu", **SMALL)
        detector.fit(list(ead.MVTecAD(data, "nut").train))
        detector.device = "cuda:77"  # where it was fitted there was one
        detector.save(tmp_path / "model")
        with pytest.raises(ValueError, match="cuda:77"):
            ead.load(tmp_path / "model")
        config["detectors"] = [{"model": str(tmp_path / "model")}]
        assert run(config, tmp_path / "out").is_complete

    def test_networks_that_cannot_be_had_show_first(self, config: Config, tmp_path: Path) -> None:
        config["detectors"].append({"name": "late", **GABOR, "layers": ["layr1"]})
        with pytest.raises(ValueError, match=r"detector 'late': .*layr1.*did you mean"):
            run(config, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_out_must_be_a_folder(self, config: Config, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="out must be a folder"):
            run(config, tmp_path / "file")


class TestFailures:
    def test_nothing_is_written_among_the_images(self, config: Config, data: Path) -> None:
        with pytest.raises(ValueError, match="lies inside the folder of images"):
            run(config, data / "bolt/test/results")
        assert not (data / "bolt/test/results").exists()

    @pytest.mark.slow
    def test_a_failed_cell_lets_the_others_go_on(self, config: Config, tmp_path: Path) -> None:
        config["detectors"][1] = {"name": "greedy", **GABOR, "num_neighbors": 100_000}
        config["detectors"].reverse()
        results = run(config, tmp_path / "out")
        assert [str(cell) for cell in results.failures] == ["greedy on parts/bolt", "greedy on parts/nut"]
        assert sum(cell.status == "done" for cell in results.cells) == 2
        assert not results.is_complete
        with (tmp_path / "out/results.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["category"] for row in rows[:3]] == ["bolt", "nut", "bolt"]
        assert rows[0]["error"].startswith("ValueError: num_neighbors is 100000")
        assert (rows[0]["image_auroc"], rows[0]["num_train"], rows[2]["error"]) == ("", "", "")
        document = json.loads((tmp_path / "out/results.json").read_text())
        assert document["cells"][0]["error"]["kind"] == "ValueError"
        assert "Traceback" in document["cells"][0]["error"]["traceback"]
        text = (tmp_path / "out/results.md").read_text()
        assert "| greedy | bolt | failed |" in text
        assert "- greedy on parts/nut: ValueError: num_neighbors" in text
        # A failure is not kept: it is tried again.
        again = run(config, tmp_path / "out")
        assert [cell.reused for cell in again.cells] == [False, False, True, True]

    @pytest.mark.slow
    def test_a_mean_over_fewer_categories_is_reported(self, config: Config, tmp_path: Path) -> None:
        for index, name in enumerate(("a", "b")):
            draw_category(tmp_path / "data" / name, 100 * index)
        (tmp_path / "data/a/test/good/0.png").write_bytes(b"\x89PNG no more")
        config["datasets"] = [{"type": "MVTecAD", "root": str(tmp_path / "data"), "name": "d"}]
        config["detectors"] = config["detectors"][:1]
        results = run(config, tmp_path / "out")
        (failed,) = results.failures
        assert failed.failure is not None
        assert (failed.category, failed.failure.kind) == ("a", "UnreadableImageError")
        assert "test/good/0.png" in failed.failure.message
        report = results.report("one", "d")
        assert report.warnings == ("mean: over 1 of 2 categories, the others are not done",)
        assert [row.category for _, _, row, _ in results.rows()] == ["a", "b", "mean"]
        with pytest.warns(UserWarning, match=r"one on d/a: .*0\.png"):
            skipped = run({**config, "errors": "skip"}, tmp_path / "out")
        assert skipped.is_complete
        assert skipped.report("one", "d")["a"].num_normal == 4

    def test_one_class_only_is_a_remark_not_a_failure(self, config: Config, tmp_path: Path) -> None:
        root = draw_category(tmp_path / "part", 0)
        for path in (root / "test/good").iterdir():
            path.unlink()
        (root / "test/dull/copy.png").write_bytes((root / "train/good/0.png").read_bytes())
        (root / "ground_truth/dull/copy.png").write_bytes((root / "ground_truth/dull/0.png").read_bytes())
        config["datasets"] = [{"type": "MVTecAD", "root": str(root)}]
        config["detectors"] = config["detectors"][:1]
        with pytest.warns(UserWarning, match=r"one on part: all test images are anomalous"):
            results = run(config, tmp_path / "out")
        report = results.report("one", "part")
        assert math.isnan(report.image_auroc)
        assert report.aupro > 0
        assert len(report.details["part"].duplicates) == 1
        text = (tmp_path / "out/results.md").read_text()
        assert "- one on part: all test images are anomalous: image AUROC, AP and F1 are not defined" in text
        assert "also training images" in text
        again = run(config, tmp_path / "out")  # and no warning: nothing new
        assert again.report("one", "part").warnings == report.warnings


INTERRUPTED = """
import os, signal, sys
from ensemblead.cli import main
from ensemblead.suites import measuring
inner, calls = measuring.measure_category, []
def interrupt(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        signal.raise_signal(signal.SIGINT)
    return inner(*args, **kwargs)
measuring.measure_category = interrupt
main()
"""


class TestCommand:
    def command(self, *arguments: Any, code: str = "from ensemblead.cli import main; main()") -> Any:
        words = [sys.executable, "-c", code, "evaluate", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    @pytest.mark.slow
    def test_ctrl_c_is_resumed(self, config: Config, tmp_path: Path) -> None:
        pytest.importorskip("typer")
        (tmp_path / "s.json").write_text(json.dumps(config))
        arguments = ["--config", tmp_path / "s.json", "--out", tmp_path / "out", "--json"]
        outcome = self.command(*arguments, code=INTERRUPTED)
        assert (outcome.returncode, outcome.stderr) == (130, "ensemblead: interrupted\n")
        document = json.loads((tmp_path / "out/results.json").read_text())
        assert [cell["status"] for cell in document["cells"]] == ["done", "done", "pending", "pending"]
        assert not list((tmp_path / "out").rglob("*.tmp"))
        outcome = self.command(*arguments)
        assert outcome.returncode == 0, outcome.stderr
        found = json.loads(outcome.stdout)
        assert (found["reused"], found["failed"], len(found["cells"])) == (2, 0, 4)
        assert signal.SIGINT  # what the first run was sent

    @pytest.mark.slow
    def test_the_exit_code_shows_failures(self, config: Config, tmp_path: Path) -> None:
        typer_testing = pytest.importorskip("typer.testing")
        from ensemblead.cli.app import app

        yaml = pytest.importorskip("yaml")
        config["detectors"] = [
            {"name": "greedy", **GABOR, "num_neighbors": 100_000},
            config["detectors"][0],
        ]
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump(config))
        call = ["evaluate", "--config", str(path), "--out", str(tmp_path / "out")]
        outcome = typer_testing.CliRunner().invoke(app, call)
        assert outcome.exit_code == 1
        assert "greedy on parts/bolt failed: ValueError: num_neighbors" in outcome.stderr
        assert "failed" in outcome.stdout
        for extra, named in ((["--seed", "3"], "--seed"), ([str(tmp_path)], "DATA")):
            outcome = typer_testing.CliRunner().invoke(app, [*call, *extra])
            assert outcome.exit_code == 2
            assert f"names its data sets and settings itself: leave out {named}" in outcome.stderr
        path.write_text("detectors: [{type: PatchCor}]\ndatasets: 3\n")
        outcome = typer_testing.CliRunner().invoke(app, call)
        assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
        assert "1) line 1: detectors[0].type has the unknown type 'PatchCor'" in outcome.stderr
