"""Results by type of defect: rows, files, the console's table and the page's."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.brightness import (
    GEOMETRY,
    HEIGHT,
    WIDTH,
    Brightness,
    FakePredictions,
    draw,
    draw_category,
    draw_two_categories,
)
from support.report_page import Page

from ensemblead.evaluation import (
    Category,
    Folder,
    MVTecAD,
    Report,
    Row,
    Sample,
    TypeRow,
    VisA,
    aupro,
    evaluate,
)
from ensemblead.evaluation.by_type import missed, worst_first
from ensemblead.evaluation.results import TYPE_COLUMNS, CategoryResult
from ensemblead.images import read_image, read_mask
from ensemblead.report.text import without_nan
from ensemblead.suites.cells import as_document, from_document

pytest.importorskip("PIL")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

NAN_ROW = {"image_auroc": math.nan, "pixel_auroc": math.nan, "aupro": math.nan, "error_bound": math.nan}


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """5 good images and one that raises a false alarm; 3 dull defects, all missed, and 3 shiny ones."""
    root = draw_category(tmp_path / "part", 0)
    draw(root / "test/good/9.png", 9, (14, 14, 250))
    return root


def naive(category: Category, kind: str) -> TypeRow:
    """The type's row from its images and the good ones, read again one by one."""
    own = [sample for sample in category.test if not sample.label or sample.defect_type == kind]
    maps = np.stack([GEOMETRY.apply(read_image(sample.path))[..., 0] for sample in own]).astype(np.float32)
    masks = np.stack(
        [
            GEOMETRY.apply_mask(read_mask(s.mask_path)) if s.mask_path else np.zeros((16, 16), np.bool_)
            for s in own
        ]
    )
    labels = np.array([sample.label for sample in own])
    scores = maps.max(axis=(1, 2))
    return TypeRow(
        kind,
        int(labels.sum()),
        float(sklearn_metrics.roc_auc_score(labels, scores)),
        float(sklearn_metrics.roc_auc_score(masks.ravel(), maps.ravel())),
        aupro(maps, masks),
        float((scores[labels] <= 150.0).mean()),
        0.0,
    )


def test_rows_are_those_of_the_type_and_the_good_images(part: Path) -> None:
    data = MVTecAD(part)
    types = evaluate(Brightness(), data, bootstrap=0).details["part"].types
    assert [row.defect_type for row in types] == ["dull", "shiny"]
    for row in types:
        expected = asdict(naive(data.categories[0], row.defect_type))
        assert asdict(row) == {
            name: pytest.approx(value, abs=1e-12) if isinstance(value, float) else value
            for name, value in expected.items()
        }
    assert [row.miss_rate for row in types] == [1.0, 0.0]
    assert types[0].pixel_auroc < types[1].pixel_auroc


def test_a_type_without_masks_has_no_pixel_metrics(part: Path) -> None:
    for mask in (part / "ground_truth/dull").iterdir():
        mask.unlink()
    with pytest.warns(UserWarning, match=r"3 defective image\(s\) have no mask"):
        report = evaluate(Brightness(), MVTecAD(part, missing_masks="exclude"), bootstrap=0)
    dull, shiny = report.details["part"].types
    assert dull.image_auroc > 0.5
    assert dull.miss_rate == 1.0
    assert all(math.isnan(value) for value in (dull.pixel_auroc, dull.aupro, dull.error_bound))
    # The only type with masks: its maps are those of the whole.
    assert (shiny.pixel_auroc, shiny.aupro) == (report.pixel_auroc, report.aupro)


def test_nothing_good_leaves_what_is_defined(part: Path) -> None:
    whole = MVTecAD(part).categories[0]
    with pytest.warns(UserWarning, match="all test images are anomalous"):
        report = evaluate(Brightness(), replace(whole, test=tuple(s for s in whole.test if s.label)))
    for row in report.details["part"].types:
        assert math.isnan(row.image_auroc)
        assert row.aupro > 0
        assert row.miss_rate == float(row.defect_type == "dull")
    with pytest.warns(UserWarning, match="all test images are normal"):
        report = evaluate(Brightness(), replace(whole, test=tuple(s for s in whole.test if not s.label)))
    assert report.details["part"].types == ()


def test_no_threshold_no_misses(part: Path) -> None:
    class Undecided(Brightness):
        def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
            for batch in super().predict_batches(images):
                yield replace(batch, is_anomalous=None)

    details = evaluate(Undecided(), MVTecAD(part), bootstrap=0).details["part"]
    assert all(math.isnan(row.miss_rate) for row in details.types)
    assert missed(details, "dull") == ""


