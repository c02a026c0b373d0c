"""The page of a service in a real, headless Chromium."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")

from support.browser import Browser
from support.serving import Serving, serving

Files = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def served(detector: Any) -> Iterator[Serving]:
    with serving(detector) as running:
        yield running


@pytest.fixture
def page(browser: Browser, served: Serving) -> Iterator[Browser]:
    browser.open(served.url)
    yield browser
    assert browser.problems() == []


def give(page: Browser, *files: tuple[str, bytes], drop: bool = True) -> None:
    """Files, as a reader drops or chooses them."""
    made = ", ".join(
        f"new File([Uint8Array.from(atob('{base64.b64encode(data).decode()}'), (c) => c.charCodeAt(0))], "
        f"{json.dumps(name)}, {{ type: 'image/png' }})"
        for name, data in files
    )
    where = (
        "document.getElementById('drop').dispatchEvent("
        "new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))"
        if drop
        else "(input.files = data.files, input.dispatchEvent(new Event('change')))"
    )
    page.run(
        "(() => { const data = new DataTransfer(); const input = document.getElementById('files');"
        f" for (const file of [{made}]) data.items.add(file); {where}; }})()"
    )


def texts(page: Browser, selector: str) -> list[str]:
    found: list[str] = page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((n) => n.textContent)"
    )
    return found


def test_dropped_images_get_score_verdict_and_heat_map(page: Browser, detector: Any, files: Files) -> None:
    assert texts(page, "h1") == ["PatchCore"]
    give(page, files[0], files[2])
    page.wait("document.querySelectorAll('.card').length === 2")
    assert texts(page, ".card .name") == ["2.png", "0.png"]
    assert texts(page, ".card .verdict") == ["anomalous", "normal"]
    threshold = f"{detector.threshold_:.4g}"
    assert all(f"threshold {threshold}" in text for text in texts(page, ".card .score"))
    strongest = (
        "[...document.querySelectorAll('canvas')].map((c) => Math.max(...c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3)))"
    )
    defect, good = page.run(strongest)
    assert defect > 150 > good
    boxes = page.run(
        "[...document.querySelectorAll('.frame')].map((f) => [f.querySelector('img'),"
        " f.querySelector('canvas')].map((n) => Object.values(n.getBoundingClientRect().toJSON())))"
    )
    for photo, heat in boxes:
        assert photo == pytest.approx(heat, abs=0.5)


def test_chosen_images_and_errors(page: Browser, files: Files) -> None:
    nasty = "<img src=x onerror='window.hit=1'>.png"
    give(page, (nasty, files[3][1]), ("bad.png", b"none"), drop=False)
    page.wait("document.querySelectorAll('.card').length === 2")
    assert texts(page, ".card .name") == ["bad.png", nasty]
    assert "it is no image of a known format" in texts(page, ".card .verdict.error")[0]
    assert page.run("window.hit") is None
    # The answer with status 422 is an error to the console, though not to the page.
    page.events = [event for event in page.events if "422" not in json.dumps(event)]


def test_it_can_be_read(browser: Browser, served: Serving, files: Files) -> None:
    for dark in (False, True):
        browser.open(served.url, 400, 800, dark=dark)
        give(browser, files[2])
        browser.wait("document.querySelectorAll('.card').length === 1")
        assert browser.contrasts()[0][0] >= 4.5
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        browser.press("Tab")
        browser.press("Tab")
        assert browser.run("document.activeElement.id") == "files"


def test_a_token_is_asked_for(browser: Browser, detector: Any, files: Files) -> None:
    with serving(detector, token="word") as running:
        browser.open(running.url)
        give(browser, files[2])
        browser.wait("!document.getElementById('token-line').hidden")
        browser.run("document.getElementById('token').value = 'word'")
        browser.click("#token-line button")
        browser.wait("document.querySelectorAll('.card').length === 1")
        assert texts(browser, ".card .verdict") == ["anomalous"]


def test_without_a_threshold_there_is_no_verdict(
    browser: Browser, detector: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(detector), "threshold_", property(lambda self: math.inf))
    with serving(detector) as running:
        browser.open(running.url)
        give(browser, files[2])
        browser.wait("document.querySelectorAll('.card').length === 1")
        assert texts(browser, ".card .verdict") == ["no verdict"]
