"""The first example of README.md does what its comments say, and links of all pages lead somewhere."""

from __future__ import annotations

import email
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])


def test_the_ten_lines_do_what_their_comments_say() -> None:
    pytest.importorskip("torch")
    (example,) = re.findall(r"^## Ten lines\n\n```python\n(.*?)```", README.read_text(), re.M | re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    claims = re.findall(r"^(\w+) = .*#\s*\[([\d, ]+)\]", example, re.MULTILINE)
    assert len(claims) == 5
    for name, shape in claims:
        assert tuple(names[name].shape) == tuple(map(int, shape.split(","))), name
    assert names["verdicts"][0]
    assert names["scores"][0] > 2 * names["scores"][1:].max()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [one for one in links if "://" not in one and not (document.parent / one).exists()]
    assert missing == []


def anchors_of(document: Path) -> set[str]:
    """The anchors of a document's headings, as hosts of repositories make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_headings(document: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", document.read_text()):
        target = document.parent / path if path else document
        if target.suffix == ".md":
            assert anchor in anchors_of(target), f"{path}#{anchor}"


BUILD = """
import sys
from scikit_build_core.build import prepare_metadata_for_build_wheel
prepare_metadata_for_build_wheel(sys.argv[1])
"""


def test_the_page_on_pypi_installs_a_release_and_links_to_its_tag(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("hatch_fancy_pypi_readme")
    subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=ROOT, capture_output=True, check=True)
    (written,) = tmp_path.glob("*.dist-info/METADATA")
    metadata = email.message_from_string(written.read_text())
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload()

    tag = f"v{metadata['Version']}"
    host = "https://github.com/ensemblead/ensemblead"
    here = set(re.findall(r"\]\(([^)#\s:]+)[^)]*\)", README.read_text()))
    there = {f"{host}/{'tree' if (ROOT / one).is_dir() else 'blob'}/{tag}/{one}" for one in here}
    assert len(there) > 25
    assert set(re.findall(r"\]\(([^)#\s]+)[^)]*\)", page)) == there

    commands = re.findall(r"pip install (?!torch)(\S+)", page)
    names = ["ensemblead", *(f'"ensemblead[{extra}]"' for extra in ("cpu", "gpu", "predict", "cpu"))]
    assert commands == [*names, '".[cpu,test]"', '".[cpu,docs]"']  # those of a clone say so
    for text in ("From a clone", "on PyPI", "in a clone:", "C++17"):
        assert text not in page
    assert page.count("Wheels") == 2


def test_the_page_for_contributors_is_read_in_one_go() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 150
