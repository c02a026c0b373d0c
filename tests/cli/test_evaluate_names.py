"""`evaluate`: names of categories are no paths, wherever they become the name of a file or folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.brightness import Brightness, draw_category

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from ensemblead.cli.bars import Bars
from ensemblead.cli.evaluate import measure
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Dataset


def test_everything_stays_in_the_output_folder(tmp_path: Path) -> None:
    category = MVTecAD(draw_category(tmp_path / "part", 0)).categories[0]
    names = ("../../x", "..-..-x", "/tmp/y")
    dataset = Dataset("odd", [replace(category, name=name) for name in names])
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with Bars() as bars:
        measure(Brightness(), dataset, tmp_path / "deep/in/out", bars, bootstrap=0, gallery=2)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "deep/in/out") for path in written)
    for folder in ("figures", "contact_sheets"):
        assert len(list((tmp_path / "deep/in/out" / folder).iterdir())) == len(names)
