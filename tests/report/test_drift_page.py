"""The page of a drift monitor: what is on it, that it loads nothing, and how it looks in a real Chromium."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
from support.browser import Browser
from support.drift import monitor, predictions
from support.report_page import Page

from ensemblead.report.drift_page import write_drift_page

NASTY = "<b onclick=hit()>model</b>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One cell of the image has changed after 50 images."""
    watching = monitor()
    watching.observe(predictions(50, seed=1))
    state = watching.observe(predictions(60, seed=2, cell=6))
    path = write_drift_page(watching, tmp_path_factory.mktemp("drift") / "drift.html", note=NASTY)
    return SimpleNamespace(path=path, page=Page(path), state=state)


def test_it_says_what_where_and_since_when(made: SimpleNamespace) -> None:
    words, state = made.page.words, made.state
    assert "The images have changed: calibrate anew" in words
    assert state.advice_text in words
    assert f"reached with image {state.alarm_at}" in words
    assert f"image {state.since}" in words
    assert "at most 0.01" in words
    assert "1 cell has reached the level of an alarm." in words
    assert "rows 16 to 32, columns 16 to 24" in words
    assert NASTY in words
    heats = re.findall(r'<td class="heat(\d)">(-?[\d.]+)</td>', made.page.source)
    assert len(heats) == 16
    assert [place for place, (heat, _) in enumerate(heats) if heat == "3"] == [6]
    assert float(heats[6][1]) == pytest.approx(state.regions[1, 2], abs=0.06)
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", made.page.source)
    assert titles == [
        "Evidence: all streams together",
        "Scores",
        "Evidence: scores",
        "Evidence: features",
        "Evidence: regions of the image",
    ]


def test_it_loads_nothing(made: SimpleNamespace) -> None:
    page = made.page
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "img"})
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("style", "srcset") for name in attributes), tag
        assert "href" not in attributes
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)
    assert "script-src 'none'" in str(policy)


def test_a_calm_line_and_one_without_images(tmp_path: Path) -> None:
    watching = monitor(streams=["score"], mean_run_length=5000)
    empty = Page(write_drift_page(watching, tmp_path / "empty.html")).words
    assert "No image has been observed yet." in empty
    assert "on average at least 5,000 images" in empty
    watching.observe(predictions(40, seed=1))
    calm = Page(write_drift_page(watching, tmp_path / "calm.html")).words
    assert "No change found" in calm
    assert "Where in the image" not in calm
    assert "changed since" not in calm.lower()


def test_thousands_of_images_make_no_large_page(tmp_path: Path) -> None:
    watching = monitor(streams=["score"])
    watching.observe(predictions(3000, seed=1))
    path = write_drift_page(watching, tmp_path / "drift.html")
    assert path.stat().st_size < 80_000
    drawn = re.findall(r'class="points" d="(.*?)"', path.read_text())
    assert 300 < drawn[0].count("M") <= 460


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_fits_the_screen(browser: Browser, made: SimpleNamespace, width: int) -> None:
    browser.open(made.path, width, 900)
    assert browser.run("document.documentElement.scrollWidth") <= width
    places = "[...document.querySelectorAll('.regions td')].map((cell) => cell.getBoundingClientRect())"
    sizes = browser.run(f"{places}.map(({{width, height}}) => [width, height])")
    assert len({round(wide) for wide, _ in sizes}) == 1
    assert min(min(size) for size in sizes) >= 44
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_schemes(browser: Browser, made: SimpleNamespace, dark: bool) -> None:
    browser.open(made.path, dark=dark)
    texts = browser.contrasts()
    assert len(texts) > 60
    assert texts[0][0] >= 4.5, texts[:5]  # WCAG AA
