"""The normal images that are most similar to the findings of a report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
from support.brightness import Brightness, draw_category
from support.browser import Browser
from support.report_page import Page

import ensemblead as ead

NASTY = '<img src=x onerror="window.hit=1">.png'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A report with an index of its training images, one of which has a hostile name."""
    folder = tmp_path_factory.mktemp("similar")
    part = draw_category(folder / "part", 0)
    first = sorted((part / "train/good").iterdir())[0]
    first.rename(first.with_name(NASTY))
    report = ead.evaluate(Brightness(), ead.MVTecAD(part), bootstrap=0)
    embedder = ead.Embedder("gabor", resize=None, image_size=None, device="cpu")
    with ead.ImageIndex.build(part / "train/good", embedder, folder / "index") as index:
        report.to_html(folder / "report.html", similar=index)
        normal = len(index)
    return SimpleNamespace(
        path=folder / "report.html", report=report, part=part, normal=normal, folder=folder
    )


def test_findings_alone_have_neighbours(made: SimpleNamespace) -> None:
    page = Page(made.path)
    items = page.data["items"]
    names = {path.name for path in (made.part / "train/good").iterdir()}
    for item in items:
        assert ("similar" in item) == bool(item["label"] or item["verdict"])
        for value, name in item.get("similar", []):
            assert -1 <= value <= 1
            assert name in names
    assert any("similar" in item for item in items)
    assert f"of the {made.normal} images of the index {made.folder / 'index'}" in page.words


def test_without_an_index_nothing_is_said(made: SimpleNamespace, tmp_path: Path) -> None:
    made.report.to_html(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "Most similar images" not in page.words
    assert not any("similar" in item for item in page.data["items"])


def test_links_and_defective_images_are_known(tmp_path: Path) -> None:
    part = draw_category(tmp_path / "part", 0)
    (tmp_path / "link").symlink_to(part)
    report = ead.evaluate(Brightness(), ead.MVTecAD(tmp_path / "link"), bootstrap=0)
    embedder = ead.Embedder("gabor", resize=None, image_size=None, device="cpu")
    told = r"index has defective images of these data, .* normal images alone"
    with (
        ead.ImageIndex.build(part / "test", embedder, tmp_path / "index") as index,
        pytest.warns(UserWarning, match=told),
    ):
        report.to_html(tmp_path / "report.html", similar=index)
    for item in Page(tmp_path / "report.html").data["items"]:
        assert item["name"] not in [name for _, name in item.get("similar", [])]


def test_a_finding_that_is_gone_has_none(tmp_path: Path) -> None:
    part = draw_category(tmp_path / "part", 0)
    report = ead.evaluate(Brightness(), ead.MVTecAD(part), bootstrap=0)
    embedder = ead.Embedder("gabor", resize=None, image_size=None, device="cpu")
    gone = [path for path in (part / "test").rglob("*.png") if path.parent.name != "good"]
    with ead.ImageIndex.build(part / "train/good", embedder, tmp_path / "index") as index:
        for path in gone:
            path.unlink()
        with pytest.warns(UserWarning, match="could not be read"):
            report.to_html(tmp_path / "report.html", similar=index)
    items = {item["name"]: item for item in Page(tmp_path / "report.html").data["items"]}
    for path in gone:
        assert "similar" not in items[path.relative_to(part / "test").as_posix()]


@pytest.mark.parametrize("width", [1280, 320])
def test_they_stand_beside_the_finding(browser: Browser, made: SimpleNamespace, width: int) -> None:
    browser.open(made.path, width, 800)
    browser.wait("!document.getElementById('gallery-body').hidden")
    items = {item["name"]: item for item in Page(made.path).data["items"]}
    cards = browser.run(
        "[...document.querySelectorAll('.card')].map((card) => [card.querySelector('.name').textContent,"
        " [...card.querySelectorAll('.similar li')].map((line) => line.textContent)])"
    )
    assert len(cards) == len(items)
    for name, lines in cards:
        expected = [f"{value:.4f} {other}" for value, other in items[name].get("similar", [])]
        assert lines == expected
    finding = next(i for i, (_, lines) in enumerate(cards) if lines)
    browser.run(f"document.querySelectorAll('.card')[{finding}].id = 'finding'")
    browser.click("#finding .open")
    facts = browser.run("[...document.querySelectorAll('#detail-facts dt')].map((term) => term.textContent)")
    assert sum(fact.startswith("Similar, ") for fact in facts) == 3
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("window.hit === undefined")
    assert browser.contrasts()[0][0] >= 4.5
    assert browser.problems() == []