def test_streaming_bounds_the_error_of_types(part: Path) -> None:
    exact = evaluate(Brightness(), MVTecAD(part), bootstrap=0).details["part"].types
    with pytest.warns(UserWarning, match=r"may be off by at most .*, those of a type of defect by") as caught:
        report = evaluate(Brightness(), MVTecAD(part), bootstrap=0, memory_limit=3000)
    bounds = []
    for row, other in zip(report.details["part"].types, exact, strict=True):
        assert abs(row.aupro - other.aupro) <= row.error_bound + 1e-9
        assert abs(row.pixel_auroc - other.pixel_auroc) <= row.error_bound + 1e-9
        bounds.append(row.error_bound)
    assert f"by {max(bounds):.2g}" in str(caught[0].message)
    # The first type has no defective pixels, so nothing of it can be off.
    for mask in (part / "ground_truth/dull").iterdir():
        Image.new("L", (WIDTH, HEIGHT)).save(mask)
    with pytest.warns(UserWarning, match="may be off by at most") as caught:
        report = evaluate(Brightness(), MVTecAD(part), bootstrap=0, memory_limit=3000)
    dull, shiny = report.details["part"].types
    assert math.isnan(dull.error_bound)
    assert f"those of a type of defect by {shiny.error_bound:.2g}" in str(caught[0].message)


def test_data_without_types_have_one(tmp_path: Path, part: Path) -> None:
    flat = tmp_path / "flat"
    for index in range(4):
        draw(flat / f"ok/{index}.png", index)
        draw(flat / f"bad/{index}.png", 50 + index, (14, 14, 130 + 10 * index), flat / f"masks/{index}.png")
    data = Folder(flat, normal="ok", anomalous="bad", masks="masks", holdout=0.5)
    report = evaluate(Brightness(), data, bootstrap=0)
    (row,) = report.details["flat"].types
    assert (row.defect_type, row.num_images) == ("bad", 4)
    assert [row.image_auroc, row.pixel_auroc, row.aupro, row.miss_rate] == [
        *(report.image_auroc, report.pixel_auroc, report.aupro, report.miss_rate)
    ]
    # Samples that somebody lists without types, called as good ones are, are still defective.
    nameless = tuple(Sample(s.path, s.label, mask_path=s.mask_path) for s in data.test)
    (other,) = (
        evaluate(Brightness(), Category("flat", data.train, nameless), bootstrap=0).details["flat"].types
    )
    assert other == replace(row, defect_type="good")


def test_visa_has_the_types_of_its_annotations_or_one(tmp_path: Path) -> None:
    images, lines, notes = tmp_path / "candle/Data/Images", [], []
    for index in range(3):
        for kind, defect in (("Normal", None), ("Anomaly", (14, 14, 120 + 40 * index))):
            mask = tmp_path / f"candle/Data/Masks/Anomaly/{index}.png" if defect else None
            draw(images / f"{kind}/{index}.png", 10 * index + len(lines), defect, mask)
            place, label = f"candle/Data/Images/{kind}/{index}.png", kind.lower()
            named = f"candle/Data/Masks/Anomaly/{index}.png" if defect else ""
            lines.append(f"candle,test,{label},{place},{named}")
            notes.append(f"{place},{'wax' if index else 'hole'},")
    draw(images / "Normal/train.png", 99)
    lines.append("candle,train,normal,candle/Data/Images/Normal/train.png,")
    (tmp_path / "split_csv").mkdir()
    table = tmp_path / "split_csv/1cls.csv"
    table.write_text("\n".join(["object,split,label,image,mask", *lines, ""]))
    report = evaluate(Brightness(), VisA(tmp_path, "candle"), bootstrap=0)
    (row,) = report.details["candle"].types
    assert (row.defect_type, row.num_images, row.aupro) == ("anomaly", 3, report.aupro)
    (tmp_path / "candle/image_anno.csv").write_text("\n".join(["image,label,mask", *notes, ""]))
    data = VisA(tmp_path, "candle")
    types = evaluate(Brightness(), data, bootstrap=0).details["candle"].types
    assert [(row.defect_type, row.num_images) for row in types] == [("hole", 1), ("wax", 2)]
    assert types[1].aupro == pytest.approx(naive(data.categories[0], "wax").aupro, abs=1e-12)


def test_the_worst_comes_first() -> None:
    rows = [
        TypeRow("unknown"),
        TypeRow("found", image_auroc=1.0, pixel_auroc=0.99),
        TypeRow("missed", image_auroc=1.0, pixel_auroc=0.99, miss_rate=0.5),
        TypeRow("elsewhere", image_auroc=0.97, pixel_auroc=0.6),
        TypeRow("without masks", image_auroc=0.8),
    ]
    names = [row.defect_type for row in worst_first(rows)]
    assert names == ["elsewhere", "without masks", "missed", "found", "unknown"]


