"""Training images that are least like the others, as `fit` names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.textures import normal_images, with_defects
from typer.testing import CliRunner

from ensemblead.calibration import Calibration, odd_images
from ensemblead.cli.app import app

GABOR = {"type": "PatchCore", "backbone": "gabor", "coreset_fraction": 0.1}
TILES = {"type": "TiledEnsemble", "member": GABOR, "tile_size": 32, "stride": 32, "score": "max"}
NATIVE: dict[str, Any] = {"resize": None, "image_size": None}


def calibration(scores: Any, positions: Any = None, rounding: float = 0.0) -> Calibration:
    """Of images whose positions are known: 0, 1, 2 and so on, if none are given."""
    values = np.asarray(scores, np.float32)
    places = tuple(range(len(values)) if positions is None else positions)
    pixels = np.zeros((len(values), 1024), np.float32)
    return Calibration(values, pixels, 0.0, 1.0, 0.01, "leave_one_out", "", rounding, positions=places)


def test_far_above_the_median_is_odd() -> None:
    scores = np.linspace(1, 3, 41)  # median 2, median absolute deviation 0.5, thrice its multiple 2.224
    scores[[37, 39]] = 4.23, 4.22
    assert odd_images(calibration(scores)) == [(37, pytest.approx(4.23))]
    assert odd_images(calibration(np.linspace(1, 3, 41))) == []
    scores[20:27] = range(10, 17)
    assert [index for index, _ in odd_images(calibration(scores))] == [26, 25, 24, 23, 22]
    assert [index for index, _ in odd_images(calibration(scores), most=2)] == [26, 25]
    # Among images that are all alike the least that is more than rounding is odd.
    assert odd_images(calibration([*[0.0] * 20, 1e-13, 0.5], rounding=1e-12)) == [(21, 0.5)]
    # Low scores are as normal as can be.
    assert odd_images(calibration([-50.0, *np.linspace(1, 3, 40)])) == []


def test_images_are_told_by_their_positions() -> None:
    scores = np.linspace(1, 2, 41)
    scores[10] = 9
    assert odd_images(calibration(scores, range(100, 141))) == [(110, 9.0)]


def test_nothing_is_told_where_it_would_be_a_guess() -> None:
    scores = [*np.linspace(1, 2, 9), 9.0]
    assert odd_images(calibration(scores)) == [(9, 9.0)]
    assert odd_images(calibration(scores[1:])) == []
    assert odd_images(calibration(scores, ())) == []  # which they are is not known
    # Equal scores but for rounding: the deviation does not shrink to nothing.
    assert odd_images(calibration([1.0] * 11 + [1.001])) == []
    assert odd_images(calibration([1.0] * 11 + [1.01])) == [(11, pytest.approx(1.01))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 good images, among them a spoiled one, 06.png; and one that cannot be read before it."""
    place = tmp_path_factory.mktemp("images [odd]")
    images = normal_images(14)
    images[6] = with_defects(images[6:7])[0][0]
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f"{i:02d}.png")
    (place / "02b.png").write_bytes(b"\x89PNG no more")
    return place


@pytest.mark.parametrize(
    "detector",
    [
        {**GABOR, **NATIVE},
        {"type": "PaDiM", "backbone": "gabor", "num_dimensions": 8, **NATIVE},
        {"type": "BackboneEnsemble", "members": [{**GABOR, **NATIVE}, {**GABOR, **NATIVE, "score": "topk"}]},
        {**TILES, "image_size": None},
        {**TILES, "image_size": 64, "shared": True},
    ],
    ids=["patchcore", "padim", "ensemble", "tiles", "shared tiles"],
)
def test_fit_names_the_spoiled_image(detector: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(detector))
    call = ["fit", str(folder), "--model", str(tmp_path / "m"), "--config", str(tmp_path / "c.json")]
    call += ["--skip-unreadable", "--device", "cpu"]
    outcome = CliRunner().invoke(app, [*call, "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    summary = json.loads(outcome.stdout)
    assert [Path(one["path"]).name for one in summary["odd_images"]][:1] == ["06.png"]
    assert all(one["score"] > 0 for one in summary["odd_images"])


def test_the_summary_names_it_for_people(folder: Path, tmp_path: Path) -> None:
    call = ["fit", str(folder), "--model", str(tmp_path / "m"), "-b", "gabor", "--resize", "none"]
    call += ["--image-size", "none", "-p", "1.0", "--device", "cpu", "--skip-unreadable"]
    outcome = CliRunner().invoke(app, call)
    lines = outcome.stdout.splitlines()
    (head,) = (i for i, line in enumerate(lines) if line.startswith("training images least like the others"))
    assert lines[head + 1].startswith(f"  {folder}/06.png  ")
    call += ["--overwrite"]
    refused = CliRunner().invoke(app, [*call, "--calibrate", str(folder)])
    assert refused.exit_code == 2
    assert "images: the detector would be fitted on 15 of those to calibrate by" in refused.stderr
    (tmp_path / "fresh").mkdir()
    for i, image in enumerate(normal_images(5, seed=3)):
        Image.fromarray(image).save(tmp_path / "fresh" / f"{i}.png")
    good = [*call, "--calibrate", str(tmp_path / "fresh")]
    assert "least like the others" in CliRunner().invoke(app, good).stdout
    for i in (6, 2):
        (folder / f"{i:02d}.png").rename(tmp_path / f"{i}.png")
    quiet = CliRunner().invoke(app, call)
    assert quiet.exit_code == 0, quiet.stderr
    assert "least like the others" not in quiet.stdout
