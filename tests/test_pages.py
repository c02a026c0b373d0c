"""Every block of code on the pages for users: commands and extras exist, and pages run from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("timm")

from support.pages import PAGES, ROOT, PageRun, blocks_of, check_command, commands_of, make_folder, stand_in

# Run by every test run; the others are slow ones, together half a minute.
FIRST = ("docs/start.md", "docs/reference/kernels.md")
WITH_CODE = [path for path in PAGES if any(one.language in ("python", "bash") for one in blocks_of(path))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_pages() -> None:
    assert len(WITH_CODE) > 15
    assert {name(path) for path in WITH_CODE} > {*FIRST}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_blocks_have_a_language_that_is_known(path: Path) -> None:
    for block in blocks_of(path):
        known = ("python", "bash", "text", "{toctree}", "{eval-rst}")
        assert block.language in known or (block.language == "yaml" and block.mark.startswith("file: ")), (
            block
        )


@pytest.mark.parametrize("path", WITH_CODE, ids=name)
def test_commands_and_their_options_exist(path: Path) -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for block in blocks_of(path):
        for words in commands_of(block.text) if block.language == "bash" else ():
            if "ensemblead" in words and words[0] != "pip":  # which names the package
                check_command(words[words.index("ensemblead") + 1 :])
            if words[:2] == ["pip", "install"]:
                for group in re.findall(r"\[(.*)\]", " ".join(words)):
                    assert set(group.split(",")) <= extras, words


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ensemblead fitt images --model m", "there is no command fitt"),
        ("ensemblead fit images --model m --patchsize 3", "No such option"),
        ("ensemblead predict model images", "Missing parameter: out"),
        ("ensemblead fit images --model m --resize", "requires an argument"),
    ],
)
def test_a_wrong_command_is_seen(line: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        check_command(line.split()[1:])


def run_page(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> PageRun:
    make_folder(folder)
    monkeypatch.chdir(folder)
    stand_in(monkeypatch)
    page = PageRun(path, folder)
    page.run()
    return page


@pytest.mark.parametrize("path", [ROOT / one for one in FIRST], ids=name)
def test_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run_page(path, tmp_path, monkeypatch)
    assert page.claims == (5 if path.stem == "kernels" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in WITH_CODE if name(path) not in FIRST], ids=name)
def test_every_other_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(path, tmp_path, monkeypatch)
