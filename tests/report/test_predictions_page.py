"""The page of `predict`: what is on it, and how it works in a real Chromium."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("scipy")

from PIL import Image
from support.browser import Browser
from support.report_page import Page

from ensemblead.common.objects import detected_regions
from ensemblead.images import Geometry
from ensemblead.report.predictions_page import PredictionsPage

NASTY = '<img src=x onerror="window.hit=1">&.png'
SIZE, FRAME = (60, 90), Geometry((40, 60), 32)


class Detector:
    """What the page asks of a detector."""

    def __init__(self, threshold: float = 0.5) -> None:
        self.geometry, self.threshold_, self.bits_ = FRAME, threshold, None


def map_of(score: float) -> Any:
    values = np.full((32, 32), 0.1, np.float32)
    values[8:20, 6:14] = score
    return values


def page_of(folder: Path, scores: list[float], limit: int = 300, threshold: float = 0.5) -> PredictionsPage:
    """A page of drawn images; from a score of 0.4 on they have a region, from 0.5 on they are anomalous."""
    page = PredictionsPage(Detector(threshold), (0.0, 1.0), 0.4, 0.05, limit)
    (folder / "a").mkdir(parents=True, exist_ok=True)
    for index, score in enumerate(scores):
        path = folder / (f"a/{index}.png" if index else f"a/{NASTY}")
        pixels = np.random.default_rng(index).integers(60, 200, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        values = map_of(score)
        regions = list(detected_regions(values, 0.4, FRAME, SIZE))
        verdict = score > threshold if np.isfinite(threshold) else None
        page.add(str(path), values, score, verdict, regions)
    return page


SCORES = [0.9, 0.7, 0.45, 0.2, 0.8, 0.3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("predictions")
    path = page_of(folder, SCORES).write(folder / "report.html")
    return SimpleNamespace(path=path, folder=folder, page=Page(path))


def data_of(path: Path) -> Any:
    text = path.read_text(encoding="utf-8").split('<script type="application/json" id="data">')[1]
    return json.loads(text.split("</script>")[0])


class TestContents:
    def test_it_says_what_was_found(self, made: SimpleNamespace) -> None:
        words = made.page.words
        assert "6 images of a" in words
        for line in (
            "Called anomalous 3 50.0% of all",
            "Regions 4 in 4 images",
            "0.05 false regions per normal",
        ):
            assert line in words
        assert "All 6, the highest scores first." in words

    def test_it_loads_nothing(self, made: SimpleNamespace) -> None:
        for tag, attributes in made.page.tags:
            assert tag not in ("link", "iframe", "object", "base", "img"), tag
            assert not any(name.startswith("on") or name in ("style", "src", "srcset") for name in attributes)
        (policy,) = (
            a["content"] for _, a in made.page.tags if a.get("http-equiv") == "Content-Security-Policy"
        )
        assert "default-src 'none'; img-src data:; " in str(policy)

    def test_items(self, made: SimpleNamespace) -> None:
        items = data_of(made.path)["items"]
        assert [one["score"] for one in items] == sorted(SCORES, reverse=True)
        assert items[0]["name"] == NASTY
        assert items[0]["path"] == str(made.folder / "a" / NASTY)
        assert [one["regions"] for one in items] == [1, 1, 1, 1, 0, 0]
        top, left, bottom, right = FRAME.crop_box(*SIZE)
        (box,) = items[0]["boxes"]
        high, wide = (bottom - top) / 32, (right - left) / 32
        assert box == pytest.approx([left + 6 * wide, top + 8 * high, 8 * wide, 12 * high], abs=0.06)

    def test_the_limit_keeps_a_quarter_for_normal_images(self, tmp_path: Path) -> None:
        scores = [0.6 + 0.001 * i for i in range(20)] + [0.1 + 0.001 * i for i in range(20)]
        page = page_of(tmp_path, scores, limit=8)
        assert all(len(heap) <= 8 for heap in page._heaps.values())
        path = page.write(tmp_path / "report.html")
        found = [one["score"] for one in data_of(path)["items"]]
        expected = [0.619, 0.618, 0.617, 0.616, 0.615, 0.614, 0.119, 0.118]
        assert found == pytest.approx(expected)
        assert "8 of 40 images, to keep this file small" in Page(path).words

    def test_the_page_does_not_grow_with_the_images(self, tmp_path: Path) -> None:
        """A photograph takes at most some 60 KB, whatever its size, and of thousands of images `limit` are
        kept.
        """
        page = PredictionsPage(Detector(), (0.0, 1.0), None, None, 2)
        pixels = np.random.default_rng(0).integers(0, 256, (1500, 1000, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "noise.png")
        values = map_of(0.3)
        for index in range(2_000):
            page.add(str(tmp_path / "noise.png"), values, index / 2_000, index > 1_800, None)
        assert sum(map(len, page._heaps.values())) == 4
        path = page.write(tmp_path / "report.html")
        assert len(data_of(path)["items"]) == 2
        assert path.stat().st_size < 2 * 150_000 + 100_000  # of noise, which compresses worst

    @pytest.mark.parametrize("scores", [[], [0.7]])
    def test_few_images(self, scores: list[float], tmp_path: Path) -> None:
        path = page_of(tmp_path, scores).write(tmp_path / "report.html")
        assert len(data_of(path)["items"]) == len(scores)

    def test_a_photograph_that_is_gone(self, tmp_path: Path) -> None:
        page = page_of(tmp_path, [0.9, 0.2])
        (tmp_path / "a/1.png").unlink()
        with pytest.warns(UserWarning, match=r"1 image\(s\) could not be read for report\.html"):
            path = page.write(tmp_path / "report.html")
        assert "photo" not in data_of(path)["items"][1]

    def test_without_thresholds(self, tmp_path: Path) -> None:
        path = page_of(tmp_path, [0.9], threshold=float("inf")).write(tmp_path / "report.html")
        assert data_of(path)["items"][0]["verdict"] is None
        assert "The detector has no threshold." in Page(path).words

    def test_a_wrong_limit(self) -> None:
        with pytest.raises(ValueError, match="limit must be at least 0, got -1"):
            PredictionsPage(Detector(), (0.0, 1.0), 0.4, 0.05, -1)


@pytest.fixture(params=[(1280, 900, False), (390, 844, True)], ids=["desktop", "phone in the dark"])
def page(browser: Browser, made: SimpleNamespace, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The page, opened; whatever a test does with it, no error and no request may come of it."""
    width, height, dark = request.param
    browser.open(made.path, width, height, dark=dark)
    browser.wait("!document.getElementById('gallery-body').hidden")
    yield browser
    assert browser.problems() == []


