"""`ensemblead fit --set contamination=auto`: what was left out is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import GABOR, call, call_json
from support.textures import normal_images, with_defects

import ensemblead as ead

LAYER = [*GABOR, "-le", "layer1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    bad, _ = with_defects(normal_images(2, seed=3, side=32))
    pixels = np.concatenate([normal_images(14, side=32), bad])
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


def test_what_was_left_out_is_told_and_saved(images: Path, tmp_path: Path) -> None:
    arguments = ("fit", images, "--model", tmp_path / "m", *LAYER, "--set", "contamination=auto")
    summary = call_json(*arguments)
    assert sorted(Path(one["path"]).name for one in summary["left_out"]) == ["14.png", "15.png"]
    assert all(one["deviations"] > 6 and one["by"] == [] and not one["partly"] for one in summary["left_out"])
    assert (summary["images"], summary["learned"], summary["threshold_images"]) == (16, 14, 14)
    loaded = ead.load(tmp_path / "m")
    assert [one.path for one in loaded.left_out_] == [one["path"] for one in summary["left_out"]]
    told = call(*arguments, "--overwrite").stdout
    assert "left out 2 of 16 images, as odd among the others: " in told
    assert "14.png" in told


def test_nothing_is_told_where_nothing_was_left_out(images: Path, tmp_path: Path) -> None:
    outcome = call("fit", images, "--model", tmp_path / "m", *GABOR)
    assert outcome.exit_code == 0, outcome.stderr
    assert "left out" not in outcome.stdout


def test_a_wrong_share_is_bad_input(images: Path, tmp_path: Path) -> None:
    outcome = call("fit", images, "--model", tmp_path / "m", *GABOR, "--set", "contamination=0.5")
    assert (outcome.exit_code, "contamination must be between 0 and 0.5" in outcome.stderr) == (2, True)
