"""A small category and a model of it, for the tests of all commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in MVTec layout: 12 normal images to fit on, 4 normal and 4 blotted ones to test on."""
    image = pytest.importorskip("PIL.Image")
    from support.textures import normal_images, with_defects

    folder = tmp_path_factory.mktemp("data") / "weave"
    spoiled, masks = with_defects(normal_images(4, seed=2))
    places = {"train/good": normal_images(12), "test/good": normal_images(4, seed=1), "test/blot": spoiled}
    places["ground_truth/blot"] = np.repeat(masks[..., None], 3, axis=3).astype(np.uint8) * 255
    for place, images in places.items():
        (folder / place).mkdir(parents=True)
        suffix = "_mask" if place.startswith("ground_truth") else ""
        for i, pixels in enumerate(images):
            image.fromarray(pixels).save(folder / place / f"{i:03d}{suffix}.png")
    return folder


@pytest.fixture(scope="session")
def model(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.commands import GABOR, call_json

    path = tmp_path_factory.mktemp("models") / "gabor"
    summary = call_json("fit", category / "train/good", "--model", path, *GABOR)
    assert summary["images"] == 12
    return path
