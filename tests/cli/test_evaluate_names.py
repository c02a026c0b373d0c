"""`evaluate`: names of categories are no paths, wherever they become the name of a file or folder."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.brightness import Brightness, draw_category

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.evaluate import measure, report_table, type_tables
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Dataset
from ensemblead.evaluation import Details, Report, Row, TypeRow


@pytest.mark.slow
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


def test_names_that_are_not_utf8_are_printed() -> None:
    name = os.fsdecode(b"pr\xfcf")
    details = Details(types=(TypeRow(name), TypeRow("b")))
    report = Report([Row(name)], {name: details})
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # which refuses what is not UTF-8
    for table in (report_table(report), *type_tables(report)):
        Console(file=shown, width=200).print(table)
    shown.seek(0)
    assert shown.read().count("pr\\xfcf") == 3
