"""Report: its attributes, its mean, and the files it writes."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.brightness import Brightness, draw_category

from ensemblead.evaluation import MVTecAD, Report, Row, evaluate
from ensemblead.evaluation.results import COLUMNS


@pytest.fixture
def part(tmp_path: Path) -> MVTecAD:
    return MVTecAD(draw_category(tmp_path / "part", 0))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_csv(part: MVTecAD, tmp_path: Path) -> None:
    report = evaluate(Brightness(), part, bootstrap=0)
    report.to_csv(tmp_path / "new/results.csv")
    rows = read_rows(tmp_path / "new/results.csv")
    assert len(rows) == 1
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["category"] == "part"
    assert rows[0]["num_train"] == "3"
    assert rows[0]["fit_seconds"] == ""
    assert float(rows[0]["aupro"]) == pytest.approx(report.aupro, abs=1e-7)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.csv"]


def two_rows() -> Report:
    first = Row("a", 3, 5, 6, image_auroc=1.0, aupro=0.5, predict_seconds=2.0, peak_memory_mb=10.0)
    second = Row("b", 1, 1, 2, image_auroc=0.5, predict_seconds=1.0, peak_memory_mb=30.0)
    return Report([first, second], warnings=["x"])


def test_results_of_several_categories_end_with_a_mean(tmp_path: Path) -> None:
    report = two_rows()
    report.to_csv(tmp_path / "results.csv")
    rows = read_rows(tmp_path / "results.csv")
    assert [row["category"] for row in rows] == ["a", "b", "mean"]
    mean = rows[-1]
    assert (mean["image_auroc"], mean["aupro"], mean["num_normal"]) == ("0.75", "0.5", "6")
    assert (mean["predict_seconds"], mean["peak_memory_mb"], mean["pixel_auroc"]) == ("3", "30", "")
    assert float(mean["images_per_second"]) == pytest.approx(14 / 3)


def test_results_json(part: MVTecAD, tmp_path: Path) -> None:
    report = evaluate(Brightness(), part, bootstrap=50)
    report.to_json(tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["summary"]["image_auroc"] == report.image_auroc
    category = found["categories"][0]
    assert category["fit_seconds"] is None
    assert category["pixel_metrics_exact"] is True
    assert len(category["images"]) == 11
    assert category["images"][0]["label"] is True
    assert category["intervals"]["aupro"] == list(report.details["part"].intervals["aupro"])
    assert found["settings"]["bootstrap"] == 50


def test_markdown_table(part: MVTecAD, tmp_path: Path) -> None:
    text = two_rows().to_markdown(tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == text
    lines = text.splitlines()
    assert lines[0].startswith("| category | image AUROC |")
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["a", "b", "mean"]
    assert "| 0.7500 |" in lines[4]
    assert "| - |" in lines[3]
    assert lines[-1] == "- x"
    report = evaluate(Brightness(), part, bootstrap=50)
    low, high = report.details["part"].intervals["aupro"]
    assert f"{report.aupro:.4f} [{low:.4f}, {high:.4f}]" in report.to_markdown(intervals=True)


def test_names_stay_within_their_cells_of_a_markdown_table() -> None:
    assert Report([Row("a|b\nc")], {}, []).to_markdown().splitlines()[2].startswith("| a\\|b c | -")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.csv"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        two_rows().to_csv(target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_report_attributes() -> None:
    report = two_rows()
    assert set(COLUMNS) <= set(dir(report))
    assert repr(report).startswith("Report(2 categories, image_auroc=0.7500")
    with pytest.raises(AttributeError, match="Report has no attribute 'auroc'"):
        _ = report.auroc
    with pytest.raises(ValueError, match="rows must hold at least one category"):
        Report([])


def test_names_that_are_not_utf8_are_written_with_escapes(part: MVTecAD, tmp_path: Path) -> None:
    name = os.fsdecode(b"pr\xfcf\nung\r")
    category = part.categories[0]
    test = [replace(one, defect_type=name) if one.defect_type == "dull" else one for one in category.test]
    report = evaluate(Brightness(), replace(category, name=name, test=tuple(test)), bootstrap=0)
    report.to_csv(tmp_path / "results.csv")
    report.to_csv(tmp_path / "types.csv", by_type=True)
    report.to_markdown(tmp_path / "results.md")
    report.to_json(tmp_path / "results.json")
    report.to_html(tmp_path / "report.html")
    assert [row["category"] for row in read_rows(tmp_path / "results.csv")] == ["pr\\xfcf\nung\r"]
    assert {row["defect_type"] for row in read_rows(tmp_path / "types.csv")} == {"pr\\xfcf\nung\r", "shiny"}
    assert r"| pr\xfcf ung |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert r"pr\xfcf" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())["categories"][0]["category"] == name
