"""`fit`, `predict` and `evaluate` as a script would call them: files, exit codes, JSON, interruptions."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.report_page import Page
from support.textures import normal_images, with_defects
from typer.testing import CliRunner, Result

import ensemblead as ead
from ensemblead.cli.app import app
from ensemblead.cli.console import Bars
from ensemblead.cli.options import (
    DetectorOptions,
    build_detector,
    read_config,
)
from ensemblead.cli.pictures import overlay, place_back
from ensemblead.evaluation.gallery import color_scale
from ensemblead.images import Geometry

GABOR = ["-b", "gabor", "--resize", "none", "--image-size", "none", "-p", "0.1", "--device", "cpu"]
CONFIG = {"backbone": "gabor", "resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def call_json(*arguments: Any) -> dict[str, Any]:
    outcome = call(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    document: dict[str, Any] = json.loads(outcome.stdout)
    return document


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec layout: 12 normal images to fit on, 4 normal and 4 blotted ones to test on."""
    folder = tmp_path_factory.mktemp("data") / "weave"
    spoiled, masks = with_defects(normal_images(4, seed=2))
    places = {"train/good": normal_images(12), "test/good": normal_images(4, seed=1), "test/blot": spoiled}
    places["ground_truth/blot"] = np.repeat(masks[..., None], 3, axis=3).astype(np.uint8) * 255
    for place, images in places.items():
        (folder / place).mkdir(parents=True)
        suffix = "_mask" if place.startswith("ground_truth") else ""
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / place / f"{i:03d}{suffix}.png")
    return folder


