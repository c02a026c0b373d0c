"""The notebooks run, cell by cell, as plain Python: they use no magic of Jupyter, and hold no outputs."""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.registry import separate_registry

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("scipy")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def shown(code: str, names: dict[str, Any]) -> str:
    """Run a cell; the text of its last expression, as Jupyter shows it."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return "" if last is None else repr(eval(compile(ast.Expression(last.value), "<cell>", "eval"), names))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 5


LONG = ("02_an_ensemble_and_its_report", "03_tiles")


@pytest.mark.parametrize(
    "path",
    [pytest.param(one, marks=[pytest.mark.slow] * (one.stem in LONG), id=one.stem) for one in NOTEBOOKS],
)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    separate_registry(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Classes that are defined in cells find the module that they are of, as in a kernel.
    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    texts = [shown(source(cell), vars(module)) for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    # One line for each object: nobody reads on where a cell shows a page.
    assert all("\n" not in text for text in texts), texts
    assert sum(bool(text) for text in texts) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean(path: Path) -> None:
    document = read(path)
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert not re.search(r"^\s*[%!]", source(cell), re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)", source(cell)):
            assert "://" in target or (path.parent / target).exists(), target
