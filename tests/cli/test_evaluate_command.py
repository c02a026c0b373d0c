"""`ensemblead evaluate`: models, configurations and test sets; files, JSON and errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from support.commands import CONFIG, call, call_json
from support.report_page import Page

from ensemblead.cli.bars import Bars


class TestEvaluate:
    def test_a_model(self, category: Path, model: Path, tmp_path: Path) -> None:
        found = call_json("evaluate", model, category, "--out", tmp_path, "--bootstrap", 20)
        assert found["summary"]["image_auroc"] == 1.0
        assert found["summary"]["pixel_auroc"] > 0.9
        (kind,) = found["categories"][0]["types"]
        assert (kind["defect_type"], kind["num_images"], kind["image_auroc"]) == ("blot", 4, 1.0)
        assert "weave,blot,4,1," in (tmp_path / "types.csv").read_text()
        assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
            "contact_sheets/weave.png",
            "figures/weave.png",
            "report.html",
            "results.csv",
            "results.json",
            "results.md",
            "types.csv",
        ]
        with open(tmp_path / "results.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        assert float(row["aupro"]) == pytest.approx(found["summary"]["aupro"], rel=1e-6)
        everything = Page(tmp_path / "report.html").data["items"]
        assert len(everything) == sum(found["summary"][name] for name in ("num_normal", "num_anomalous"))
        call_json("evaluate", model, category, "--out", tmp_path, "--bootstrap", 0, "--gallery", 2)
        assert len(Page(tmp_path / "report.html").data["items"]) == 2

    def test_learned_images_are_told(self, category: Path, model: Path, tmp_path: Path) -> None:
        places = [
            "--good",
            category / "train/good",
            "--bad",
            category / "test/blot",
            "--missing-masks",
            "exclude",
        ]
        found = call_json("evaluate", model, *places, "--out", tmp_path, "--bootstrap", 0)
        count = len(list((category / "train/good").iterdir()))
        assert any(
            f"{count} of {count} normal test images are ones that the detector has learned" in line
            for line in found["warnings"]
        )
        assert "training images ·" not in Page(tmp_path / "report.html").words

    def test_learned_images_are_told_beside_copies_of_files(
        self, category: Path, model: Path, tmp_path: Path
    ) -> None:
        own = tmp_path / "own"
        shutil.copytree(category, own)
        files = sorted((own / "train/good").iterdir())
        for place in (own / "test/good").iterdir():
            place.unlink()
        for file in files[:3]:
            shutil.copy(file, own / "test/good")
        for file in files[1:]:
            file.unlink()
        found = call_json("evaluate", model, own, "--out", tmp_path / "out", "--bootstrap", 0)
        assert any("1 test image(s) are also training images" in line for line in found["warnings"])
        assert any("3 of 3 normal test images are ones" in line for line in found["warnings"])

    @pytest.mark.slow
    def test_folders_of_good_and_bad_images(self, category: Path, model: Path, tmp_path: Path) -> None:
        places = ["--good", category / "test/good", "--bad", category / "test/blot"]
        masks = ["--masks", category / "ground_truth/blot"]
        options = ["--out", tmp_path, "--bootstrap", 0]
        whole = call_json("evaluate", model, category, *options)["summary"]
        found = call_json("evaluate", model, *places, *masks, *options)["summary"]
        names = ("image_auroc", "pixel_auroc", "aupro", "num_normal", "num_anomalous", "miss_rate")
        assert {name: found[name] for name in names} == {name: whole[name] for name in names}
        assert found["num_train"] == 0
        without = call_json("evaluate", model, *places, *options)["summary"]
        assert (without["image_auroc"], without["pixel_auroc"]) == (1.0, None)
        good = call_json("evaluate", model, *places[:2], *options)["summary"]
        assert (good["num_anomalous"], good["image_auroc"]) == (0, None)
        assert good["false_alarm_rate"] is not None

    @pytest.mark.slow
    def test_a_test_set_without_training_images(self, category: Path, model: Path, tmp_path: Path) -> None:
        whole = call_json("evaluate", model, category, "--out", tmp_path / "o", "--bootstrap", 0)
        root = tmp_path / "root"
        for name in ("one", "two"):
            (root / name).mkdir(parents=True)
            for part in ("test", "ground_truth"):
                (root / name / part).symlink_to(category / part)
        alone = call_json("evaluate", model, root / "one", "--out", tmp_path / "p", "--bootstrap", 0)
        chosen = ["--category", "two"]
        second = call_json("evaluate", model, root, *chosen, "--out", tmp_path / "q", "--bootstrap", 0)
        both = call_json("evaluate", model, root, "--out", tmp_path / "r", "--bootstrap", 0)
        rows = [*alone["categories"], *second["categories"], *both["categories"]]
        assert [row["category"] for row in rows] == ["one", "two", "one", "two"]
        for row in rows:
            assert row["pixel_auroc"] == whole["summary"]["pixel_auroc"]
            assert [kind["defect_type"] for kind in row["types"]] == ["blot"]
        # A configuration has to be fitted first.
        (tmp_path / "c.json").write_text(json.dumps(CONFIG))
        config = ["--config", tmp_path / "c.json"]
        outcome = call("evaluate", root / "one", *config, "--out", tmp_path / "s")
        assert (outcome.exit_code, "train" in outcome.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--bad", "b"], "--bad goes with --good FOLDER"),
            (["--good", "g", "--masks", "m"], "--masks goes with --bad FOLDER"),
            (["--good", "g", "data"], "evaluate takes MODEL alone with --good, got 2 paths"),
            (["--good", "nowhere"], "no such folder"),
        ],
    )
    def test_wrong_folders(self, model: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        outcome = call("evaluate", model, *arguments, "--out", tmp_path)
        assert (outcome.exit_code, outcome.stderr.count("\n")) == (2, 1)
        assert message in outcome.stderr

    @pytest.mark.slow
    def test_a_configuration_fits_every_category(self, category: Path, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir()
        for name in ("one", "two"):
            (root / name).symlink_to(category)
        (tmp_path / "c.json").write_text(json.dumps(CONFIG))
        arguments = ["--config", tmp_path / "c.json", "--out", tmp_path / "o", "--bootstrap", 0]
        found = call_json("evaluate", root, *arguments)
        assert [row["category"] for row in found["categories"]] == ["one", "two"]
        assert found["summary"]["category"] == "mean"
        assert all(row["fit_seconds"] > 0 for row in found["categories"])
        with open(tmp_path / "o/results.csv", newline="") as file:
            assert [row["category"] for row in csv.DictReader(file)] == ["one", "two", "mean"]

    @pytest.mark.slow
    def test_progress_names_the_category_once(
        self, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = set()

        class Listening(Bars):
            def __call__(self, stage: str, done: int, total: int) -> None:
                said.add(f"{self._prefix} {stage}".strip())

        monkeypatch.setattr("ensemblead.cli.evaluate.Bars", Listening)
        (tmp_path / "c.json").write_text(json.dumps(CONFIG))
        call_json("evaluate", category, "--config", tmp_path / "c.json", "--out", tmp_path, "--bootstrap", 0)
        of_category = {"weave: embed", "weave: select", "weave: calibrate", "weave: evaluating"}
        assert said == {*of_category, "writing results", "writing contact sheets"}

    @pytest.mark.slow
    def test_a_folder_of_models(self, category: Path, model: Path, tmp_path: Path) -> None:
        (tmp_path / category.name).symlink_to(model)
        found = call_json("evaluate", tmp_path, category, "--out", tmp_path / "o", "--bootstrap", 0)
        assert found["summary"]["image_auroc"] == 1.0

    @pytest.mark.slow
    def test_unreadable_test_images(self, category: Path, model: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(category, copy)
        (defect,) = sorted((copy / "test").glob("*/*.png"))[:1]
        defect.write_bytes(defect.read_bytes()[:40])
        outcome = call("evaluate", model, copy, "--out", tmp_path / "o")
        assert (outcome.exit_code, f"cannot read image {defect}" in outcome.stderr) == (2, True)
        assert len(outcome.stderr.splitlines()) == 1
        found = call_json(
            "evaluate", model, copy, "--out", tmp_path / "o", "--bootstrap", 0, "--skip-unreadable"
        )
        (row,) = found["categories"]
        total = len(list((category / "test").glob("*/*.png")))
        assert row["num_normal"] + row["num_anomalous"] == total - 1
        assert any(str(defect) in warning for warning in found["warnings"])

    def test_wrong_calls(self, category: Path, model: Path, tmp_path: Path) -> None:
        outcome = call("evaluate", category, "--out", tmp_path)
        assert (outcome.exit_code, "takes MODEL and DATA" in outcome.stderr) == (2, True)
        outcome = call("evaluate", model, category / "test", "--out", tmp_path)
        assert (outcome.exit_code, "train" in outcome.stderr) == (2, True)
        outcome = call("evaluate", model, category, "--out", tmp_path, "--layout", "coco")
        assert (outcome.exit_code, "layout must be one of" in outcome.stderr) == (2, True)
