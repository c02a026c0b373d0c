"""`predict`, and commands as a script would call them: files, exit codes, JSON, interruptions."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import GABOR, call, call_json

import ensemblead as ead
from ensemblead.cli.pictures import overlay, place_back
from ensemblead.evaluation.gallery import color_scale
from ensemblead.images import Geometry


class TestPredict:
    def test_files(self, category: Path, model: Path, tmp_path: Path) -> None:
        summary = call_json("predict", model, category / "test", "--out", tmp_path, "--maps")
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
                # Below the photograph is the caption, which is wider than so small a picture.
                assert picture.width >= 64
                assert picture.height > 64
        assert not list(tmp_path.rglob(".*"))

    def test_the_heat_is_where_the_blot_is(self, category: Path, model: Path, tmp_path: Path) -> None:
        call_json("predict", model, category / "test/blot", "--out", tmp_path)
        image = np.asarray(Image.open(category / "test/blot/000.png"), np.int16)
        drawn = np.asarray(Image.open(tmp_path / "heat_maps/000.png"), np.int16)[:64, :64]
        mask = np.asarray(Image.open(category / "ground_truth/blot/000_mask.png").convert("L")) > 0
        change = abs(drawn - image).sum(axis=2)
        assert change[mask].mean() > 1.5 * change[~mask].mean()

    def test_pictures_of_before_are_told(self, category: Path, model: Path, tmp_path: Path) -> None:
        image, other = category / "test/blot/000.png", category / "test/blot/001.png"
        assert call_json("predict", model, image, "--out", tmp_path)["warnings"] == []
        again = call_json("predict", model, other, "--out", tmp_path)["warnings"]
        assert again == [
            f"{tmp_path / 'heat_maps'} holds 1 files of before: those of images that are not given now stay"
        ]

    def test_choices(self, category: Path, model: Path, tmp_path: Path) -> None:
        image = category / "test/blot/000.png"
        summary = call_json("predict", model, image, "--out", tmp_path, "--scale", 0, 9)
        assert summary["color_scale"] == [0.0, 9.0]
        names = [*("000.png", "heat_maps", "objects.json", "report.html", "scores.csv")]
        assert sorted(path.name for path in tmp_path.rglob("*")) == names
        assert summary["maps"] is summary["masks"] is None
        call_json("predict", model, image, "--out", tmp_path / "few", "--no-heat-maps", "--pictures", 0)
        assert sorted(path.name for path in (tmp_path / "few").rglob("*")) == ["objects.json", "scores.csv"]

    def test_several_files_folders_and_patterns(
        self, category: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        test = category / "test"
        files = [test / "good/001.png", test / "good/000.png", test / "good/001.png"]
        summary = call_json("predict", model, *files, test / "blot", "--out", tmp_path / "o", "--maps")
        named = [Path(one["path"]).relative_to(test).as_posix() for one in summary["predictions"]]
        assert named == ["good/001.png", "good/000.png", *(f"blot/{i:03d}.png" for i in range(4))]
        assert (tmp_path / "o/heat_maps/good/001.png").is_file()
        assert (tmp_path / "o/maps/blot/000.tiff").is_file()
        monkeypatch.chdir(test)
        summary = call_json("predict", model, "*/00[12].png", "--out", tmp_path / "p")
        assert [one["path"] for one in summary["predictions"]] == [
            "blot/001.png",
            "blot/002.png",
            "good/001.png",
            "good/002.png",
        ]
        outcome = call("predict", model, "*/9*.png", "--out", tmp_path / "q")
        assert (outcome.exit_code, "images: nothing matches */9*.png" in outcome.stderr) == (2, True)
        # A file whose name looks like a pattern is a file.
        shutil.copy(test / "good/000.png", tmp_path / "[1].png")
        assert call_json("predict", model, tmp_path / "[1].png", "--out", tmp_path / "r")["images"] == 1

    def test_json_carries_scores_and_verdicts(self, category: Path, model: Path, tmp_path: Path) -> None:
        summary = call_json("predict", model, category / "test", "--out", tmp_path)
        expected = ead.load(model).predict(category / "test")
        found = summary["predictions"]
        assert [one["path"] for one in found] == expected.paths
        scores = np.float32([one["anomaly_score"] for one in found])
        np.testing.assert_allclose(scores, expected.anomaly_score, rtol=1e-5)
        assert [one["is_anomalous"] for one in found] == expected.is_anomalous.tolist()
        assert sum(one["is_anomalous"] for one in found) == summary["anomalous"]

    def test_names_that_collide_keep_their_suffix(self, category: Path, model: Path, tmp_path: Path) -> None:
        images = tmp_path / "images"
        images.mkdir()
        for suffix in ("png", "bmp"):
            Image.open(category / "test/good/000.png").save(images / f"a.{suffix}")
        call_json("predict", model, images, "--out", tmp_path / "out")
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


# Ctrl-C as soon as the fit has begun: a progress callback is where the command is for most of its time.
INTERRUPTED = """
import os, signal, sys
from ensemblead.cli import main
from {module} import {cls}
inner = {cls}.{method}
def interrupt(self, *args, **kwargs):
    signal.raise_signal(signal.SIGINT)
    return inner(self, *args, **kwargs)
{cls}.{method} = interrupt
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "cls", "method"),
    [
        ("ensemblead.cli.bars", "Bars", "__call__"),
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


@pytest.mark.slow
def test_ctrl_c_from_outside_keeps_the_earlier_model(category: Path, model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "m")
    before = (tmp_path / "m/model.json").read_bytes()
    code = "import time\nfrom ensemblead.cli.bars import Bars\n"
    code += "def wait(*_):\n    print('running', flush=True)\n    time.sleep(60)\nBars.__call__ = wait\n"
    code += "from ensemblead.cli import main\nmain()"
    arguments = ["fit", str(category / "train/good"), "--model", str(tmp_path / "m"), *GABOR, "--overwrite"]
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


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from ensemblead.cli.evaluate import report_table
    from ensemblead.evaluation import Report, Row

    Console(width=200).print(report_table(Report([Row("screw [red]")], {}, [])))
    assert "screw [red]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "PIL"])
def test_a_missing_extra_is_named(category: Path, tmp_path: Path, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nfrom ensemblead.cli import main; main()"
    arguments = ["fit", str(category / "train/good"), "--model", str(tmp_path / "m"), *GABOR]
    outcome = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1, outcome.stderr
    assert 'pip install ".[cpu]"' in outcome.stderr
    assert f"needs {module}" in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    code = "from ensemblead.cli import main; main()"
    arguments = ["--debug", "fit", str(tmp_path / "nowhere"), "--model", str(tmp_path / "m")]
    outcome = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 1
    assert "Traceback" in outcome.stderr
    assert "FileNotFoundError" in outcome.stderr
