"""The pages of a comparison and of a trade-off: what is on them, and how they look in a real Chromium."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
from PIL import Image
from support.browser import Browser
from support.report_page import Page
from support.textures import normal_images, with_defects

import ensemblead as ead
from ensemblead.evaluation import TradeOff
from ensemblead.evaluation.gallery import Pictures, reduced_map
from ensemblead.images import Geometry, Region
from ensemblead.report.pictures import heat_url
from ensemblead.report.trade_off_page import write_trade_off_csv, write_trade_off_page

NASTY = "<b onclick=hit()>model</b>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Plain images, of which one verdict changes to normal, and both pages."""
    folder = tmp_path_factory.mktemp("pages")
    good, (spoiled, _) = normal_images(6, seed=1), with_defects(normal_images(3, seed=2))
    (folder / "images").mkdir()
    for i, pixels in enumerate([*good, *spoiled]):
        Image.fromarray(pixels).save(folder / f"images/{i}<i>.png")
    old = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu")
    old.fit(normal_images(8))
    new = ead.create(old.describe()).fit(normal_images(8))
    scores = np.sort(old.predict(spoiled).anomaly_score)
    new.threshold_ = float(scores[:2].mean())
    comparison = ead.compare(old, new, folder / "images", bootstrap=0)
    rng = np.random.default_rng(0)
    found = TradeOff(rng.normal(0, 1, 60), rng.normal(3, 1, 25), threshold=2.0)
    return SimpleNamespace(
        comparison=comparison,
        found=found,
        pages=[
            comparison.to_html(folder / "comparison.html"),
            write_trade_off_page(found, folder / "trade_off.html", note=NASTY),
        ],
    )


def test_the_comparison_shows_what_changed(made: SimpleNamespace) -> None:
    page, data = Page(made.pages[0]), made.comparison.data
    (changed,) = data.changed
    assert "1 of 9 verdicts change" in page.words
    assert f"anomalous ({changed.old_score:.4g}) to normal ({changed.new_score:.4g})" in page.words
    assert Path(changed.path).name in page.words
    assert "set by the user" in page.words
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(set(pictures)) >= 2
    assert len(pictures) == 3
    assert page.source.count('class="dot changed"') >= 2  # a point and the legend
    assert "fit, 8 images" in page.words


def test_outside_of_a_region_photographs_are_dark() -> None:
    photo = np.full((40, 40, 3), 200, np.uint8)
    inside = np.zeros((40, 40), np.bool_)
    inside[:, 20:] = True
    frame = Geometry((40, 40), None, region=Region.of(inside))
    picture = reduced_map(0, np.zeros((40, 40), np.float32))
    _, data = heat_url(photo, picture, Pictures((), frame, (1.0, 2.0))).split(",")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).astype(int)
    assert abs(seen[:, 22:].mean() - 200) < 8
    assert abs(seen[:, :18].mean() - 80) < 8


def test_an_image_that_is_gone(made: SimpleNamespace, tmp_path: Path) -> None:
    (changed,) = made.comparison.data.changed
    aside = Path(changed.path).rename(tmp_path / "aside.png")
    try:
        with pytest.warns(UserWarning, match="could not be read"):
            page = Page(made.comparison.to_html(tmp_path / "c.html"))
    finally:
        aside.rename(changed.path)
    assert "The image could not be read." in page.words


def test_the_trade_off_says_the_rule_and_all_points(made: SimpleNamespace, tmp_path: Path) -> None:
    words, found = Page(made.pages[1]).words, made.found
    assert f"Threshold {found.proposal.threshold:.4f} is proposed" in words
    assert found.rule() in words
    assert "there is no guarantee" in words
    assert NASTY in words
    for point in found.notable().values():
        assert f"{point.false_alarms} of 60" in words
        assert f"{point.misses} of 25" in words
    rows = list(csv.DictReader(write_trade_off_csv(found, tmp_path / "t.csv").read_text().splitlines()))
    assert [int(row["misses"]) for row in rows] == [point.misses for point in found.points()]
    assert float(rows[3]["miss_high"]) == pytest.approx(found.points()[3].miss_interval[1])


def test_they_load_nothing(made: SimpleNamespace) -> None:
    for path in made.pages:
        page = Page(path)
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
        for tag, attributes in page.tags:
            assert not any(name.startswith("on") or name in ("style", "srcset") for name in attributes), tag
            assert str(attributes.get("src", "data:")).startswith("data:")


@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("which", [0, 1])
def test_they_fit_the_screen(browser: Browser, made: SimpleNamespace, width: int, which: int) -> None:
    browser.open(made.pages[which], width, 900)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.problems() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_text_is_readable(browser: Browser, made: SimpleNamespace, dark: bool, which: int) -> None:
    browser.open(made.pages[which], dark=dark)
    texts = browser.contrasts()
    assert len(texts) > 25
    assert texts[0][0] >= 4.5, texts[:5]  # WCAG AA


def test_heat_maps_are_dark_outside_of_a_region() -> None:
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    photo = np.full((32, 32, 3), 200, np.uint8)
    values = np.zeros((32, 32), np.float32)
    for region, outside in ((mask, 80), (None, 200)):
        shown = Pictures((), Geometry(None, None, region=Region.of(region)), (0.0, 1.0))
        url = heat_url(photo, reduced_map(0, values), shown)
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))
        assert abs(int(drawn[16, 24]) - outside) < 8  # as it was compressed
        assert abs(int(drawn[16, 6]) - 200) < 8
