"""report.html in a real, headless Chromium: it opens without errors, sorts, filters, moves its overlays, and
needs no mouse.

Without Chromium (Debian's package `chromium`, or ENSEMBLEAD_CHROMIUM=path) these tests are skipped; with
ENSEMBLEAD_REQUIRE_BROWSER=1 they fail instead.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("PIL")

from support.brightness import Brightness, draw, draw_category
from support.browser import Browser

from ensemblead.evaluation import MVTecAD, Report, evaluate
from ensemblead.evaluation.by_type import worst_first

NASTY = '<img src=x onerror="window.hit=1">.png'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A report on two categories; each has one false alarm, and three misses out of six or seven defects."""
    folder = tmp_path_factory.mktemp("page")
    for name, seed in (("bolt", 0), ("nut", 50)):
        draw_category(folder / "set" / name, seed)
        draw(folder / "set" / name / "test/good/9.png", seed, (14, 14, 250))
    odd = folder / "set/bolt/test/<b>odd"
    draw(odd / NASTY, 7, (20, 20, 240), folder / "set/bolt/ground_truth/<b>odd" / NASTY)
    report = evaluate(Brightness(), MVTecAD(folder / "set"), bootstrap=20)
    report.to_html(folder / "report.html")
    return SimpleNamespace(path=folder / "report.html", report=report, items=everything(report))


def everything(report: Report) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            category=category,
            name="/".join(Path(image.path).parts[-2:]),
            kind=image.defect_type,
            score=image.score,
            label=image.label,
            error=image.is_error,
        )
        for category, details in report.details.items()
        for image in details.images
    ]


@pytest.fixture
def page(browser: Browser, made: SimpleNamespace) -> Iterator[Browser]:
    """The report, opened on a desktop screen; whatever a test does with it, no error may come of it."""
    browser.open(made.path)
    browser.wait("!document.getElementById('gallery-body').hidden")
    yield browser
    assert browser.problems() == []


def listed(page: Browser) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('.card .name')].map((n) => n.textContent)")
    return found


def choose(page: Browser, name: str, value: str) -> None:
    page.run(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = {json.dumps(value)};"
        " s.dispatchEvent(new Event('change')); })()"
    )


def focused(page: Browser) -> str:
    """What has the keyboard: its id, or its class, or its tag."""
    found: str = page.run(
        "(({id, className, tagName}) => id || className || tagName)(document.activeElement)"
    )
    return found


def test_it_opens_and_draws(page: Browser, made: SimpleNamespace) -> None:
    assert len(listed(page)) == len(made.items) == 25
    assert page.run("document.getElementById('count').textContent") == "25 of 25 images"
    assert page.run("document.querySelector('.card img').src") == ""  # drawn when it comes near
    page.run("document.getElementById('gallery').scrollIntoView()")
    page.wait("document.querySelector('.card canvas').width === 16")
    page.wait("document.querySelector('.card .frame > svg path.truth[d^=M]') !== null")
    page.wait("document.querySelector('.card .seen > svg path.decided[d^=M]') !== null")
    assert page.run("document.querySelector('.card img').naturalWidth") == 48
    assert page.run("document.querySelectorAll('.chart > svg').length") == 8


def test_names_of_files_do_nothing(page: Browser) -> None:
    assert f"<b>odd/{NASTY}" in listed(page)
    assert page.run("window.hit === undefined")
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert page.run("[...document.getElementById('kind').options].map((o) => o.textContent)") == [
        *("All", "<b>odd", "dull", "good", "shiny"),
    ]


