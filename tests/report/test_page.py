"""report.html: what is kept for it, that it is whole and harmless, and that it says what it leaves out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.brightness import Brightness, draw, draw_category
from support.report_page import Page

from ensemblead.evaluation import Category, Details, MVTecAD, Report, Row, evaluate
from ensemblead.evaluation.gallery import MAP_SIDE, PictureKeeper, describe_threshold
from ensemblead.evaluation.results import CategoryResult
from ensemblead.report.charts import number, score_edges
from ensemblead.report.pictures import COLORS, MASK_SIDE, PHOTO_SIDE
from ensemblead.suites import cells

Image = pytest.importorskip("PIL.Image")

NASTY = '<img src=x onerror="hit=1">&amp;.png'


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """6 normal images, one of them a false alarm, and 6 defective ones, the 3 dull ones missed."""
    root = draw_category(tmp_path / "part", 0)
    draw(root / "test/good/9.png", 9, (14, 14, 250))
    return root


def page(report: Report, tmp_path: Path, **options: Any) -> Page:
    report.to_html(tmp_path / "new/report.html", **options)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    return Page(tmp_path / "new/report.html")


def pixels(url: str) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))


def test_the_page_loads_nothing_and_allows_nothing_else(part: Path, tmp_path: Path) -> None:
    found = page(evaluate(Brightness(), MVTecAD(part), bootstrap=20), tmp_path)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert not any(name.startswith("on") or name in ("style", "src", "srcset") for name in attributes), (
            tag
        )
        assert (attributes.get("href") or "#").startswith("#")
    outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+[\w./]*", found.source.split('id="data">')[0])
    assert outside == []
    style, script = found.texts["style"][0], found.texts["script"][1]
    assert set(re.findall(r"https?://[^\"'`]*", script)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not a place
    assert not re.search(r"url\(|@import", style)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\bFunction\(", script
    )
    (policy,) = (a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert "{{" not in found.source


def test_names_are_texts_wherever_they_appear(part: Path, tmp_path: Path) -> None:
    draw(
        part / "test/<b onclick=hit()>" / NASTY,
        3,
        (14, 14, 240),
        part / "ground_truth/<b onclick=hit()>" / NASTY,
    )
    plain = MVTecAD(part).categories[0]
    name = "</script><script>hit=1</script><!--"
    category = Category(name, plain.train, plain.test, 0, ("<u>a note</u>",))
    second = Category('"><i>', plain.train, plain.test)
    data = SimpleNamespace(name="</title><s>", categories=(category, second))
    with pytest.warns(UserWarning, match="a note"):
        report = evaluate(Brightness(), data, bootstrap=0)  # type: ignore[arg-type]
    found = page(report, tmp_path)
    assert {tag for tag, _ in found.tags}.isdisjoint({"i", "u", "s", "img"})
    assert all(not attributes for tag, attributes in found.tags if tag == "b")
    assert sum(tag == "script" for tag, _ in found.tags) == 2
    assert [category["name"] for category in found.data["categories"]] == [name, '"><i>']
    item = next(item for item in found.data["items"] if "onerror" in item["name"])
    assert (item["name"], item["kind"]) == (f"<b onclick=hit()>/{NASTY}", "<b onclick=hit()>")
    assert "<!--" not in found.source
    assert "<u>a note</u>" in found.words
    assert "</title><s>" in found.words


def test_items_hold_what_was_predicted(part: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    report = evaluate(
        Brightness(), MVTecAD(part), bootstrap=0, on_image=lambda i: seen.update({i.sample.path: i})
    )
    found = page(report, tmp_path).data
    assert len(found["items"]) == len(seen) == 12
    for item in found["items"]:
        image = seen[str(part / "test" / item["name"])]
        assert (item["score"], item["verdict"]) == (image.score, image.is_anomalous)
        assert (item["label"], item["kind"]) == (image.sample.label, image.sample.defect_type)
        assert (item["width"], item["height"]) == (48, 40)
        # 20 x 24 after the resize, 16 x 16 of it in the middle.
        assert item["seen"] == pytest.approx([2 / 20, 4 / 24, 18 / 20, 20 / 24])
        heat = item["heat"]
        levels = np.asarray(pixels(heat["src"]), np.float64)
        values = heat["low"] + levels * (heat["high"] - heat["low"]) / 255
        assert np.abs(values - image.anomaly_map).max() <= (heat["high"] - heat["low"]) / 255
        if image.sample.label:
            truth = np.asarray(Image.open(image.sample.mask_path)) > 0
            np.testing.assert_array_equal(np.asarray(pixels(item["mask"])), truth)
        else:
            assert "mask" not in item
        photo = np.asarray(pixels(item["photo"]).convert("RGB"), np.float64)
        assert photo.shape == (40, 48, 3)
    (category,) = found["categories"]
    assert category["threshold"] == 150
    assert category["contour"] == report.pixel_f1_threshold
    # The detector has no statistics of normal images: colours go from the median to the largest value.
    medians = [float(np.median(image.anomaly_map)) for image in seen.values()]
    largest = max(float(image.anomaly_map.max()) for image in seen.values())
    assert category["scale"] == [np.median(medians), largest]


def test_large_images_are_reduced(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "data/test/thin/0.png"
    for place in (path, tmp_path / "data/train/good/0.png"):
        place.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (900, 1500, 3), np.uint8)).save(place)
    mask = np.zeros((900, 1500), np.uint8)
    mask[450, 100:900] = 255  # one pixel wide
    (tmp_path / "data/ground_truth/thin").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "data/ground_truth/thin/0.png")

    class Whole(Brightness):
        def __init__(self) -> None:
            super().__init__()
            self.geometry = type(self.geometry)(resize=None, crop=None)

    with pytest.warns(UserWarning, match="all test images are anomalous"):
        report = evaluate(Whole(), MVTecAD(tmp_path / "data"), bootstrap=0)
    (item,) = page(report, tmp_path).data["items"]
    assert pixels(item["photo"]).size == (PHOTO_SIDE, round(PHOTO_SIDE * 0.6))
    assert pixels(item["heat"]["src"]).size == (MAP_SIDE, round(MAP_SIDE * 0.6))
    small = np.asarray(pixels(item["mask"]))
    assert small.shape == (round(MASK_SIDE * 0.6), MASK_SIDE)
    assert small.any(axis=0).sum() >= 800 / 1500 * MASK_SIDE
    assert len(json.dumps(item)) < 120_000  # of noise, which compresses worst
    assert item["seen"] == [0, 0, 1, 1]


def test_the_cap_keeps_errors_first_and_is_stated(part: Path, tmp_path: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    assert "All 12 test images." in page(report, tmp_path).words
    some = page(report, tmp_path, max_images=6)
    assert "6 of 12 test images, to keep this file small: 4 of 4 errors" in some.words
    names = [item["name"] for item in some.data["items"]]
    assert names[0] == "good/9.png"  # the only false alarm, then the misses from the lowest score up
    dull = sorted(
        (i.score, Path(i.path).name) for i in report.details["part"].images if i.defect_type == "dull"
    )
    assert names[1:4] == [f"dull/{name}" for _, name in dull]
    normal = max(
        (i for i in report.details["part"].images if not i.label and not i.is_error), key=lambda i: i.score
    )
    shiny = min((i for i in report.details["part"].images if i.defect_type == "shiny"), key=lambda i: i.score)
    assert names[4:] == [f"good/{Path(normal.path).name}", f"shiny/{Path(shiny.path).name}"]
    assert (
        "2 of 12 test images, to keep this file small: 2 of 4 errors"
        in page(report, tmp_path, max_images=2).words
    )
    nothing = page(report, tmp_path, max_images=0)
    assert nothing.data["items"] == []
    assert "No images were kept" in nothing.words
    none = evaluate(Brightness(), MVTecAD(part), bootstrap=0, gallery=0)
    assert none.details["part"].pictures is None
    assert page(none, tmp_path).data["items"] == []
    with pytest.raises(ValueError, match="max_images must be at least 0, got -1"):
        report.to_html(tmp_path / "x.html", max_images=-1)
    with pytest.raises(TypeError, match="max_images must be an int, got float"):
        report.to_html(tmp_path / "x.html", max_images=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gallery must be at least 0, got -1"):
        evaluate(Brightness(), MVTecAD(part), gallery=-1)


def test_categories_share_the_cap(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 100), ("c", 200)):
        draw_category(tmp_path / "set" / name, seed)
    report = evaluate(Brightness(), MVTecAD(tmp_path / "set"), bootstrap=0)
    found = page(report, tmp_path, max_images=15)
    counts = np.bincount([item["category"] for item in found.data["items"]])
    assert counts.tolist() == [5, 5, 5]
    wrong = [item["verdict"] != item["label"] for item in found.data["items"]]
    assert wrong == [True] * 9 + [False] * 6
    assert sum(tag == "details" and "curves" in str(a.get("class")) for tag, a in found.tags) == 3
    assert "mean of 3 categories" in found.words


def test_the_keeper_keeps_the_same_as_sorting_everything() -> None:
    rng = np.random.default_rng(0)
    limit, threshold = 7, 0.5
    keeper = PictureKeeper(SimpleNamespace(geometry=None), limit)
    everything = []
    for index in range(300):
        kind = ("good", "dent", "crack")[index % 3]
        score, label = float(rng.random()), kind != "good"
        keeper.add(index, np.full((4, 4), score, np.float32), score, score > threshold, label, kind)
        everything.append((index, score, label, kind))
        assert max(len(heap) for heap in keeper._heaps.values()) <= limit
    found = keeper.pictures()
    assert found is not None
    wrong = [
        [e for e in everything if (e[1] > threshold) != e[2] and e[3] == k] for k in ("good", "crack", "dent")
    ]
    ordered = [sorted(group, key=lambda e: e[1] if e[2] else -e[1]) for group in wrong]
    turns = [group[place][0] for place in range(limit) for group in ordered]
    assert [picture.index for picture in found.kept] == turns[:limit]
    assert found.frame is None


def test_a_kept_cell_makes_the_same_page(part: Path, tmp_path: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=20)
    kept = json.loads(json.dumps(cells.as_document(CategoryResult(report.rows[0], report.details["part"]))))
    again = cells.from_document(kept)
    assert again.details.threshold_source == "set by the detector"
    second = Report([again.row], {"part": again.details}, (), report.settings)
    assert page(second, tmp_path).data == page(report, tmp_path).data
    other = SimpleNamespace(crop_box=lambda height, width: (0, 0, height, width))
    pictures = again.details.pictures
    assert pictures is not None
    assert replace(pictures, frame=other).to_json() is None


def test_a_flat_map_and_a_detector_without_verdicts() -> None:
    keeper = PictureKeeper(SimpleNamespace(geometry=None, fusion="minmax"), 3)
    keeper.add(0, np.full((300, 200), 2.5, np.float32), 1.0, None, True, "dent")
    found = keeper.pictures()
    assert found is not None
    (picture,) = found.kept
    assert (picture.low, picture.high) == (2.5, 2.5)
    assert Image.open(io.BytesIO(picture.heat)).size == (round(MAP_SIDE * 2 / 3), MAP_SIDE)
    assert found.scale == (0.0, 1.0)
    assert PictureKeeper(SimpleNamespace(geometry=None), 3).pictures() is None


def test_colours_come_from_the_models_normal_images() -> None:
    normal = SimpleNamespace(pixels=np.linspace(0, 1, 1001), has_statistics=True)
    keeper = PictureKeeper(SimpleNamespace(geometry=None, calibration_=normal), 3)
    keeper.add(0, np.full((4, 4), 1.5, np.float32), 1.0, None, True, "dent")
    found = keeper.pictures()
    assert found is not None
    assert found.scale == pytest.approx((0.5, 1.5))  # nothing is larger
    keeper.add(1, np.full((4, 4), 9.0, np.float32), 1.0, None, True, "dent")
    found = keeper.pictures()
    assert found is not None
    assert found.scale == pytest.approx((0.5, 0.5 + 3 * 0.499))
    matplotlib = pytest.importorskip("matplotlib")
    exact = 255 * matplotlib.colormaps["inferno"](np.linspace(0.1, 1.0, 256))[:, :3]
    anchors = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS])
    places = np.linspace(0, len(COLORS) - 1, 256)
    table = np.stack([np.interp(places, np.arange(len(COLORS)), anchors[:, k]) for k in range(3)], axis=1)
    assert np.abs(table - exact).max() < 5


def test_where_a_threshold_comes_from() -> None:
    assert describe_threshold(SimpleNamespace()) == ""
    assert describe_threshold(SimpleNamespace(threshold_=1.0, fusion="minmax")) == ""
    assert describe_threshold(SimpleNamespace(threshold_=1.0)) == "set by the detector"
    known = SimpleNamespace(
        scores=np.zeros(99),
        has_statistics=True,
        threshold_origin="calibrated",
        false_alarm_rate=0.01,
        is_guaranteed=True,
    )
    text = describe_threshold(SimpleNamespace(threshold_=1.0, calibration_=known))
    assert text == "from 99 fresh normal images: false alarms at most 0.01 (split conformal)"
    known.is_guaranteed = False
    for origin, how in (("leave_one_out", "leave-one-out"), ("held_out", "held out")):
        known.origin = known.threshold_origin = origin
        text = describe_threshold(SimpleNamespace(threshold_=1.0, calibration_=known))
        assert text == f"from 99 training images, {how}: false alarms about 0.01 (estimated)"


def test_tables_have_the_numbers_of_the_report(part: Path, tmp_path: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=50, confidence=0.9)
    found = page(report, tmp_path)
    for name in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_005"):
        low, high = report.details["part"].intervals[name]
        assert f"{getattr(report, name):.4f}" in found.words
        assert f"{low:.4f}\u2013{high:.4f}" in found.words
    assert "90 %:" in found.words
    assert "1 of 6" in found.words
    assert "3 of 6" in found.words
    assert "Threshold: set by the detector." in found.words
    assert "50 bootstrap replicates, seed 0" in found.words
    charts = [a.get("aria-label") for tag, a in found.tags if tag == "svg" and a.get("role") == "img"]
    assert charts == ["ROC", "Precision and recall", "Overlap per region (PRO)", "Scores"]
    drawn = " ".join(str(a["d"]) for tag, a in found.tags if tag == "path" and "d" in a)
    assert "nan" not in drawn
    assert "e-" not in drawn


def test_what_is_not_known_is_not_drawn(part: Path, tmp_path: Path) -> None:
    plain = MVTecAD(part).categories[0]
    normal = Category("part", plain.train, tuple(s for s in plain.test if not s.label))
    with pytest.warns(UserWarning, match="all test images are normal"):
        report = evaluate(Brightness(), normal)
    found = page(report, tmp_path)
    assert [a.get("aria-label") for tag, a in found.tags if a.get("role") == "img"] == ["Scores"]
    assert "Know before you read on" in found.words
    assert found.data["categories"][0]["contour"] is None
    bare = page(Report([Row("part")]), tmp_path)
    assert bare.data["items"] == []
    assert "No curves were kept" in bare.words
    assert "nan" not in re.sub(r"\W", " ", bare.source.split("<body>")[1].split("<script")[0]).split()
    rough = Details(exact=False, error_bounds={"pixel_auroc": 0.003, "aupro": 0.02})
    assert "off by at most 0.02" in page(Report([Row("part")], {"part": rough}), tmp_path).words


def test_photographs_that_are_gone_are_reported(part: Path, tmp_path: Path) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    (part / "test/dull/0.png").unlink()
    (part / "ground_truth/shiny/1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"2 image\(s\) or mask\(s\) could not be read for report.html"):
        found = page(report, tmp_path)
    items = {item["name"]: item for item in found.data["items"]}
    assert "photo" not in items["dull/0.png"]
    assert "mask" not in items["shiny/1.png"]
    assert "photo" in items["shiny/1.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page(report, tmp_path, max_images=1)


def test_a_failed_write_leaves_the_old_page(
    part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(Brightness(), MVTecAD(part), bootstrap=0)
    target = tmp_path / "new/report.html"
    target.parent.mkdir()
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        report.to_html(target)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("threshold", [math.nan, -3.0, 0.5, 1.7, 40.0])
def test_no_bar_of_the_histogram_has_the_threshold_in_its_midst(threshold: float) -> None:
    for scores in (np.linspace(0.3, 2.9, 77), np.array([0.1, 0.1, 7.0]), np.array([0.5, 0.5])):
        edges = score_edges(scores.tolist(), threshold)
        assert (np.diff(edges) > 0).all()
        assert 2 <= edges.size <= 45
        assert np.histogram(scores, edges)[0].sum() == scores.size
        if not math.isnan(threshold):
            assert np.abs(edges - threshold).min() < 1e-12
            assert (
                np.histogram(scores, edges)[0][edges[:-1] > threshold - 1e-9].sum()
                == (scores >= threshold).sum()
            )


def test_numbers_for_reading() -> None:
    assert number(math.nan) == "&ndash;"
    assert number(0.98765) == "0.9877"
    assert number(12345.6) == "1.235e+04"