def listed(page: Browser) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('.card .name')].map((n) => n.textContent)")
    return found


class TestBrowser:
    def test_it_draws(self, page: Browser) -> None:
        assert listed(page) == [NASTY, "4.png", "1.png", "2.png", "5.png", "3.png"]
        page.run("document.getElementById('gallery').scrollIntoView()")
        page.run("document.getElementById('cards').scrollIntoView()")
        page.wait("document.querySelector('.card canvas').width === 32")
        page.wait("document.querySelector('.card .seen > svg path.decided[d^=M]') !== null")
        assert page.run("document.querySelector('.card .boxes path.box').getAttribute('d')").startswith("M")
        assert page.run("window.hit === undefined")
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.contrasts()[0][0] >= 4.5
        for hidden in ("category-tool", "kind-tool", "mask-tool"):
            assert page.run(f"document.getElementById('{hidden}').checkVisibility()") is False
        page.click("#show-decision")
        shown = (
            "[...document.querySelectorAll('.card .boxes, .card .seen > svg')].map((s) => s.style.display)"
        )
        assert set(page.run(shown)) == {"none"}

    def test_sorting_and_filters(self, page: Browser) -> None:
        counts = "[...document.querySelectorAll('#outcomes b')].map((n) => Number(n.textContent))"
        assert page.run(counts) == [6, 3, 3]
        page.click('#outcomes label:has(input[value="normal"])')
        assert listed(page) == ["2.png", "5.png", "3.png"]
        page.run(
            "(() => { const s = document.getElementById('order'); s.value = 'low';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        assert listed(page) == ["3.png", "5.png", "2.png"]
        page.click('#outcomes label:has(input[value="anomalous"])')
        assert listed(page) == ["1.png", "4.png", NASTY]

    def test_marks_are_downloaded(self, page: Browser, made: SimpleNamespace, tmp_path: Path) -> None:
        page.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        assert page.run("document.getElementById('download').disabled") is True
        page.click(".card:nth-child(1) .mark")
        page.click(".card:nth-child(5) .mark")
        page.click(".card:nth-child(2) .mark")
        page.click(".card:nth-child(2) .mark")  # taken back
        assert page.run("document.getElementById('marked').textContent") == "2 images are marked."
        pressed = "[...document.querySelectorAll('.card .mark')].map((b) => b.getAttribute('aria-pressed'))"
        assert page.run(pressed) == ["true", "false", "false", "false", "true", "false"]
        page.run("document.querySelector('.card:nth-child(3) .open').click()")
        assert page.run("document.querySelector('#detail .mark').textContent") == "False alarm"
        page.run("document.querySelector('#detail .mark').click()")
        assert page.run(pressed)[2] == "true"
        page.press("Escape")
        # The card gets the focus back after the view has closed, and is scrolled to.
        page.wait("document.activeElement.matches('.card .open')")
        page.click("#download")
        target = tmp_path / "marked.json"
        for _ in range(500):
            if target.exists() and target.stat().st_size:
                break
            time.sleep(0.02)
        folder = made.folder / "a"
        assert json.loads(target.read_text()) == {
            "version": 1,
            "marks": [
                {"path": str(folder / NASTY), "mark": "false alarm"},
                {"path": str(folder / "5.png"), "mark": "missed defect"},
                {"path": str(folder / "1.png"), "mark": "false alarm"},
            ],
        }

    def test_without_scripts_it_says_so(self, browser: Browser, made: SimpleNamespace) -> None:
        browser.open(made.path, scripts=False)
        assert browser.problems() == []
