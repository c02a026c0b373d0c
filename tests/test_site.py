"""The site: complete, built without a warning, readable at any width, searched offline."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.browser import browser_or_skip

import ensemblead as ead
from ensemblead.common import other_names

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def module_at(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(name: str) -> str:
    """A page as the site has it."""
    path = DOCS / f"{name}.md"
    return str(module_at(DOCS / "generated.py").page(path.read_text(), path))


def test_the_reference_has_every_public_name_once() -> None:
    pytest.importorskip("torch")
    text = "\n".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
    listed = re.findall(r"^\.\. auto\w+:: ensemblead\.(?:evaluation\.)?(\w+)$", text, re.MULTILINE)
    public = {*ead.__all__, *ead.evaluation.__all__} - {"__version__"}
    assert sorted(listed) == sorted(public)


@pytest.mark.parametrize("tool", ["anomalib", "patchcore-inspection"])
def test_pages_for_users_of_other_tools_have_all_their_names(tool: str) -> None:
    text = written(f"coming-from/{tool}")
    for tables in (other_names.NAMES_OF, other_names.PARAMETERS_OF, other_names.ADVICE_OF):
        for name in tables[tool]:
            assert f"| `{name}` | " in text


def test_the_page_of_commands_has_all_of_them() -> None:
    typer = pytest.importorskip("typer")
    pytest.importorskip("torch")
    from ensemblead.cli.app import app

    text = written("reference/cli")
    group = typer.main.get_command(app)
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == sorted(group.commands)
    assert re.findall(r"^### (.+)$", text, re.MULTILINE) == sorted(group.commands["convert"].commands)
    assert re.search(r"^`--settle .*`\n: Seconds for which .*0\.5", text, re.MULTILINE)
    assert text.count("\n`--json`\n: Print a JSON summary.\n") > 10


def test_files_of_the_repository_are_pages() -> None:
    assert written("changelog").startswith("# Changelog")
    assert "https://github.com/ensemblead/ensemblead/blob/main/examples/mean_colour.py" in written(
        "contributing"
    )
    assert "](design/training.md)" in written("contributing")
    assert "class MeanColour(Method):" in written("how-to/own-method")


def words_of(picture: Path) -> set[str]:
    """The texts of an SVG that have no digits."""
    texts = (part.strip() for part in ElementTree.parse(picture).getroot().itertext())
    return {text for text in texts if text.isascii() and not re.search(r"[\d{]", text) and text}


@pytest.mark.slow
def test_the_pictures_of_concepts_are_drawn(tmp_path: Path) -> None:
    for name in ("torch", "matplotlib", "scipy"):
        pytest.importorskip(name)
    drawn = module_at(ROOT / "tools/draw_concepts.py").draw_all(tmp_path)
    assert {path.name for path in drawn} == {path.name for path in (DOCS / "pictures").iterdir()}
    for path in drawn:
        kept = DOCS / "pictures" / path.name
        assert f"pictures/{path.name})" in (DOCS / "concepts.md").read_text()
        assert words_of(path) == words_of(kept), f"{path.name}: run tools/draw_concepts.py"
        assert kept.stat().st_size < 100_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "torch"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", out / "trees"]
    outcome = subprocess.run([*command, DOCS, out / "html"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site: Path) -> None:
    pages = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} <= pages
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(), path
    detectors = (site / "reference/detectors.html").read_text()
    assert 'id="ensemblead.PatchCore"' in detectors
    assert "What is inspected of photographs; None: all. Maps are zero outside." in detectors


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_their_window_and_load_nothing(site: Path, width: int) -> None:
    with browser_or_skip() as browser:
        for name in ("index", "concepts", "how-to/tiles", "reference/cli", "reference/detectors"):
            browser.open(site / f"{name}.html", width=width, dark=width < 600)
            assert browser.run("document.documentElement.scrollWidth") <= width, name
            assert browser.problems() == [], name
            assert all(browser.run("[...document.images].map(one => one.naturalWidth > 0)"))


@pytest.mark.slow
def test_search_works_from_a_folder(site: Path) -> None:
    with browser_or_skip() as browser:
        browser.open(f"{(site / 'search.html').as_uri()}?q=coreset")
        browser.wait("document.querySelectorAll('#search-results li a').length > 2")
        assert "Concepts" in browser.run("document.querySelector('#search-results').innerText")
