"""The page of a search: what is on it, that it is harmless, and how it looks in a real Chromium."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.browser import Browser
from support.report_page import Page

from ensemblead.report.search_page import write_search_page
from ensemblead.retrieval.hits import Hits

Image = pytest.importorskip("PIL.Image")

NASTY = '<img src=x onerror="window.hit=1">&amp;.png'
LABEL = "<b onclick=hit()>odd"


def draw(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two queries, one of them its own first hit, with six hits each; one name and one label are hostile."""
    folder = tmp_path_factory.mktemp("search")
    paths = [draw(folder / "images" / name, i) for i, name in enumerate(("a/0.png", "a/1.png", f"b/{NASTY}"))]
    paths += [draw(folder / f"images/b_long_name_of_a_folder/{i}.png", 3 + i) for i in range(3)]
    queries = [draw(folder / "asked/query_1.png", 9), paths[0]]
    order = np.array([[2, 1, 0, 3, 4, 5], [0, 1, 2, 3, 4, 5]])
    labels = ["good", None, LABEL, "b_long_name_of_a_folder/below_another", None, None]
    hits = Hits(
        queries,
        order.astype(np.int64),
        np.linspace(1.0004, 0.25, 12, dtype=np.float32).reshape(2, 6),
        [[paths[i] for i in line] for line in order],
        [[labels[i] for i in line] for line in order],
    )
    path = write_search_page(hits, folder / "results.html")
    return SimpleNamespace(path=path, hits=hits, page=Page(path), folder=folder)


def test_it_shows_queries_and_hits_in_their_order(made: SimpleNamespace) -> None:
    words = made.page.words
    assert "12 hits for 2 queries" in words
    assert f"below {made.folder / 'images'}." in words
    first, second = (part.split("</section>")[0] for part in made.page.source.split("<section")[1:])
    similarities = re.findall(r'class="score">([\d.]+)<', first)
    assert similarities == ["1.0000", *(f"{value:.4f}" for value in made.hits.similarities[0, 1:])]
    names = [re.sub("<wbr>", "", name) for name in re.findall(r'class="name">(.*?)</span>', second)]
    assert names[:2] == ["a/0.png", "a/1.png"]
    assert names[3:] == [f"b_long_name_of_a_folder/{i}.png" for i in range(3)]
    assert "the query itself" in second.split("</li>")[0]
    assert "the query itself" not in first
    pictures = [attributes["src"] for tag, attributes in made.page.tags if tag == "img"]
    assert len(pictures) == 14
    assert len(set(pictures)) == 6 + 1  # one query is a hit
    links = [attributes["href"] for tag, attributes in made.page.tags if tag == "a"]
    assert Path(made.hits.queries[0]).as_uri() in links


def test_it_loads_nothing_and_names_are_texts(made: SimpleNamespace) -> None:
    page = made.page
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "b"})
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("style", "srcset") for name in attributes), tag
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "file:///"))
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'; img-src data:; " in str(policy)
    assert "script-src 'none'" in str(policy)
    assert f"b/ {NASTY}" in page.words  # the place to break a line lies between
    assert LABEL in page.words
    assert "{{" not in page.source


def test_missing_images_and_no_hits_are_told(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.png")
    one = Hits([gone], np.array([[3]]), np.array([[0.5]], np.float32), [["name"]], [[None]])
    with pytest.warns(UserWarning, match=r"2 image\(s\) could not be read for one.html, the first is .*gone"):
        page = Page(write_search_page(one, tmp_path / "one.html", title="<i>Mine"))
    assert page.words.count("The image could not be read.") == 2
    assert "<i>Mine" in page.words
    assert "1 hit for 1 query" in page.words
    query = draw(tmp_path / "query.png", 0)
    none = Hits([query], np.empty((1, 0), np.int64), np.empty((1, 0), np.float32), [[]], [[]])
    page = Page(write_search_page(none, tmp_path / "none.html"))
    assert "No image of the index matches." in page.words
    assert "nav" not in {tag for tag, _ in page.tags}


def test_so_many_queries_are_shown(made: SimpleNamespace, tmp_path: Path) -> None:
    page = Page(write_search_page(made.hits, tmp_path / "page.html", max_queries=1, note="Mine."))
    assert "12 hits for 2 queries" in page.words
    assert "Only the first 1 query is shown. Mine." in page.words
    assert sum(tag == "section" for tag, _ in page.tags) == 1
    with pytest.raises(ValueError, match="max_queries"):
        write_search_page(made.hits, tmp_path / "page.html", max_queries=0)


def test_bytes_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    query = draw(tmp_path / "caf\udce9.png", 0)
    hits = Hits([query], np.array([[0]]), np.array([[1.0]], np.float32), [[query]], [["x"]])
    assert r"caf\xe9.png" in Page(write_search_page(hits, tmp_path / "page.html")).words


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_fits_the_screen(browser: Browser, made: SimpleNamespace, width: int) -> None:
    browser.open(made.path, width, 800)
    browser.wait("[...document.images].every((image) => image.complete)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")
    asked, first = (
        browser.run(f"(({{left, right, bottom}}) => [left, right, bottom])({place}.getBoundingClientRect())")
        for place in ("document.querySelector('.asked')", "document.querySelector('.hits')")
    )
    if width > 700:
        assert first[0] > asked[1]  # beside the query
    else:
        assert first[0] == asked[0]  # below it
    lines = "[...document.querySelectorAll('.score')].map((score) => score.getBoundingClientRect().height)"
    assert max(browser.run(lines)) < 30  # one line, however long the label
    columns = "getComputedStyle(document.querySelector('.hits')).gridTemplateColumns.split(' ').length"
    assert browser.run(columns) == {1280: 4, 390: 2, 320: 2}[width]
    assert browser.run("window.hit === undefined")
    assert browser.problems() == []


def test_it_is_read_by_keyboard(browser: Browser, made: SimpleNamespace) -> None:
    browser.open(made.path)
    reached = []
    for _ in range(3 + 2 * 7):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.ariaLabel ?? document.activeElement.textContent"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert browser.run(outline) == "solid"
    assert reached[:4] == [
        "Skip to the results",
        "asked/query_1.png",
        "images/a/0.png",
        "Open asked/query_1.png",
    ]
    assert reached[4] == f"Open b/{NASTY}"
    assert reached[-1] == "Open b_long_name_of_a_folder/2.png"
    browser.run("document.querySelectorAll('nav a')[1].focus()")
    browser.press("Enter")
    browser.wait("location.hash === '#query-1'")
    browser.send("Accessibility.enable")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    links = [n["name"]["value"] for n in nodes if n.get("role", {}).get("value") == "link"]
    assert len(links) == 17
    assert all(links)
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_schemes(browser: Browser, made: SimpleNamespace, dark: bool) -> None:
    browser.open(made.path, dark=dark)
    texts = browser.contrasts()
    assert len(texts) > 40
    assert texts[0][0] >= 4.5, texts[:5]  # WCAG AA
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:-1].split(",")[0]) < 60) == dark
