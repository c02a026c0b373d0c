"""The comparison of an export with its detector: what counts as moved, and what the table shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
from ensemblead.common.predictions import Predictions
from ensemblead.detectors.exporting import ComparedImage, ExportReport, compared


def _predictions(score: float, map_value: float, verdict: bool) -> Predictions:
    return Predictions(
        np.array([score], np.float32), np.full((1, 2, 2), map_value, np.float32), np.array([verdict]), [None]
    )


def test_a_report_counts_nan_and_verdicts() -> None:
    pairs = [(_predictions(2.0, 4.0, True), _predictions(2.2, 4.0, True))]
    pairs += [(_predictions(0.1, 1.0, False), _predictions(0.2, 1.4, False))]
    report = compared(pairs, ["a", "b"], 1.0, 0.2, 0)
    assert report.passed
    assert report.largest_score_change == pytest.approx(0.1)
    assert report.largest_map_change == pytest.approx(0.1)
    assert report.rank_correlation == pytest.approx(1.0)
    changed = compared(
        [*pairs, (_predictions(1, 0, True), _predictions(1, 0, False))], ["a", "b", "c"], 1, 0.2, 0
    )
    assert not changed.passed
    assert changed.changed_verdicts == 1
    assert "c  (verdict changes)" in str(changed)
    broken = compared(
        [*pairs, (_predictions(1, 0, True), _predictions(math.nan, 0, True))], ["a", "b", "c"], 1, 0.2, 0
    )
    assert not broken.passed
    assert broken.worst.image == "c"
    shape = _predictions(1, 0, True)
    shape.anomaly_map = shape.anomaly_map[:, :1]
    assert not compared([(_predictions(1, 0, True), shape)], ["a"], 1, 0.2, 0).passed


def test_scores_of_zero_without_a_threshold() -> None:
    """Images that the memory bank holds."""
    pairs = [(_predictions(0, 0, False), _predictions(1e-9, 1e-9, False))]
    assert not compared(pairs, ["a"], math.inf, 1e-3, 0).passed
    assert compared(pairs, ["a"], math.inf, 1e-3, 0, rounding=1e-5).passed
    pairs += [(_predictions(2, 2, False), _predictions(2, 2, False))]
    report = compared(pairs, ["a", "b"], math.inf, 1e-3, 0)
    assert report.passed
    assert report.largest_score_change == pytest.approx(1e-9)


def test_a_verdict_that_changes_is_named_though_others_move_more() -> None:
    rows = [ComparedImage(f"{i}.png", 1.0, 1.0, 0.01 * i, 0.0, True, True) for i in range(1, 12)]
    rows.append(ComparedImage("flipped.png", 1.0, 1.0, 0.0, 0.0, True, False))
    report = ExportReport(tuple(rows), 0.2, 0)
    assert not report.passed
    assert report.worst.image == "flipped.png"
    assert "the worst is flipped.png" in report.failure()
    assert "flipped.png  (verdict changes)" in str(report)
    assert ExportReport(tuple(rows), 0.1, 0).worst.image == "11.png"  # which moves too far


def test_the_table_shows_the_worst_ten() -> None:
    rows = tuple(ComparedImage(f"{i}.png", 1.0, 1.0 + i, float(i), 0.0, True, True) for i in range(12))
    lines = str(ExportReport(rows, 0.1, 0)).splitlines()
    assert lines[1].endswith("11.png")
    assert lines[-1] == "and 2 more"
    assert ExportReport(rows, 0.1, 0).summary()["rank_correlation"] is None
