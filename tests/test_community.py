"""The files that hosts of repositories and builders of images read: they parse, and name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import ensemblead

ROOT = Path(__file__).resolve().parent.parent
# What is no part of an unpacked source distribution.
pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="not a clone")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [
    path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"
]
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def extras() -> set[str]:
    """The extras of pyproject.toml."""
    section = re.search(
        r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S
    )
    assert section is not None
    return set(re.findall(r"^(\w+) = \[", section[1], re.M))


def test_there_are_files_to_check() -> None:
    assert WORKFLOWS
    assert FORMS
    assert IMAGES


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == ensemblead.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))
    assert all(
        field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in form["body"]
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path: Path) -> None:
    workflow = read(path)
    assert True in workflow or "on" in workflow  # YAML 1.1 reads the word `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        assert set(job.get("needs", [])) <= set(workflow["jobs"])
        # What a job may do besides reading is given where a person releases it.
        assert set(job.get("permissions", {}).items()) <= {("id-token", "write"), ("pages", "write")}
        assert ("permissions" in job) == ("environment" in job)
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for script in re.findall(r"bash (\S+)", step.get("run", "")):
                assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("path", [*WORKFLOWS, *IMAGES], ids=lambda path: path.name)
def test_extras_that_are_installed_exist(path: Path) -> None:
    named = re.findall(r'"\.\[([\w,]+)\]"', path.read_text())
    assert {name for group in named for name in group.split(",")} <= extras()
    assert named or "pip install" not in path.read_text()
