"""Paths in a configuration file are relative to that file, wherever the program is started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.brightness import draw_category

pytest.importorskip("torch")

import ensemblead as ead
from ensemblead.config.documents import Source, read_source
from ensemblead.evaluation import Suite, run

SMALL: dict[str, Any] = {"resize": (24, 28), "image_size": None, "coreset_fraction": 0.2}
GABOR = {"type": "PatchCore", "backbone": "gabor", "layers": ["layer1"], **SMALL}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a model and, one level down, where configurations lie; elsewhere is worked in."""
    draw_category(tmp_path / "bench/data/part", 0)
    detector = ead.PatchCore("gabor", ["layer1"], device="cpu", **SMALL)
    detector.fit(tmp_path / "bench/data/part/train/good").save(tmp_path / "bench/models/part")
    (tmp_path / "bench/weights").mkdir()
    (tmp_path / "bench/suites").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "bench"


def suite() -> dict[str, Any]:
    return {
        "bootstrap": 0,
        "device": "cpu",
        "detectors": [GABOR, {"name": "kept", "model": "../models"}],
        "datasets": [{"type": "MVTecAD", "root": "../data/part"}],
    }


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_suite_runs_from_anywhere_and_is_found_again(
    bench: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "yaml":
        pytest.importorskip("yaml")
    file = bench / f"suites/s.{suffix}"
    file.write_text(json.dumps(suite()))  # which is YAML too
    results = run(file, "out")
    assert results.is_complete
    assert (bench.parent / "elsewhere/out/results.csv").is_file()
    monkeypatch.chdir(bench)
    again = run(Path("suites") / file.name, "../elsewhere/out")
    assert all(cell.reused for cell in again.cells)
    assert [cell.detector for cell in again.cells] == ["PatchCore gabor", "kept"]


def test_the_paths_of_a_mapping_are_relative_to_the_working_directory(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no such folder: .*/data/part"):
        Suite.parse(suite())
    monkeypatch.chdir(bench / "suites")
    assert Suite.parse(suite()).detectors[1].description["model"] == "../models"


def test_weights_of_a_described_detector(bench: Path) -> None:
    config = suite()
    member = {**GABOR, "backbone": "resnet18", "weights": "../weights/w.safetensors"}
    config["detectors"] = [
        {"name": "one", **member},
        {"name": "two", "type": "BackboneEnsemble", "members": [member, {**member, "weights": None}]},
        {"preset": "patchcore-large", "weights": ["a.safetensors", "/b.safetensors", "default"]},
    ]
    (bench / "suites/s.json").write_text(json.dumps(config))
    one, two, three = (entry.description for entry in Suite.read(bench / "suites/s.json").detectors)
    file = str(bench / "weights/w.safetensors")
    assert one["weights"] == file
    assert [each["weights"] for each in two["members"]] == [file, None]
    assert [each["weights"] for each in three["members"]] == [
        str(bench / "suites/a.safetensors"),
        "/b.safetensors",
        "default",
    ]


def test_other_paths_of_a_described_detector(bench: Path) -> None:
    config = suite()
    config["detectors"] = [
        {"name": "a", **GABOR, "defects": ["../cracks/1.png", "/2.png"], "defect_masks": "../masks"},
        {"name": "b", "type": "DRAEM", "textures": "../textures"},
        {"name": "c", "type": "EfficientAD", "backbone": "resnet18", "penalty_images": "../plain"},
        {"name": "d", "type": "EfficientAD", "backbone": "resnet18", "penalty_images": "procedural"},
    ]
    (bench / "suites/s.json").write_text(json.dumps(config))
    known, draem, folder, drawn = (each.description for each in Suite.read(bench / "suites/s.json").detectors)
    assert known["defects"] == [str(bench / "cracks/1.png"), "/2.png"]
    assert known["defect_masks"] == str(bench / "masks")
    assert draem["textures"] == str(bench / "textures")
    assert [each["penalty_images"] for each in (folder, drawn)] == [str(bench / "plain"), "procedural"]


def test_weights_of_options(bench: Path) -> None:
    from ensemblead.cli.options import DetectorOptions, build_detector, read_config

    def options(*weights: str) -> Any:
        (bench / "c.json").write_text(json.dumps({"backbone": "resnet18", "weights": list(weights)}))
        return read_config(bench / "c.json").weights

    folder = bench / "weights"
    assert options("0.weights/w.pt", "1./w.pt", "2.none", "3.default", "weights/w.pt", "none") == [
        f"0.{folder}/w.pt",
        "1./w.pt",
        "2.none",
        "3.default",
        f"{folder}/w.pt",
        "none",
    ]
    # A file whose own name begins like that of a member.
    (bench / "18.pt").touch()
    assert options("18.pt") == [str(bench / "18.pt")]
    (bench / "c.json").write_text('{"backbone": "resnet18", "weights": "18.pt"}')
    detector = build_detector(DetectorOptions(), read_config(bench / "c.json"))
    assert detector.weights == str(bench / "18.pt")  # type: ignore[attr-defined]


def test_those_on_the_command_line_are_relative_to_the_working_directory(bench: Path) -> None:
    testing = pytest.importorskip("typer.testing")
    from ensemblead.cli.app import app

    (bench / "c.json").write_text(json.dumps({"backbone": "resnet18", "weights": "weights/none.pt"}))
    os.symlink(bench / "data", "data")
    call = ["fit", "data/part/train/good", "--model", "m", "--config", str(bench / "c.json")]
    outcome = testing.CliRunner().invoke(app, call)
    assert f"no such weights file: {bench}/weights/none.pt" in outcome.stderr
    outcome = testing.CliRunner().invoke(app, [*call, "--weights", "weights/none.pt"])
    assert "no such weights file: weights/none.pt" in outcome.stderr


def test_a_linked_folder_has_the_parent_of_the_folder_itself(bench: Path) -> None:
    os.symlink(bench / "suites", "linked")
    (bench / "suites/s.json").write_text(json.dumps({**suite(), "detectors": [GABOR]}))
    straight, linked = (Suite.read(folder / "s.json") for folder in (bench / "suites", Path("linked")))
    assert linked.datasets["part"].train == straight.datasets["part"].train
    # Names are kept where they lead to the same place.
    os.symlink(bench / "data", bench / "suites/pictures")
    source = read_source("linked/s.json")
    assert source.place("pictures/part") == os.path.abspath("linked/pictures/part")
    assert source.place("./none/../x") == os.path.abspath("linked/x")
    assert source.place("pictures/../weights/none.pt") == str(bench / "weights/none.pt")
    assert source.place("..") == str(bench)


def test_a_source_knows_its_folder(bench: Path) -> None:
    (bench / "c.json").write_text("{}")
    source = read_source(os.path.relpath(bench / "c.json"))
    assert source.place("../x") == str(bench.parent / "x")
    assert source.place("/x") == "/x"
    assert Source({}).place("../x") == "../x"