def test_the_policy_refuses_other_scripts(browser: Browser, made: SimpleNamespace) -> None:
    browser.open(made.path)
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        " document.body.append(s); })()"
    )
    assert browser.run("window.hit === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems())


def test_sorting(page: Browser, made: SimpleNamespace) -> None:
    def scores() -> list[float]:
        found = page.run("[...document.querySelectorAll('.card .score')].map((n) => Number(n.textContent))")
        return [float(score) for score in found]

    expected = sorted(item.score for item in made.items)
    choose(page, "order", "low")
    assert scores() == pytest.approx(expected, abs=1e-3)
    choose(page, "order", "high")
    assert scores() == pytest.approx(expected[::-1], abs=1e-3)
    choose(page, "order", "name")
    names = listed(page)
    assert names[:13] == sorted(item.name for item in made.items if item.category == "bolt")
    assert names[13:] == sorted(item.name for item in made.items if item.category == "nut")
    choose(page, "order", "kind")
    kinds = page.run(
        "[...document.querySelectorAll('.card .kind')].map((n) => n.textContent.split(' · ')[1])"
    )
    assert kinds == sorted((item.kind for item in made.items), key=str)
    choose(page, "order", "error")
    verdicts = page.run("[...document.querySelectorAll('.card .verdict')].map((n) => n.className)")
    assert verdicts == ["verdict error"] * 8 + ["verdict"] * 17
    # The threshold is 150 for all: whatever is farthest beyond it comes first.
    spans = {
        name: max(i.score for i in made.items if i.category == name)
        - min(i.score for i in made.items if i.category == name)
        for name in ("bolt", "nut")
    }
    wrong = sorted((i for i in made.items if i.error), key=lambda i: -abs(i.score - 150) / spans[i.category])
    assert listed(page)[:8] == [item.name for item in wrong]


def test_filters_show_the_right_images_and_numbers(page: Browser, made: SimpleNamespace) -> None:
    def numbers() -> list[int]:
        found = page.run("[...document.querySelectorAll('#outcomes b')].map((n) => Number(n.textContent))")
        return [int(number) for number in found]

    assert numbers() == [25, 2, 6, 17]
    page.click('#outcomes label:has(input[value="miss"])')
    assert sorted(listed(page)) == sorted(item.name for item in made.items if item.error and item.label)
    page.click('#outcomes label:has(input[value="alarm"])')
    assert listed(page) == ["good/9.png"] * 2
    page.click('#outcomes label:has(input[value="correct"])')
    assert len(listed(page)) == 17
    choose(page, "category", "1")
    assert numbers() == [12, 1, 3, 8]
    assert page.run("[...document.getElementById('kind').options].length") == 4  # all, dull, good, shiny
    choose(page, "kind", "=dull")
    assert numbers() == [3, 0, 3, 0]
    assert listed(page) == []
    assert page.run("document.getElementById('nothing').hidden") is False
    assert page.run("document.getElementById('count').textContent") == "0 of 25 images"
    page.click("#reset")
    assert len(listed(page)) == 25
    assert focused(page) == "INPUT"


def test_types_sort_by_the_titles_of_their_columns(page: Browser, made: SimpleNamespace) -> None:
    column = "[...document.querySelectorAll('#curves-0 .types tbody tr')].map((r) => r.cells[{}].textContent)"
    names = [row.defect_type for row in worst_first(made.report.details["bolt"].types)]
    assert page.run(column.format(0)) == names
    assert names[0] == "dull"
    auroc = sorted(f"{row.pixel_auroc:.4f}" for row in made.report.details["bolt"].types)
    for expected, state in ((auroc, "ascending"), (auroc[::-1], "descending"), (auroc, "ascending")):
        page.click("#curves-0 .types th:nth-child(4) .sort")
        assert page.run(column.format(3)) == expected
        sorted_by = (
            "[...document.querySelectorAll('.types [aria-sort]')].map((t) => [t.cellIndex, t.ariaSort])"
        )
        assert page.run(sorted_by) == [[3, state]]
    page.run("document.querySelector('#curves-0 .types .sort').focus()")
    page.press("Enter")
    assert page.run(column.format(0)) == ["<b>odd", "dull", "shiny"]
    # What is not known is last, in either order.
    page.run("document.querySelector('#curves-0 .types tbody').rows[0].cells[4].dataset.value = ''")
    for _ in range(2):
        page.click("#curves-0 .types th:nth-child(5) .sort")
        assert page.run(column.format(0))[-1] == "<b>odd"
    assert page.run("document.querySelectorAll('#curves-1 .types [aria-sort]').length") == 0


def test_types_and_their_misses_show_their_images(page: Browser, made: SimpleNamespace) -> None:
    links = "[...document.querySelectorAll('#curves-0 .types a')].map((a) => a.textContent)"
    assert sorted(page.run(links)) == ["3 of 3", "<b>odd", "dull", "shiny"]  # misses where there are any
    page.click("#curves-0 .types th[data-kind=shiny] a")
    assert page.run("location.hash") == "#gallery"
    assert focused(page) == "gallery"
    expected = [item.name for item in made.items if (item.category, item.kind) == ("bolt", "shiny")]
    assert sorted(listed(page)) == sorted(expected)
    assert page.run("['category', 'kind'].map((id) => document.getElementById(id).value)") == ["0", "=shiny"]
    page.click("#curves-0 .types small a")
    assert page.run("document.querySelector('#outcomes input:checked').value") == "miss"
    assert sorted(listed(page)) == ["dull/0.png", "dull/1.png", "dull/2.png"]


def test_a_type_may_be_called_all(browser: Browser, tmp_path: Path) -> None:
    part = draw_category(tmp_path / "part", 0)
    for folder in ("test", "ground_truth"):
        (part / folder / "dull").rename(part / folder / "all")
    evaluate(Brightness(), MVTecAD(part), bootstrap=0).to_html(tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    browser.wait("!document.getElementById('gallery-body').hidden")
    assert len(listed(browser)) == 11
    browser.click(".types th[data-kind=all] a")
    assert sorted(listed(browser)) == ["all/0.png", "all/1.png", "all/2.png"]
    choose(browser, "kind", "all")
    assert len(listed(browser)) == 11
    choose(browser, "kind", "=all")
    assert len(listed(browser)) == 3
    assert browser.problems() == []


def covered(page: Browser, canvas: str) -> float:
    """How opaque a heat map is, on average, 0 to 255."""
    return float(
        page.run(
            f"(() => {{ const shown = document.querySelector({json.dumps(canvas)});"
            " const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });"
            " copy.drawImage(shown, 0, 0); const d = copy.getImageData(0, 0, shown.width, shown.height).data;"
            " let sum = 0; for (let i = 3; i < d.length; i += 4) sum += d[i]; return 4 * sum / d.length; })()"
        )
    )


def test_sliders_move_the_overlay(page: Browser) -> None:
    page.run("document.getElementById('gallery').scrollIntoView()")
    page.wait("document.querySelector('.card canvas').width === 16")
    middle = covered(page, ".card canvas")
    assert 0 < middle < 255
    page.run("document.querySelector('.card .own').focus()")
    for _ in range(10):
        page.press("ArrowRight")
    assert page.run("document.querySelector('.card .own').value") == "100"
    assert covered(page, ".card canvas") == 255
    for _ in range(20):
        page.press("ArrowLeft")
    assert covered(page, ".card canvas") == 0
    assert covered(page, ".card:nth-child(2) canvas") > 0  # the others stay
    page.run("document.getElementById('blend').focus()")
    page.press("ArrowRight")
    assert page.run("[...document.querySelectorAll('.own')].every((s) => s.value === '55')")
    assert covered(page, ".card canvas") > middle
    last = "document.querySelector('#scale').getContext('2d').getImageData(255, 0, 1, 1).data"
    assert page.run(f"[...{last}]") == [252, 255, 164, 255]


def test_outlines_can_be_hidden(page: Browser) -> None:
    hidden = "[...document.querySelectorAll('.card {}')].every((s) => s.style.display === 'none')"
    for box, lines in (("show-mask", ".frame > svg"), ("show-decision", ".seen > svg")):
        assert page.run(hidden.format(lines)) is False
        page.click(f"#{box}")
        assert page.run(hidden.format(lines)) is True
        page.click(f"#{box}")
        assert page.run(hidden.format(lines)) is False


def test_outlines_enclose_what_is_inside(page: Browser) -> None:
    def area(levels: list[list[int]]) -> tuple[float, int]:
        shape = {"width": len(levels[0]), "height": len(levels), "levels": [v for row in levels for v in row]}
        path: str = page.run(f"outline({json.dumps(shape)}, 127.5)")
        loops = [
            [tuple(map(float, point.split())) for point in loop[:-1].split("L")]
            for loop in path.split("M")[1:]
        ]
        total = 0.0
        for loop in loops:
            pairs = zip(loop, [*loop[1:], loop[0]], strict=True)
            total += sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs) / 2
        return abs(total), len(loops)

    def shape(rows: str) -> list[list[int]]:
        return [[255 * (cell == "#") for cell in row] for row in rows.split()]

    # A pixel alone is a diamond of half a pixel's area; a corner is cut by an eighth of one.
    assert area(shape("... .#. ...")) == pytest.approx((0.5, 1), abs=0.02)
    assert area(shape("..... .###. .###. .###. .....")) == pytest.approx((8.5, 1), abs=0.02)
    assert area(shape("..... .###. .#.#. .###. .....")) == pytest.approx((8.0, 2), abs=0.02)  # with a hole
    assert area(shape("#. .#"))[1] == 2  # across a corner they do not touch
    assert area(shape("## ##"))[1] == 1  # closed at the border
    assert area(shape(".. .."))[1] == 0


_FOCUS_RING = """
(() => {
  const node = document.activeElement;
  const style = getComputedStyle(node.name === "outcome" ? node.nextSibling : node);
  return style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
})()
"""


def test_the_keyboard_alone_is_enough(page: Browser) -> None:
    stops = []
    for _ in range(40):
        page.press("Tab")
        stops.append(focused(page))
        assert page.run(_FOCUS_RING) >= 2, stops
        if stops[-1] == "own":
            break
    assert stops[0] == "skip"
    order = [*("category", "kind", "order", "INPUT", "blend", "show-mask", "show-decision", "open", "own")]
    assert stops[-len(order) :] == order
    page.press("Tab", shift=True)
    page.press("Enter")
    assert page.run("document.getElementById('detail').open") is True


def test_the_detail_view_by_keyboard(page: Browser) -> None:
    choose(page, "order", "name")
    names = listed(page)

    def title() -> str:
        return str(page.run("document.getElementById('detail-name').textContent"))

    page.run("document.querySelector('.card:nth-child(2) .open').focus()")
    page.press("Enter")
    assert page.run("document.getElementById('detail').open") is True
    assert title() == names[1]
    assert page.run("document.getElementById('detail-place').textContent") == "2 of 25"
    page.press("ArrowRight")
    assert title() == names[2]
    for _ in range(3):
        page.press("ArrowLeft")
    assert title() == names[0]
    assert page.run("document.getElementById('detail-previous').disabled") is True
    page.wait("document.querySelector('#detail canvas').width === 16")
    before = covered(page, "#detail canvas")
    page.run("document.getElementById('detail-blend').focus()")
    page.press("ArrowRight")  # moves the slider, not the image
    assert title() == names[0]
    assert covered(page, "#detail canvas") > before
    page.click("#detail-mask")
    assert page.run("document.querySelector('#detail .frame > svg').style.display") == "none"
    assert page.run("document.getElementById('show-mask').checked") is False
    # The rest of the page is out of reach.
    for _ in range(12):
        page.press("Tab")
        assert page.run(
            "document.activeElement === document.body || !!document.activeElement.closest('#detail')"
        )
    page.run("document.getElementById('detail-close').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    page.press("Escape")
    assert page.run("document.getElementById('detail').open") is False
    # The browser gives the focus back to where it was; a moment later the page moves it.
    page.wait(f"document.activeElement.getAttribute('aria-label') === 'Look closer: {names[3]}'")
    page.click(".card:nth-child(3) .open")
    assert title() == names[2]
    facts = page.run("document.getElementById('detail-facts').textContent")
    assert "Threshold150.000" in facts
    page.click("#detail-close")
    assert page.run("document.getElementById('detail').open") is False


def test_everything_has_a_name(page: Browser) -> None:
    """The accessibility tree: no control without a name, and the headings in order."""
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    controls = ("button", "slider", "combobox", "checkbox", "radio", "link", "img")
    named = [
        (n["role"]["value"], n["name"]["value"]) for n in nodes if n.get("role", {}).get("value") in controls
    ]
    assert len([role for role, _ in named if role == "slider"]) == 26
    assert len([role for role, _ in named if role == "radio"]) == 4
    assert [role for role, name in named if not name] == []
    headings = "[...document.querySelectorAll('h1, main h2, main h3, main h4')]"
    levels = page.run(f"{headings}.map((heading) => Number(heading.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("width", [360, 320, 768])
def test_a_small_screen_is_wide_enough(browser: Browser, made: SimpleNamespace, width: int) -> None:
    browser.open(made.path, width, 700)
    browser.wait("!document.getElementById('gallery-body').hidden")
    for details in ("details.notes", "details.curves"):
        browser.run(f"document.querySelectorAll('{details}').forEach((d) => {{ d.open = true; }})")
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.click(".open")
    browser.wait("document.getElementById('detail').open")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.getElementById('detail').scrollWidth") <= width
    assert browser.run("document.getElementById('detail-close').getBoundingClientRect().right") <= width
    assert browser.problems() == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_schemes(browser: Browser, made: SimpleNamespace, dark: bool) -> None:
    browser.open(made.path, dark=dark)
    browser.wait("!document.getElementById('gallery-body').hidden")
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in background[4:-1].split(",")]
    assert all(channel < 60 for channel in channels) if dark else all(channel > 200 for channel in channels)
    browser.run("document.querySelector('details.notes').open = true")
    texts: list[Any] = browser.contrasts()
    assert len(texts) > 150
    assert texts[0][0] >= 4.5, texts[:5]  # WCAG AA


def test_reduced_motion_is_respected(page: Browser) -> None:
    still = (
        "[...document.querySelectorAll('*')].every((n) => getComputedStyle(n).transitionDuration === '0s')"
    )
    assert page.run(still) is False
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert page.run(still) is True


def test_tables_and_curves_need_no_script(browser: Browser, made: SimpleNamespace) -> None:
    browser.open(made.path, scripts=False)  # the protocol still evaluates
    assert browser.run("document.getElementById('gallery-body').hidden") is True
    assert browser.run("document.querySelectorAll('table tbody tr').length") == 6 + 3 + 2
    assert browser.run("document.querySelectorAll('.types a, .types button').length") == 0
