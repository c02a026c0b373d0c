"""How many images the pages of a suite show, and what changing that costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.brightness import draw_category
from support.report_page import Page

pytest.importorskip("torch")

from ensemblead.evaluation import Suite, run
from ensemblead.suites import measuring, suite

GABOR = {"backbone": "gabor", "layers": ["layer1"], "resize": [24, 28], "image_size": None}
IMAGES = 11  # that draw_category draws to test on


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "bootstrap": 0,
        "device": "cpu",
        "detectors": [{"name": "one", "type": "PatchCore", "coreset_fraction": 0.2, **GABOR}],
        "datasets": [{"type": "MVTecAD", "root": str(draw_category(tmp_path / "part", 0))}],
    }


def shown(out: Path) -> int:
    return len(Page(out / "reports/one-part.html").data["items"])


def test_the_page_follows_the_setting_without_measuring_anew(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run({**config, "gallery": 0}, tmp_path)
    assert shown(tmp_path) == 0

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(measuring, "measure_category", fail)
    for wanted in (4, IMAGES, 1000, 2):
        assert run({**config, "gallery": wanted}, tmp_path).is_complete
        assert shown(tmp_path) == min(wanted, IMAGES)
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["gallery"] == 2


def test_a_cell_that_kept_too_few_is_run_again(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (measuring, suite):
        monkeypatch.setattr(module, "GALLERY", 3)
    run({**config, "gallery": 2}, tmp_path)
    assert [cell.reused for cell in run({**config, "gallery": 3}, tmp_path).cells] == [True]
    assert shown(tmp_path) == 3
    assert [cell.reused for cell in run({**config, "gallery": 5}, tmp_path).cells] == [False]
    assert shown(tmp_path) == 5
    # It keeps them, in the place of the earlier one.
    assert [cell.reused for cell in run({**config, "gallery": 2}, tmp_path).cells] == [True]
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_a_negative_one_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="gallery must be at least 0, got -1"):
        Suite.parse({**config, "gallery": -1})


def test_the_command_line_goes_first(config: dict[str, Any], tmp_path: Path) -> None:
    testing = pytest.importorskip("typer.testing")
    from ensemblead.cli.app import app

    (tmp_path / "s.json").write_text(json.dumps({**config, "gallery": 6}))
    call = ["evaluate", "--config", str(tmp_path / "s.json"), "--out", str(tmp_path)]
    for more, wanted in (([], 6), (["--gallery", "2"], 2), (["--gallery", "0"], 0)):
        outcome = testing.CliRunner().invoke(app, [*call, *more])
        assert outcome.exit_code == 0, outcome.stderr
        assert shown(tmp_path) == wanted
