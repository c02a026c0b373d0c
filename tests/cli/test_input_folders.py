"""Folders that `fit` and `predict` refuse before they load anything."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from support.pictures import draw
from typer.testing import CliRunner

from ensemblead.cli.app import app


def error_of(*arguments: object) -> str:
    outcome = CliRunner().invoke(app, [str(one) for one in arguments])
    assert outcome.exit_code != 0
    return f"{outcome.exception} {outcome.stderr}"


def test_predict_does_not_write_among_its_images(tmp_path: Path) -> None:
    images, other = tmp_path / "images", tmp_path / "other"
    draw(images / "0.png")
    draw(other / "deep/1.png")
    for given in ([images], [other, images]):
        said = error_of("predict", tmp_path / "model", *given, "--out", images / "out")
        assert "lies inside the folder of images" in said
    assert not (images / "out").exists()


def test_evaluate_does_not_write_among_its_images(tmp_path: Path) -> None:
    good, bad = tmp_path / "ok", tmp_path / "nok"
    for folder in (good, bad):
        draw(folder / "0.png")
    for out in (good, bad / "results"):
        said = error_of("evaluate", tmp_path / "model", "--good", good, "--bad", bad, "--out", out)
        assert "lies inside the folder of images" in said
    assert not (bad / "results").exists()
    for place in ("train/good", "test/good", "test/dent"):
        draw(tmp_path / "bolt" / place / "0.png")
    for out in ("test", "test/results", "train/results"):
        said = error_of("evaluate", tmp_path / "model", tmp_path / "bolt", "--out", tmp_path / "bolt" / out)
        assert "lies inside the folder of images" in said, out


def test_fit_names_the_folder_that_is_right(tmp_path: Path) -> None:
    for category in ("bolt", "nut"):
        for place in ("train/good", "test/dent", "ground_truth/dent"):
            draw(tmp_path / category / place / "0.png")
    model = tmp_path / "model"
    said = error_of("fit", tmp_path, "--model", model)
    assert "2 categories (bolt, nut)" in said
    assert f"ensemblead fit {tmp_path}/bolt/train/good --model" in said
    assert f"fit on {tmp_path}/nut/train/good" in error_of("fit", tmp_path / "nut", "--model", model)
    assert "holds masks" in error_of("fit", tmp_path / "nut/ground_truth", "--model", model)
    assert not model.exists()
