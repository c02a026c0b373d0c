"""The network of a detector: what is stored of it, and when its statistics say too little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.textures import normal_images
from torch import nn

import ensemblead as ead


class FixedSize(nn.Module):
    """Takes 64 x 64 images only, as transformers with a table of positions do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.randn(1, 8, 32, 32))
        self.last = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(images) + self.positions)
        return out


def _fixed(layer: str = "last") -> ead.PatchCore:
    return ead.PatchCore(
        FixedSize(), (layer,), resize=(64, 64), image_size=None, coreset_fraction=0.1, device="cpu"
    )


def test_a_network_of_one_input_size_can_be_stored(tmp_path: Path) -> None:
    images = normal_images(4)
    detector = _fixed().fit(images)
    detector.save(tmp_path / "m")
    again = ead.load(tmp_path / "m", backbone=FixedSize())
    np.testing.assert_array_equal(again.predict(images).anomaly_score, detector.predict(images).anomaly_score)
    # Members of one network run as one, through an extractor of all their layers; each is stored alone.
    module = FixedSize()
    members = [
        ead.PatchCore(module, (layer,), resize=(64, 64), image_size=None, coreset_fraction=0.1, device="cpu")
        for layer in ("first", "last")
    ]
    ead.BackboneEnsemble(members).fit(images).save(tmp_path / "e")
    assert ead.load(tmp_path / "e", backbone=[FixedSize(), FixedSize()]).is_fitted


def test_statistics_of_repeats_of_one_image_are_told() -> None:
    images = normal_images(2)
    images[1] = images[0]
    detector = ead.PatchCore(
        "gabor", ("layer1",), resize=None, image_size=None, coreset_fraction=0.002, device="cpu"
    )
    # Repeats are left out together, so that no row is left to score them by.
    with pytest.warns(UserWarning, match="no training image can be scored without its own memory bank rows"):
        detector.fit(images)


def test_calibrate_shows_progress() -> None:
    seen: list[tuple[str, int, int]] = []
    detector = ead.PatchCore("gabor", ("layer1",), resize=None, image_size=None, batch_size=4, device="cpu")
    detector.fit(normal_images(6))
    detector.calibrate(normal_images(10, seed=4), 0.2, progress=lambda *given: seen.append(given))
    assert seen == [("calibrate", 4, 10), ("calibrate", 8, 10), ("calibrate", 10, 10)]


def test_a_precision_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(TypeError, match=r"precision must be a name, got \[1\]"):
        ead.PatchCore("gabor", ("layer1",), precision=[1])  # type: ignore[arg-type]
