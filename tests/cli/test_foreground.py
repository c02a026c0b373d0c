"""`ensemblead fit --set foreground=auto`: the object is found, or it is said that there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


def test_a_disc_on_a_plain_ground_is_found_and_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    disc = (y - 32) ** 2 + (x - 32) ** 2 < 18**2
    (tmp_path / "good").mkdir()
    for number in range(12):
        image = np.full((64, 64, 3), 90)
        image[disc] = (120 + 60 * (x // 4 % 2)[..., None] + rng.integers(-9, 9, (64, 64, 3)))[disc]
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "good" / f"{number}.png")
    call("fit", tmp_path / "good", "--model", tmp_path / "m", *GABOR, "--set", "foreground=auto")
    found = ead.load(tmp_path / "m").predict(tmp_path / "good").anomaly_map
    assert not found[:, :8, :8].any()
    assert (found[:, 26:38, 26:38] > 0).all()
