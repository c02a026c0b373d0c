"""`augment` on the command line: `fit --set augment=...`, configuration files, and what `info` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import GABOR, call, call_json
from support.textures import normal_images

import ensemblead as ead


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for number, image in enumerate(normal_images(4, side=32)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_what_was_chosen_is_told(images: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    outcome = call("fit", images, "--model", model, *GABOR, "--set", "augment=auto")
    assert outcome.exit_code == 0, outcome.stderr
    loaded = ead.load(model)
    assert "times as far from others" in " ".join(outcome.stderr.split())
    assert ("learned with changed copies: rotations" in outcome.stdout) == (loaded.augment_ != ())
    assert "an estimate by 4 images shows no false-alarm rate below 1 in 5" in outcome.stdout
    said = call("info", model).stdout
    assert f"settled       augment={list(loaded.augment_)}" in said
    assert "an estimate by 4 images" in said
    found = call_json("info", model)
    assert found["settled"] == {"augment": list(loaded.augment_)}
    assert found["rate_in_words"] == loaded.calibration_.describe_rate()


def test_of_how_many_tiles_it_was_chosen_is_told(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for number, image in enumerate(normal_images(3, side=64)[:, :32]):
        image[:, 32:] = 120  # looks the same whichever way it is turned
        Image.fromarray(image).save(tmp_path / "good" / f"{number}.png")
    options = ["-b", "gabor", "-p", "1", "--device", "cpu", "--set", "augment=auto"]
    options += ["--tile-size", "32", "--stride", "32", "--image-size", "32x64"]
    outcome = call("fit", tmp_path / "good", "--model", tmp_path / "model", *options)
    assert outcome.exit_code == 0, outcome.stderr
    striped, plain = ead.load(tmp_path / "model").members_  # type: ignore[attr-defined]
    assert (striped.augment_, plain.augment_) == ((), ("rotations",))
    said = " ".join(outcome.stderr.split())
    assert "rotations are left out (limit 1.125), at the first of 2 tile locations" in said
    assert "learned with changed copies: rotations, by 1 of 2 detectors of tiles" in outcome.stdout


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("rotations", ["rotations"]),
        ("[brightness, rotations]", ["brightness", "rotations"]),
        ("none", []),
    ],
)
def test_it_can_be_typed(images: Path, tmp_path: Path, typed: str, kept: list[str]) -> None:
    summary = call_json("fit", images, "--model", tmp_path / "m", *GABOR, "--set", f"augment={typed}")
    assert [member["augment"] for member in summary["members"]] == [kept]
    assert call_json("info", tmp_path / "m")["settled"] is None


def test_in_a_file(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "method.json"
    options = {"backbone": "gabor", "resize": 32, "augment": ["rotations"], "device": "cpu"}
    file.write_text(json.dumps({"method": "PatchCore", **options}))
    summary = call_json("fit", images, "--model", tmp_path / "m", "--config", file)
    assert summary["members"][0]["augment"] == ["rotations"]


@pytest.mark.parametrize("wrong", ["rotation", "[rotations, turns]", "2"])
def test_wrong_names_are_bad_input(images: Path, tmp_path: Path, wrong: str) -> None:
    outcome = call("fit", images, "--model", tmp_path / "m", *GABOR, "--set", f"augment={wrong}")
    assert outcome.exit_code == 2
    assert 'augment must be "auto", "rotations" or "brightness"' in " ".join(outcome.stderr.split())
