"""Regions of interest on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import CONFIG, GABOR, call, call_json
from support.textures import SIDE

import ensemblead as ead
from ensemblead.images import Region


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[: SIDE // 2] = 255
    path = tmp_path_factory.mktemp("region") / "mask.png"
    Image.fromarray(drawn).save(path)
    return path


def test_fit_and_predict(category: Path, mask: Path, tmp_path: Path) -> None:
    arguments = ("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "--region", mask)
    summary = call_json(*arguments)
    detector = ead.load(tmp_path / "m")
    assert detector.region == Region.of(mask)
    assert summary["inspected_share"] == 0.5
    assert summary["region"].startswith("Region(50% of")
    outcome = call("predict", tmp_path / "m", category / "test/good", "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    shown = [np.array(Image.open(path).convert("RGB")) for path in (tmp_path / "out").rglob("*.png")]
    assert shown
    for picture in shown:  # grey outside
        outside = picture[SIDE // 2 + 2 : SIDE, :SIDE].astype(int)  # without the caption
        assert np.ptp(outside, axis=2).max() <= 1


@pytest.mark.parametrize("tiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ensembles_in_files_and_tiles(category: Path, mask: Path, tmp_path: Path, tiled: bool) -> None:
    (mask.parent / "c.json").write_text(json.dumps({"method": "patchcore", **CONFIG, "region": "mask.png"}))
    given: list[Any] = ["--config", mask.parent / "c.json"]
    if tiled:
        sizes = ["--tile-size", SIDE // 2, "--stride", SIDE // 2, "--image-size", SIDE]
        given = [*GABOR[:2], "-p", 0.2, "--device", "cpu", "--set", f"region={mask}", *sizes]
    call_json("fit", category / "train/good", "--model", tmp_path / "m", *given)
    detector = ead.load(tmp_path / "m")
    assert detector.region == Region.of(mask)
    if isinstance(detector, ead.TiledEnsemble):
        assert len(detector.members_) == 2
        assert detector.tile_grid_ == (2, 2)
    else:
        assert not tiled


def test_refusals(category: Path, tmp_path: Path) -> None:
    arguments = ("fit", category / "train/good", "--model", tmp_path / "m", *GABOR, "--region")
    missing = call(*arguments, tmp_path / "none.png")
    assert missing.exit_code == 2
    assert "none.png" in missing.stderr
    Image.new("L", (7, 5), 255).save(tmp_path / "small.png")
    small = call(*arguments, tmp_path / "small.png")
    assert small.exit_code == 2
    assert "for photographs of 5 x 7 pixels" in small.stderr.replace("\n", " ")
    assert not (tmp_path / "m").exists()
