"""False regions of normal images and the recall of regions, counted by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("scipy")

from support.brightness import Brightness, draw_category

from ensemblead.evaluation import MVTecAD, evaluate
from ensemblead.evaluation.regions import RegionCounter


def maps(*rows: str) -> Any:
    """A map from digits."""
    return np.array([[int(value) for value in row] for row in rows], np.float32)


class TestCounter:
    def test_by_hand(self) -> None:
        counter = RegionCounter()
        nothing = np.zeros((3, 4), np.bool_)
        counter.add(maps("5005", "0500", "0000"), nothing, False, 4.0)  # two: a corner connects
        counter.add(
            maps("4444", "0000", "0000"), nothing, False, 4.0
        )  # none: the threshold itself is not above
        counter.add(maps("0000", "0000", "0009"), nothing, False, 4.0)
        mask = maps("1001", "1000", "0011") > 0  # three true regions
        counter.add(
            maps("0005", "0005", "0000"), mask, True, 4.0
        )  # hits the one, and what is beside is nothing
        counter.add(maps("5555", "5555", "5555"), mask, True, 4.0)
        counter.add(maps("0000", "0000", "0000"), nothing, True, 4.0)  # a defect that was cropped away
        counter.add(maps("9000", "0000", "0000"), None, True, 4.0)  # nobody knows where
        assert counter.values() == {
            "region_threshold": 4.0,
            "false_regions": 3 / 3,
            "region_recall": 4 / 6,
        }

    def test_what_is_not_known(self) -> None:
        counter = RegionCounter()
        assert counter.values() == {}
        counter.add(maps("1"), np.zeros((1, 1), np.bool_), False, None)
        assert counter.values() == {}
        counter.add(maps("1"), np.zeros((1, 1), np.bool_), False, 0.5)
        assert counter.values() == {"region_threshold": 0.5, "false_regions": 1.0}


class WithRegions(Brightness):
    """Brightness that knows a pixel threshold."""

    def predict_batches(self, images: Sequence[str]) -> Iterator[Any]:
        for batch in super().predict_batches(images):
            batch.pixel_threshold = 150.0  # type: ignore[attr-defined]
            yield batch


def test_evaluate_reports_them(tmp_path: Path) -> None:
    data = MVTecAD(draw_category(tmp_path / "part", 0))
    report = evaluate(WithRegions(), data, bootstrap=0)
    # Noise is below 120. Of the six defects those of 160, 200 and 240 are above 150.
    assert (report.region_threshold, report.false_regions, report.region_recall) == (150.0, 0.0, 0.5)
    report.to_csv(tmp_path / "results.csv")
    head, line = (tmp_path / "results.csv").read_text().splitlines()
    found = dict(zip(head.split(","), line.split(","), strict=True))
    assert (found["region_threshold"], found["false_regions"], found["region_recall"]) == ("150", "0", "0.5")
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Region recall" in page
    assert "region recall" in report.to_markdown()
    unknown = evaluate(Brightness(), data, bootstrap=0)
    assert np.isnan([unknown.region_threshold, unknown.false_regions, unknown.region_recall]).all()
    assert replace(report.rows[0], category="x").region_recall == 0.5
