"""Penalty images out of a folder: what is not there, cannot be read, or changes while training is stopped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.descriptions import make_narrow
from support.textures import normal_images
from support.trained import LAYERS, Pyramid, stop_at

import ensemblead as ead
from ensemblead.images import BitDepthWarning

SIDE = 64
TRAIN = normal_images(6, side=SIDE)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    make_narrow(monkeypatch)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, image in enumerate(normal_images(3, seed=5, side=48)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def fitted(folder: Path, **options: Any) -> ead.EfficientAD:
    detector = ead.EfficientAD(
        "small", Pyramid(), LAYERS[1:], penalty_images=folder, steps=6, resize=None, device="cpu"
    )
    return detector.fit(TRAIN, **options)


def test_photographs_of_twelve_bits_are_no_black_ones(photographs: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for file in sorted(photographs.iterdir()):
        grey = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(grey).save(file)
        Image.fromarray((grey.astype(np.float64) * 4095 / 255).round().astype(np.uint16)).save(
            wide / file.name
        )
    Image.fromarray(np.full((48, 48), 4095, np.uint16)).save(wide / "9.png")
    Image.fromarray(np.full((48, 48), 255, np.uint8)).save(photographs / "9.png")
    with pytest.warns(BitDepthWarning, match="they are read as 12 bits"):
        found = fitted(wide).losses_
    torch.testing.assert_close(found, fitted(photographs).losses_, rtol=0, atol=0)


def test_a_checkpoint_of_other_penalty_images_is_refused(photographs: Path, tmp_path: Path) -> None:
    whole, kept = fitted(photographs), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 6"):
        fitted(photographs, checkpoint=kept, progress=stop_at(3))
    added = photographs / "more.png"
    Image.new("RGB", (40, 30), (200, 100, 50)).save(added)
    with pytest.raises(ValueError, match="of another call, with other contents of penalty_images"):
        fitted(photographs, checkpoint=kept)
    added.unlink()
    first = photographs / "0.png"
    before = first.read_bytes()
    Image.new("RGB", (48, 48)).save(first)
    with pytest.raises(ValueError, match="of another call, with other contents of penalty_images"):
        fitted(photographs, checkpoint=kept)
    first.write_bytes(before)
    resumed = fitted(photographs, checkpoint=kept)
    assert torch.equal(resumed.losses_, whole.losses_)
    assert all(map(torch.equal, resumed.state_.weights, whole.state_.weights))


def test_photographs_that_cannot_be_read_are_left_out(photographs: Path, tmp_path: Path) -> None:
    (photographs / "1.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"penalty_images: .*1\.png.*another takes its place") as seen:
        whole = fitted(photographs)
    assert len([one for one in seen if "takes its place" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyboardInterrupt):
            fitted(photographs, checkpoint=tmp_path / "c", progress=stop_at(4))
        resumed = fitted(photographs, checkpoint=tmp_path / "c")
        np.testing.assert_array_equal(resumed.losses_, whole.losses_)
        for path in photographs.iterdir():
            path.write_bytes(b"nothing")
        with pytest.raises(ValueError, match="penalty_images: none of the images in .* can be read"):
            fitted(photographs)


def test_a_folder_without_images_is_refused_before_images_are_read(tmp_path: Path) -> None:
    stages: list[str] = []
    for folder, error, message in (
        (tmp_path, ValueError, "penalty_images: .* no image files in"),
        (tmp_path / "nowhere", FileNotFoundError, "penalty_images: .*nowhere"),
    ):
        with pytest.raises(error, match=message):
            fitted(folder, progress=lambda stage, done, total: stages.append(stage))
    assert "embed" not in stages
