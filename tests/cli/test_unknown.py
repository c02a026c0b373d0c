"""Options and commands that are not here: answered in every command."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

import typer
from support.commands import call

from ensemblead.cli.app import app


def words(text: str) -> str:
    """Without the box that errors are printed in."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fit x --model y --patchsize 3", "No such option: --patchsize; here it is --patch-size"),
        ("fit x --model y --backbone_names a", "No such option: --backbone_names; here it is --backbone"),
        ("fit x --model y --faiss_on_gpu", "--faiss_on_gpu; the search runs where the detector does"),
        ("fit x --model y --patch_size 3", "No such option: --patch_size (Possible options: --patch-size"),
        ("predict m i --imagesize 3", "--imagesize; here it is image_size, a parameter of ensemblead fit"),
        ("convert anomalib x --gpu 0", "No such option: --gpu; here it is --device"),
        ("--log_group a fit", "--log_group; ensemblead evaluate writes the results"),
        ("fit x --model y --augment auto", "given by --set augment=VALUE"),
        ("train", "No such command 'train'; here it is ensemblead fit"),
        ("fitt", "No such command 'fitt'"),
    ],
)
def test_unknown_names(arguments: str, said: str) -> None:
    outcome = call(*arguments.split())
    assert outcome.exit_code == 2
    assert said in words(outcome.stderr)


def test_every_command_has_short_help() -> None:
    group = typer.main.get_command(app)
    names = [(name,) for name in group.commands if name != "convert"]
    names += [("convert", name) for name in group.commands["convert"].commands]
    assert len(names) > 15
    for name in names:
        outcome = call(*name, "-h")
        assert outcome.exit_code == 0, name
        assert "Usage:" in outcome.stdout
