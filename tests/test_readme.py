"""The examples of README.md run, the shapes in their comments are true, and links lead to files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])

EXAMPLES = re.findall(r"<!-- runs -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.splitlines()[3][:20])
def test_an_example_does_what_its_comments_say(example: str) -> None:
    if "PatchCore(" in example:
        pytest.importorskip("torch")
    names: dict[str, Any] = {}
    checked = 0
    for line in example.splitlines():
        exec(line, names)
        claim = re.match(r"(\w+) = .*#\s*\[([\d, ]+)\]", line)
        if claim:
            assert tuple(names[claim[1]].shape) == tuple(map(int, claim[2].split(","))), line
            checked += 1
    assert checked >= 5


def test_the_threshold_separates_in_the_example() -> None:
    pytest.importorskip("torch")
    (example,) = [text for text in EXAMPLES if "PatchCore(" in text]
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["verdicts"][0]
    assert names["scores"][0] > 2 * names["scores"][1:].max()


def test_the_commands_exist() -> None:
    pytest.importorskip("typer")
    from ensemblead.cli.app import app

    known = {command.name for command in app.registered_commands}
    used = set(re.findall(r"^(?:.*&& )?ensemblead ([a-z]+)", README.read_text(), re.MULTILINE))
    assert {"demo", "fit", "predict", "evaluate"} <= used <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [one for one in links if "://" not in one and not (document.parent / one).exists()]
    assert missing == []


def test_the_page_for_contributors_is_read_in_one_go() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 150
