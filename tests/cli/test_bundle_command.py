"""`ensemblead bundle`: what it says, and the commands that fetch what is missing."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")
pytest.importorskip("packaging")
from support.commands import call, call_json
from support.wheels import write_wheel

import ensemblead as ead


def test_bundle(model: Path, category: Path, tmp_path: Path) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "bundle"
    image = category / "test/blot/000.png"
    arguments = ["bundle", model, "--wheels", wheels, "--image", image, "--out", out]
    requires = ['numpy; extra == "predict"', 'mat-plot; extra == "cpu"']
    write_wheel(wheels, "ensemblead", ead.__version__, requires, extras=["predict", "cpu"])
    outcome = call(*arguments)
    assert outcome.exit_code == 1
    assert "lacks 1 for Python" in outcome.stderr
    assert "numpy (for ensemblead): there is none" in outcome.stderr
    assert "python -m pip download --dest" in outcome.stderr
    assert not out.exists()
    write_wheel(wheels, "numpy", metadata.version("numpy"))
    summary = call_json(*arguments)
    assert summary["wheels"] == 2
    assert summary["score"] == pytest.approx(float(ead.load(model).predict([image]).anomaly_score[0]))
    assert summary["bytes"] == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    again = call(*arguments)
    assert again.exit_code == 2
    assert "exists" in again.stderr
    other = [*arguments[:-1], tmp_path / "other"]
    for options, message in (
        (["--extra", "cpu"], "mat-plot (for ensemblead): there is none"),
        (["--platform", "win"], "platform must be as"),
        (["--python", "three"], "python must be as 3.12"),
        (["--wheels", tmp_path / "none"], "no such folder"),
    ):
        refused = call(*other, *options)
        assert refused.exit_code in (1, 2), options
        assert message in refused.stderr
    shown = call(*other, "--platform", "win_amd64", "--python", "3.12")
    assert shown.exit_code == 0, shown.stderr
    assert "2 wheels for Python 3.12 on win_amd64" in shown.stdout
