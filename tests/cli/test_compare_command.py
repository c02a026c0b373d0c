"""`compare`: two saved models on the same images."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("scipy")
from support.commands import call, call_json

import ensemblead as ead


@pytest.fixture(scope="module")
def sharper(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, with a threshold that calls everything anomalous."""
    path = tmp_path_factory.mktemp("sharper") / "model"
    detector = ead.load(model)
    detector.threshold_ = 0.001
    detector.save(path)
    return path


def test_a_category(category: Path, model: Path, sharper: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = call_json("compare", model, sharper, category, "--out", out, "--bootstrap", 10)
    expected = ead.compare(ead.load(model), ead.load(sharper), ead.MVTecAD(category), bootstrap=0).data
    assert document["num_images"] == 8
    assert document["changed"] == [one.path for one in expected.changed]
    assert document["broken"] == expected.broken
    assert document["new"]["metrics"]["false_alarm_rate"] == 1.0
    assert set(document["old"]["intervals"]) >= {"image_auroc"}
    with (out / "comparison.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [one.path for one in expected.images]
    assert (out / "comparison.json").is_file()
    assert "verdicts change" in Path(document["html"]).read_text()


def test_images_and_exit_codes(category: Path, model: Path, sharper: Path, tmp_path: Path) -> None:
    good = category / "test/good"
    given = ("compare", model, sharper, good, "--out", tmp_path)
    outcome = call(*given)
    assert outcome.exit_code == 0, outcome.stderr
    assert "4 images; 4 verdicts change: 4 normal to anomalous, 0 anomalous to normal" in outcome.stdout
    assert "mended" not in outcome.stdout
    assert call(*given, "--fail-on-change").exit_code == 3
    assert call("compare", model, model, good, "--out", tmp_path, "--fail-on-change").exit_code == 0


def test_refusals(category: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(category, tmp_path / "root/one")
    shutil.copytree(category, tmp_path / "root/two")
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        ((model, tmp_path / "none", category, *out), "no saved model"),
        ((model, model, tmp_path / "root", *out), "one category, got 2 (one, two)"),
        ((model, model, tmp_path / "nowhere", *out), "nowhere"),
        ((model, model, category, "--out", model / "out"), "inside the model"),
        ((model, model, category, "--out", category / "test/good"), "inside the folder of images"),
        ((model, model, category, *out, "--bootstrap", -1), "bootstrap must be at least 0"),
    ):
        outcome = call("compare", *arguments)
        assert (outcome.exit_code, message in " ".join(outcome.stderr.split())) == (2, True), outcome.stderr
    assert not (tmp_path / "out").exists()
