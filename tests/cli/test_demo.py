"""The demonstration: plates that are drawn the same every time, defects that are where their masks are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("scipy")

from typer.testing import CliRunner

import ensemblead as ead
from ensemblead.cli import demo
from ensemblead.cli.app import app
from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json
from ensemblead.cli.parts import DEFECTS, draw_data_set, draw_part


def test_plates_depend_on_their_seed_alone() -> None:
    first, _ = draw_part(64, np.random.default_rng(1))
    again, _ = draw_part(64, np.random.default_rng(1))
    other, _ = draw_part(64, np.random.default_rng(2))
    assert np.array_equal(first, again)
    assert first.shape == (64, 64, 3)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_a_defect_is_where_its_mask_is(defect: str) -> None:
    """The same plate whole and spoiled: they differ within the mask, and hardly anywhere else."""
    for seed in range(3):
        whole, nothing = draw_part(128, np.random.default_rng(seed))
        spoiled, mask = draw_part(128, np.random.default_rng(seed), defect)
        assert not nothing.any()
        assert 0.0005 < mask.mean() < 0.1
        # The defect draws from the same stream before the light does, so that lights differ a little: compare
        # what is left of smooth differences.
        change = np.abs(_detail(spoiled) - _detail(whole))
        assert change[mask].mean() > 1.3 * change[~mask].mean()


def _detail(image: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    values = image.astype(np.float64)
    return np.asarray(values - values.mean(axis=(0, 1))).mean(axis=2)


def test_the_data_set_is_in_mvtec_layout(tmp_path: Path) -> None:
    numbers = {"num_train": 3, "num_fresh": 2, "num_good": 2, "per_defect": 1}
    paths = list(draw_data_set(tmp_path, 0, size=64, **numbers))
    assert len(paths) == 3 + 2 + 2 + len(DEFECTS)
    category = ead.MVTecAD(tmp_path).categories[0]
    assert (len(category.train), len(category.test)) == (3, 2 + len(DEFECTS))
    assert {sample.defect_type for sample in category.test} == {"good", *DEFECTS}
    assert category.duplicates() == []
    category.check_masks()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], ead.Report]:
    numbers = {"num_train": 10, "num_fresh": 6, "num_good": 4, "per_defect": 1}
    with pytest.warns(UserWarning, match="6 images cannot guarantee"):
        return demo.run(tmp_path_factory.mktemp("demo"), 0, 128, numbers, Bars())


def test_demo_goes_the_whole_way(
    outcome: tuple[dict[str, Any], ead.Report], capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(outcome[0])
    summary = json.loads(capsys.readouterr().out)
    assert Path(summary["contact_sheet"]).stat().st_size > 10_000
    assert Path(summary["report"]).stat().st_size > 10_000
    assert ead.load(summary["model"], device="cpu").threshold_ == summary["threshold"]
    assert summary["summary"]["image_auroc"] > 0.8
    kinds = {kind["kind"]: kind for kind in summary["by_kind"]}
    assert set(kinds) == {"good", *DEFECTS}
    assert kinds["heat_tint"]["mean_score"] > 2 * kinds["good"]["mean_score"]


def test_demo_says_what_it_did(
    outcome: tuple[dict[str, Any], ead.Report], capsys: pytest.CaptureFixture[str]
) -> None:
    demo._show(*outcome)
    said = capsys.readouterr().out
    for expected in ("Drew 10 whole plates", "memory bank", "scratch", "image", "results/report.html"):
        assert expected in said


def test_demo_leaves_what_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "must be a new or an empty folder" in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
