"""Fits on images some of which cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from support.checked_methods import CellMeans, LinearAutoencoder
from support.pictures import save
from support.textures import normal_images

import ensemblead as ead


def _files(folder: Path, broken: set[int]) -> list[str]:
    paths = [save(folder / f"{i}.png", pixels) for i, pixels in enumerate(normal_images(7, side=32))]
    for i in broken:
        paths[i].write_bytes(b"no image")
    return [str(path) for path in paths]


def test_a_trained_method_holds_out_images_that_can_be_read(tmp_path: Path) -> None:
    detector = LinearAutoencoder(device="cpu")
    # Of seven images the fourth is held out; the statistics must then be those of another.
    with pytest.warns(UserWarning, match="left out 1 of 7 images"):
        detector.fit(_files(tmp_path, {3}), errors="skip")
    readable = [path for i, path in enumerate(_files(tmp_path, {3})) if i != 3]
    alone = LinearAutoencoder(device="cpu").fit(readable)
    assert detector.calibration_.origin == "held_out"
    assert detector.threshold_ == pytest.approx(alone.threshold_, rel=1e-5)


@pytest.mark.parametrize("method", [CellMeans, LinearAutoencoder])
@pytest.mark.parametrize("tiled", [False, True])
def test_no_image_that_can_be_read_is_an_error_that_says_so(
    method: type[Any], tiled: bool, tmp_path: Path
) -> None:
    detector: Any = method(device="cpu")
    if tiled:
        detector = ead.TiledEnsemble(detector, 16, 16, image_size=32)
    with (
        pytest.warns(UserWarning, match="left out 7 of 7 images"),
        pytest.raises(ValueError, match="none of the 7 images can be read"),
    ):
        detector.fit(_files(tmp_path, set(range(7))), errors="skip")
    assert not detector.is_fitted