@pytest.fixture(scope="module")
def model(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "gabor"
    summary = call_json("fit", category / "train/good", "--model", path, *GABOR)
    assert summary["images"] == 12
    return path


class TestFit:
    def test_a_described_minmax_is_refused_before_the_work(self, category: Path, tmp_path: Path) -> None:
        member = {"type": "PatchCore", "backbone": "gabor", "layers": ["layer1"]}
        described = {"type": "BackboneEnsemble", "members": [member, member], "fusion": "minmax"}
        (tmp_path / "c.json").write_text(json.dumps(described))
        data = category / "train/good"
        outcome = call("fit", data, "--model", tmp_path / "m", "--config", tmp_path / "c.json")
        assert (outcome.exit_code, "fit with another fusion" in outcome.stderr) == (2, True)
        assert not (tmp_path / "m").exists()

    def test_minmax_is_refused_before_the_work(self, category: Path, tmp_path: Path) -> None:
        network = ["-b", "gabor", "-b", "gabor", "-le", "0.layer1", "-le", "1.layer2"]
        outcome = call(
            "fit", category / "train/good", "--model", tmp_path / "m", *network, "--fusion", "minmax"
        )
        assert (outcome.exit_code, "predict could not use" in outcome.stderr) == (2, True)
        assert not (tmp_path / "m").exists()

    def test_summary_and_model(self, category: Path, tmp_path: Path) -> None:
        summary = call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "--seed", 3)
        detector = ead.load(tmp_path / "m")
        assert isinstance(detector, ead.PatchCore)
        assert (detector.seed, detector.resize, detector.coreset_fraction) == (3, None, 0.1)
        assert summary["threshold"] == detector.threshold_
        (member,) = summary["members"]
        assert member["bank_rows"] == len(detector.memory_bank_)
        assert member["layers"] == ["layer2", "layer3"]
        assert summary["skipped"] == []

    def test_same_seed_same_model(self, category: Path, model: Path, tmp_path: Path) -> None:
        call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR)
        kept, again = ead.load(model), ead.load(tmp_path / "m")
        assert isinstance(kept, ead.PatchCore)
        assert isinstance(again, ead.PatchCore)
        assert bool((kept.memory_bank_.rows_ == again.memory_bank_.rows_).all())

    def test_an_ensemble_as_the_reference_writes_it(self, category: Path, tmp_path: Path) -> None:
        members = ["-b", "gabor", "-b", "resnet18", "-le", "0.layer2", "-le", "1.layer1", "-le", "1.layer2"]
        sizes = ["--resize", 64, "--image-size", 64, "-p", "0.05", "--device", "cpu"]
        summary = call_json(
            "fit", category / "train/good", "--model", tmp_path / "m", *members, *sizes, "--weights", "1.none"
        )
        assert summary["detector"] == "BackboneEnsemble"
        assert [member["layers"] for member in summary["members"]] == [["layer2"], ["layer1", "layer2"]]
        detector = ead.load(tmp_path / "m")
        assert isinstance(detector, ead.BackboneEnsemble)
        assert [leaf.target_dim for leaf in detector._leaves()] == [384, 384]  # type: ignore[attr-defined]
        assert call_json("predict", tmp_path / "m", category / "test", "--out", tmp_path / "o")["images"] == 8

    def test_fresh_images_set_a_guaranteed_threshold(self, category: Path, tmp_path: Path) -> None:
        fresh = ["--calibrate", category / "test/good", "--false-alarm-rate", "0.2"]
        summary = call_json("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, *fresh)
        assert (summary["false_alarm_rate"], summary["false_alarm_rate_is"]) == (0.2, "guaranteed")

    def test_a_threshold_that_is_replaced_is_not_warned_of(self, category: Path, tmp_path: Path) -> None:
        few = ["fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "-p", "0.001", "--json"]
        alone = call(*few)
        assert "ensemblead: warning: the memory bank has only" in alone.stderr
        assert len(json.loads(alone.stdout)["warnings"]) == 1
        outcome = call(*few, "--calibrate", category / "test/good", "--false-alarm-rate", "0.2")
        assert (outcome.exit_code, outcome.stderr) == (0, "")
        assert json.loads(outcome.stdout)["warnings"] == []

    def test_a_single_image_is_enough_with_a_warning(self, category: Path, tmp_path: Path) -> None:
        image = category / "train/good/000.png"
        outcome = call("fit", image, "--model", tmp_path / "m", *GABOR, "--json")
        assert outcome.exit_code == 0, outcome.stderr
        assert "ensemblead: warning: no training image can be scored" in outcome.stderr
        assert json.loads(outcome.stdout)["warnings"]

    def test_unreadable_images(self, category: Path, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for path in (category / "train/good").iterdir():
            os.link(path, folder / path.name)
        (folder / "broken.png").write_bytes(b"\x89PNG no more")
        (folder / "notes.txt").write_text("no image")
        outcome = call("fit", folder, "--model", tmp_path / "m", *GABOR)
        assert outcome.exit_code == 2
        assert "broken.png" in outcome.stderr
        assert not (tmp_path / "m").exists()
        summary = call_json("fit", folder, "--model", tmp_path / "m", *GABOR, "--skip-unreadable")
        assert [Path(one["path"]).name for one in summary["skipped"]] == ["broken.png"]
        assert summary["ignored_files"] == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-le", "layr2"], "did you mean"),
            (["-b", "resnet", "-le", "0.layer2", "-le", "1.layer2"], "did you mean"),
            (["-b", "resnet18", "-le", "layer2"], "0.layer2 (gabor) or 1.layer2 (resnet18)"),
            (["-p", "1.5"], "coreset_fraction"),
            (["--resize", "big"], "resize must be pixels, HxW or none, got 'big'"),
            (["--preset", "missoin"], "preset must be one of mission, got 'missoin'"),
            (["--preset", "mission"], "brings its backbones and layers"),
            (["--fusion", "max"], "fusion is for several backbones"),
            (["--false-alarm-rate", "0.1"], "needs --calibrate"),
            (["--weights", "nowhere.safetensors"], "no such weights file: nowhere.safetensors"),
            (["--device", "abacus"], "device must be"),
        ],
    )
    def test_wrong_options(self, category: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        options = ["--model", tmp_path / "m", "-b", "gabor", "--device", "cpu", *arguments]
        outcome = call("fit", category / "train/good", *options)
        assert outcome.exit_code == 2
        assert message in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_folders_that_hold_defects_are_refused(self, category: Path, tmp_path: Path) -> None:
        for folder in (category, category / "test"):
            outcome = call("fit", folder, "--model", tmp_path / "m", *GABOR)
            assert outcome.exit_code == 2
            assert str(folder) in outcome.stderr

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        outcome = call("fit", tmp_path / "empty", "--model", tmp_path / "m", *GABOR)
        assert (outcome.exit_code, "no image files" in outcome.stderr) == (2, True)
        outcome = call("fit", tmp_path / "nowhere", "--model", tmp_path / "m", *GABOR)
        assert (outcome.exit_code, "no such folder" in outcome.stderr) == (2, True)

    def test_what_is_no_model_is_not_overwritten(self, category: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("precious")
        outcome = call("fit", category / "train/good", "--model", tmp_path, *GABOR)
        assert outcome.exit_code == 2
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_weights_that_cannot_be_had_are_an_error_of_the_library(
        self, category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ensemblead.networks import zoo

        def offline(*_: Any) -> Any:
            raise OSError("no network")

        monkeypatch.setattr(zoo, "_timm_pretrained", offline)
        outcome = call("fit", category / "train/good", "--model", tmp_path / "m", "-b", "resnet18")
        assert outcome.exit_code == 1
        assert "--weights PATH" in outcome.stderr


class TestConfig:
    def test_the_command_line_goes_first(self, tmp_path: Path) -> None:
        file = tmp_path / "c.json"
        file.write_text(json.dumps({"backbone": "gabor", "resize": [64, 32], "seed": 5, "image_size": None}))
        options = DetectorOptions(seed=7).over(read_config(file))
        detector = build_detector(options)
        assert isinstance(detector, ead.PatchCore)
        assert (detector.resize, detector.image_size, detector.seed) == ((64, 32), None, 7)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"coreset_fractoin": 0.1}',
                r"coreset_fractoin is an unknown key; did you mean coreset_fraction",
            ),
            ('{"seed": "1"}', 'seed must be a whole number, got "1"'),
            ('{"seed": true}', "seed must be a whole number"),
            ('{"layers": [1]}', "layers must be a string or a list of strings"),
            ('{"resize": [1, 2, 3]}', "resize must be a number of pixels"),
            ("[]", "must hold one mapping, got list"),
            ("{", "is not JSON"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(tmp_path / "c.json")

    def test_fit_reads_it(self, category: Path, tmp_path: Path) -> None:
        config = {**CONFIG, "layers": ["layer3"]}
        (tmp_path / "c.json").write_text(json.dumps(config))
        summary = call_json(
            "fit", category / "train/good", "--model", tmp_path / "m", "--config", tmp_path / "c.json"
        )
        assert summary["members"][0]["layers"] == ["layer3"]


class TestPredict:
    def test_files(self, category: Path, model: Path, tmp_path: Path) -> None:
        summary = call_json("predict", model, category / "test", "--out", tmp_path)
        with open(tmp_path / "scores.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        expected = ead.load(model).predict(category / "test")
        assert list(rows[0]) == ["path", "anomaly_score", "is_anomalous", "threshold"]
        assert [row["path"] for row in rows] == expected.paths
        assert np.array_equal(np.float32([row["anomaly_score"] for row in rows]), expected.anomaly_score)
        assert [row["is_anomalous"] == "True" for row in rows] == expected.is_anomalous.tolist()
        assert summary["anomalous"] == int(expected.is_anomalous.sum())
        blots = [row for row in rows if Path(row["path"]).parent.name == "blot"]
        assert all(row["is_anomalous"] == "True" for row in blots)
        for i, path in enumerate(expected.paths):
            below = Path(str(path)).relative_to(category / "test").with_suffix("")
            with Image.open(tmp_path / "maps" / f"{below}.tiff") as tiff:
                assert tiff.mode == "F"
                assert np.array_equal(np.asarray(tiff), expected.anomaly_map[i])
            with Image.open(tmp_path / "heat_maps" / f"{below}.png") as picture:
                assert picture.size == (64, 64)
        assert not list(tmp_path.rglob(".*"))

    def test_the_heat_is_where_the_blot_is(self, category: Path, model: Path, tmp_path: Path) -> None:
        call_json("predict", model, category / "test/blot", "--out", tmp_path)
        image = np.asarray(Image.open(category / "test/blot/000.png"), np.int16)
        drawn = np.asarray(Image.open(tmp_path / "heat_maps/000.png"), np.int16)
        mask = np.asarray(Image.open(category / "ground_truth/blot/000_mask.png").convert("L")) > 0
        change = abs(drawn - image).sum(axis=2)
        assert change[mask].mean() > 2 * change[~mask].mean()

    def test_choices(self, category: Path, model: Path, tmp_path: Path) -> None:
        image = category / "test/blot/000.png"
        summary = call_json("predict", model, image, "--out", tmp_path, "--no-maps", "--scale", 0, 9)
        assert summary["color_scale"] == [0.0, 9.0]
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["000.png", "heat_maps", "scores.csv"]

    def test_names_that_collide_keep_their_suffix(self, category: Path, model: Path, tmp_path: Path) -> None:
        images = tmp_path / "images"
        images.mkdir()
        for suffix in ("png", "bmp"):
            Image.open(category / "test/good/000.png").save(images / f"a.{suffix}")
        call_json("predict", model, images, "--out", tmp_path / "out", "--no-maps")
        names = sorted(path.name for path in (tmp_path / "out/heat_maps").iterdir())
        assert names == ["a.bmp.png", "a.png.png"]

    def test_damaged_models_and_wrong_places(self, category: Path, model: Path, tmp_path: Path) -> None:
        assert call("predict", tmp_path / "nothing", category / "test", "--out", tmp_path).exit_code == 2
        outcome = call("predict", category, category / "test", "--out", tmp_path)
        assert (outcome.exit_code, "no saved model" in outcome.stderr) == (1, True)
        (tmp_path / "file").touch()
        assert call("predict", model, category / "test", "--out", tmp_path / "file").exit_code == 2
        before = sorted(model.rglob("*"))
        for inside in (model, model / "out"):
            outcome = call("predict", model, category / "test", "--out", inside)
            assert (outcome.exit_code, "lies inside the model" in outcome.stderr) == (2, True)
        assert sorted(model.rglob("*")) == before
        outcome = call("predict", model, category / "test", "--out", tmp_path, "--scale", 2, 1)
        assert (outcome.exit_code, "scale must rise" in outcome.stderr) == (2, True)


class TestPictures:
    def test_minmax_maps_run_from_0_to_1(self) -> None:
        parts = [ead.PatchCore("gabor", (layer,)) for layer in ("layer1", "layer2")]
        assert color_scale(ead.BackboneEnsemble(parts, fusion="minmax")) == (0.0, 1.0)

    @pytest.mark.parametrize(("height", "width"), [(100, 161), (37, 20), (512, 512)])
    def test_a_map_lies_where_the_network_looked(self, height: int, width: int) -> None:
        """The image's own coordinates, seen by the network and placed back, are themselves again."""
        geometry = Geometry(80, (64, 48) if height > 40 else (60, 70))
        top, left, bottom, right = geometry.crop_box(height, width)
        shape = geometry.output_size(height, width)
        y = top + (np.arange(shape[0]) + 0.5) * (bottom - top) / shape[0]
        x = left + (np.arange(shape[1]) + 0.5) * (right - left) / shape[1]
        for axis, line in enumerate((y, x)):
            grid = np.broadcast_to(line[:, None] if axis == 0 else line, shape).astype(np.float32)
            placed = place_back(grid, geometry, (height, width))
            assert placed.shape == (height, width)
            expected = np.mgrid[:height, :width][axis] + 0.5
            seen = np.isfinite(placed)
            margin = 2 + abs(line[1] - line[0])  # where the map ends, interpolation has nothing to go on
            low, high = (top, left)[axis] + margin, (bottom, right)[axis] - margin
            inside = (expected > low) & (expected < high) & seen
            assert inside.any()
            assert np.abs(placed - expected)[inside].max() < 1e-3
            rows, columns = np.nonzero(seen)
            assert rows.min() + 0.5 >= top
            assert rows.max() + 0.5 < bottom
            assert columns.min() + 0.5 >= left
            assert columns.max() + 0.5 < right

    def test_overlay(self) -> None:
        image = np.full((2, 2, 3), 100, np.uint8)
        placed = np.array([[0.0, 1.0], [5.0, np.nan]], np.float32)
        drawn = overlay(image, placed, (0.0, 1.0))
        assert (drawn[0, 0] == 100).all()
        assert drawn[0, 1].tolist() == drawn[1, 0].tolist() != [100, 100, 100]
        assert drawn[1, 1].tolist() == [146, 146, 146]

    def test_the_scale_comes_from_the_model_alone(self, model: Path) -> None:
        detector = ead.load(model)
        low, high = color_scale(detector)
        pixels = detector.calibration_.pixels
        assert low == pytest.approx(float(np.median(pixels)))
        assert high > float(np.quantile(pixels, 0.999))


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
        assert said == {"weave: embed", "weave: select", "weave: calibrate", "weave: evaluating"}

    def test_a_folder_of_models(self, category: Path, model: Path, tmp_path: Path) -> None:
        (tmp_path / category.name).symlink_to(model)
        found = call_json("evaluate", tmp_path, category, "--out", tmp_path / "o", "--bootstrap", 0)
        assert found["summary"]["image_auroc"] == 1.0

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


# Ctrl-C as soon as the fit has begun: a progress callback is where the command is for most of its time.
INTERRUPTED = """
import os, signal, sys
from ensemblead.cli import main
from {module} import {cls}
inner = {cls}.{method}
def interrupt(self, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    return inner(self, *args, **kwargs)
{cls}.{method} = interrupt
main()
"""


@pytest.mark.parametrize(
    ("module", "cls", "method"),
    [
        ("ensemblead.detectors.base", "Detector", "_note"),
        ("ensemblead.memory.bank", "MemoryBank", "fit"),
        ("ensemblead.store", "FolderWriter", "finish"),
    ],
    ids=["embedding", "selecting", "saving"],
)
def test_ctrl_c_leaves_nothing_behind(
    category: Path, tmp_path: Path, module: str, cls: str, method: str
) -> None:
    code = INTERRUPTED.format(module=module, cls=cls, method=method)
    command = [
        sys.executable,
        "-c",
        code,
        "fit",
        str(category / "train/good"),
        "--model",
        str(tmp_path / "m"),
    ]
    outcome = subprocess.run([*command, *GABOR], capture_output=True, text=True, check=False)
    assert outcome.returncode == 130, outcome.stderr
    assert outcome.stderr == "ensemblead: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_from_outside_keeps_the_earlier_model(category: Path, model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "m")
    before = (tmp_path / "m/model.json").read_bytes()
    code = "import time\nfrom ensemblead.detectors.base import Detector\n"
    code += "def wait(*_):\n    print('running', flush=True)\n    time.sleep(60)\nDetector._note = wait\n"
    code += "from ensemblead.cli import main\nmain()"
    arguments = ["fit", str(category / "train/good"), "--model", str(tmp_path / "m"), *GABOR]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (130, "ensemblead: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m/model.json").read_bytes() == before


def test_brackets_in_names_are_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from ensemblead.cli.console import Bars
    from ensemblead.cli.evaluate import report_table
    from ensemblead.evaluation import Report, Row

    Console(width=200).print(report_table(Report([Row("screw [red]")], {}, [])))
    assert "screw [red]" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")  # bars are drawn on terminals only
    with Bars() as bars:
        bars.prefix("[/one] on parts:")
        bars("embed", 1, 2)
    assert "[/one] on parts: reading images" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["torch", "PIL", "safetensors"])
def test_a_missing_extra_is_named(category: Path, tmp_path: Path, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nfrom ensemblead.cli import main; main()"
    arguments = ["fit", str(category / "train/good"), "--model", str(tmp_path / "m"), *GABOR]
    outcome = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1, outcome.stderr
    assert 'pip install "ensemblead[cpu]"' in outcome.stderr
    assert f"needs {module}" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code = "from ensemblead.cli import main; main()"
    arguments = ["--debug", "fit", str(tmp_path / "nowhere"), "--model", str(tmp_path / "m")]
    outcome = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1
    assert "Traceback" in outcome.stderr
    assert "FileNotFoundError" in outcome.stderr
