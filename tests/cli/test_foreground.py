"""`ensemblead fit --set foreground=auto`: the parameter arrives, and so does its warning."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("typer")

from PIL import Image
from support.commands import GABOR, call
from support.textures import normal_images

import ensemblead as ead


def test_the_parameter_reaches_the_detector_and_the_warning_the_user(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for number, image in enumerate(normal_images(8, side=48)):
        Image.fromarray(image).save(tmp_path / "good" / f"{number}.png")
    arguments = ("fit", tmp_path / "good", "--model", tmp_path / "m", *GABOR, "--set", "foreground=auto")
    told = call(*arguments)
    assert "show no object on a background" in told.stderr
    loaded = ead.load(tmp_path / "m")
    assert isinstance(loaded, ead.PatchCore)
    assert (loaded.foreground, loaded.foreground_) == ("auto", None)