def test_files(tmp_path: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(draw_two_categories(tmp_path / "set")), bootstrap=0)
    report.to_csv(tmp_path / "types.csv", by_type=True)
    with (tmp_path / "types.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["category", *TYPE_COLUMNS]
    assert [(row["category"], row["defect_type"]) for row in rows] == [
        (name, kind) for name in ("bolt", "nut") for kind in ("dull", "shiny")
    ]
    report.to_json(tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    for row, found in zip(rows, [one for c in document["categories"] for one in c["types"]], strict=True):
        known = next(t for t in report.details[row["category"]].types if t.defect_type == row["defect_type"])
        assert found == asdict(known)
        assert float(row["aupro"]) == pytest.approx(known.aupro, abs=1e-7)
    Report([Row("bare")]).to_csv(tmp_path / "none.csv", by_type=True)
    assert (tmp_path / "none.csv").read_text() == ",".join(["category", *TYPE_COLUMNS]) + "\n"


def test_what_was_stored_without_types_still_loads(part: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    nothing = TypeRow("dark", 2, miss_rate=0.5)
    details = replace(report.details["part"], pictures=None)
    details = replace(details, types=(*details.types, nothing))
    document = json.loads(json.dumps(without_nan(as_document(CategoryResult(report.rows[0], details, ())))))
    assert from_document(document).details.types[:2] == details.types[:2]
    assert asdict(from_document(document).details.types[2]) == pytest.approx(asdict(nothing), nan_ok=True)
    del document["types"]  # as it was written before
    old = from_document(document)
    assert old.details.types == ()
    assert old.row.aupro == report.aupro


def test_the_console_has_a_table_for_several_types(
    part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    from ensemblead.cli.evaluate import show_report

    draw(part / "test/[red]/0.png", 3, (14, 14, 160), part / "ground_truth/[red]/0.png")
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    show_report(report, tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:3] == ["part", "by", "type"])
    order = [row.defect_type for row in worst_first(report.details["part"].types)]
    assert order[0] == "dull"
    assert [line[0] for line in lines[start + 1 : start + 4]] == order
    (dull,) = (row for row in report.details["part"].types if row.defect_type == "dull")
    assert lines[start + 1][1:] == [
        *("3", *(f"{v:.4g}" for v in (dull.image_auroc, dull.pixel_auroc, dull.aupro))),
        *("3", "of", "3"),
    ]
    assert "[red]" in order
    assert lines[start + 4] == []
    whole = MVTecAD(part).categories[0]
    single = replace(whole, test=tuple(s for s in whole.test if s.defect_type in ("good", "dull")))
    for quiet in (evaluate(Brightness(), single, bootstrap=0), Report([Row("bare")])):
        show_report(quiet, tmp_path)
        assert "by type" not in capsys.readouterr().out


def test_the_page_has_a_table_for_several_types(part: Path, tmp_path: Path) -> None:
    kind = '"><b id="x'
    draw(part / "test" / kind / "0.png", 3, (14, 14, 240), part / "ground_truth" / kind / "0.png")
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    report.to_html(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    places = [a for tag, a in page.tags if tag == "th" and "data-kind" in a]
    order = [row.defect_type for row in worst_first(report.details["part"].types)]
    assert [a["data-kind"] for a in places] == order
    assert kind in order
    assert {a["data-category"] for a in places} == {"0"}
    assert not any(a.get("id") == "x" for _, a in page.tags)
    values = [a["data-value"] for tag, a in page.tags if tag == "td" and "data-value" in a]
    dull = next(row for row in report.details["part"].types if row.defect_type == "dull")
    shown = (dull.num_images, dull.image_auroc, dull.pixel_auroc, dull.aupro, dull.miss_rate)
    assert values[5 * order.index("dull") :][:5] == [str(value) for value in shown]
    assert "Types of defect and curves" in page.words
    assert "3 of 3" in page.words
    assert "no means over its types" in page.words


def test_the_page_of_one_type_has_no_such_table(part: Path, tmp_path: Path) -> None:
    whole = MVTecAD(part).categories[0]
    single = replace(whole, test=tuple(s for s in whole.test if s.defect_type in ("good", "dull")))
    evaluate(Brightness(), single, bootstrap=0).to_html(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert not any("data-kind" in a for _, a in page.tags)
    assert "type of defect" not in page.words.lower()


def test_what_is_not_known_of_a_type_is_a_dash(part: Path, tmp_path: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    unknown: Any = {**asdict(report.details["part"].types[0]), **NAN_ROW, "defect_type": "odd"}
    details = replace(
        report.details["part"], types=(*report.details["part"].types, TypeRow(**unknown)), exact=False
    )
    Report(report.rows, {"part": details}).to_html(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert [a.get("data-value") for tag, a in page.tags if tag == "td"].count("") == 3
    assert "nan" not in page.source.split("<body>")[1].split("<script")[0]
