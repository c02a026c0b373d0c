"""Pictures are drawn from results: whole files, the right content, and nothing where there is nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ensemblead.evaluation import Details, ImageResult, Report, Row, Sample, ScoredImage
from ensemblead.images import Geometry
from ensemblead.metrics import curve_points, precision_recall_points, rank_scores
from ensemblead.report.figures import ContactSheet

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

GEOMETRY = Geometry(resize=(24, 32), crop=20)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def report(*, threshold: float = 0.5, curves: bool = True) -> Report:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2 == 0
    scores = rng.normal(size=40) + 2.0 * labels
    images = [
        ImageResult(f"{index}.png", bool(label), "dent" if label else "good", None, float(score), None)
        for index, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]
    ranking = rank_scores(scores, labels)
    points = {"roc": curve_points(ranking), "precision_recall": precision_recall_points(ranking)}
    details = Details(tuple(images), curves=points if curves else {})
    row = Row("bolt", 1, 20, 20, image_auroc=0.9, image_ap=0.9, threshold=threshold)
    return Report([row], {"bolt": details})


@pytest.mark.slow
def test_curves_are_drawn_per_category(tmp_path: Path) -> None:
    paths = report().figures(tmp_path / "new")
    assert [path.name for path in paths] == ["bolt.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bolt.png"]
    drawn = pixels(paths[0])
    assert min(drawn.shape[:2]) > 500
    again = pixels(report().figures(tmp_path)[0])
    np.testing.assert_array_equal(drawn, again)
    without = pixels(report(threshold=float("nan")).figures(tmp_path)[0])
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 2
    differs = (drawn != without).any(axis=2)
    assert differs[height:, width:].any()  # the histogram's threshold
    assert not differs[:height].any()
    empty = pixels(report(curves=False).figures(tmp_path)[0])
    assert (empty != drawn)[:height, :width].any()


@pytest.mark.slow
def test_names_of_categories_are_no_paths(tmp_path: Path) -> None:
    names = ["../../x", "a/b", "a-b", "..", os.fsdecode(b"pr\xfcf")]
    one = report(curves=False)
    rows = [replace(one.rows[0], category=name) for name in names]
    several = Report(rows, dict.fromkeys(names, one.details["bolt"]))
    paths = several.figures(tmp_path / "out/figures")
    assert [path.name for path in paths] == ["-..-x.png", "a-b-2.png", "a-b.png", "unnamed.png", "pr-f.png"]
    assert sorted(tmp_path.rglob("*.png")) == sorted(paths)


def scored(tmp_path: Path, index: int, kind: str, *, masked: bool = True) -> ScoredImage:
    path = tmp_path / kind / f"{index}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((24, 32, 3), (0, 200, 0), np.uint8)).save(path)
    anomaly_map = np.zeros((20, 20), np.float32)
    anomaly_map[5:12, 5:12] = index + 1.0
    sample = Sample(str(path), kind != "good", kind)
    mask = anomaly_map > 0 if kind != "good" else np.zeros((20, 20), np.bool_)
    return ScoredImage("bolt", sample, index + 1.0, True, anomaly_map, mask if masked else None)


def test_a_contact_sheet_keeps_some_of_every_type(tmp_path: Path) -> None:
    sheet = ContactSheet(GEOMETRY, per_type=2)
    for index in range(3):
        for kind in ("good", "dent", "crack"):
            sheet(scored(tmp_path, index, kind))
    assert [image.sample.defect_type for image in sheet.images()] == ["crack"] * 2 + ["dent"] * 2 + [
        "good"
    ] * 2
    assert [image.score for image in sheet.images()[:2]] == [1.0, 2.0]


def test_the_contour_is_drawn_at_the_threshold(tmp_path: Path) -> None:
    sheet = ContactSheet(GEOMETRY)
    sheet(scored(tmp_path, 0, "dent"))
    sheet(scored(tmp_path, 3, "good", masked=False))

    def red(threshold: float) -> int:
        sheet.save(tmp_path / "sheet.png", threshold)
        drawn = pixels(tmp_path / "sheet.png").astype(int)
        right = drawn[:, int(0.6 * drawn.shape[1]) :]
        return int(((right[..., 0] - right[..., 1] > 100) & (right[..., 0] - right[..., 2] > 60)).sum())

    nothing, one, both = red(float("nan")), red(2.0), red(0.5)
    assert nothing < one < both
    assert red(9.0) == nothing


def test_dollar_signs_in_names_are_no_formulas(tmp_path: Path) -> None:
    named = report()
    (row,) = named.rows
    odd = Report([replace(row, category="a$_{$b")], {"a$_{$b": named.details["bolt"]})
    assert odd.figures(tmp_path)[0].name == "a$_{$b.png"
    sheet = ContactSheet(GEOMETRY)
    sheet(scored(tmp_path, 0, "$\\x$"))
    sheet.save(tmp_path / "sheet.png")
    assert pixels(tmp_path / "sheet.png").size


def test_an_empty_contact_sheet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image was collected"):
        ContactSheet(GEOMETRY).save(tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="per_type must be at least 1, got 0"):
        ContactSheet(GEOMETRY, per_type=0)
    assert list(tmp_path.iterdir()) == []
