"""Peak memory of `PatchCore.fit`, and that its cost is linear in images.

The target is 2 GB beyond the network for 5,000 images at 224 pixels, with embeddings of 784 x 1024 per image
(16 GB in all). Two rows: 5,000 images through a small stand-in whose layers have the shapes of a wide
ResNet's layer2 and layer3, which measures what the detector holds; and the wide ResNet itself, random
weights, with as many images as make the memory bank leave its buffer, which adds the network's activations.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from common import peak_memory
from record import FiguresOf
from torch import nn

from ensemblead import PatchCore

SIDE = 224
GIGABYTE = 1e9


class WideShapes(nn.Module):
    """`layer2` `[512, 28, 28]` and `layer3` `[1024, 14, 14]` at 224 pixels, for next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer2 = nn.Conv2d(3, 512, 8, 8)
        self.layer3 = nn.Conv2d(512, 1024, 2, 2, groups=8)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer3(torch.relu(self.layer2(images)))
        return out


class Textures:
    """Images drawn when asked for, so that they take no memory themselves."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


def _detector(wide_resnet: bool) -> PatchCore:
    backbone = "wide_resnet50_2" if wide_resnet else WideShapes()
    weights = None if wide_resnet else "default"
    detector = PatchCore(backbone, weights=weights, resize=None, image_size=SIDE, device="cpu")
    _ = detector.network_
    return detector


def _fit(count: int, detector: PatchCore) -> PatchCore:
    return detector.fit(Textures(count))


def _warm_up(wide_resnet: bool) -> None:
    _fit(32, _detector(wide_resnet))


def _peak(count: int, wide_resnet: bool) -> int:
    setup = partial(_detector, wide_resnet)
    return peak_memory(setup, partial(_fit, count), warm_up=partial(_warm_up, wide_resnet))


def test_peak_memory_of_5000_images(figures: FiguresOf) -> None:
    peak = _peak(5000, wide_resnet=False)
    figures.add("peak of fit, 5,000 images, layers' shapes", peak / GIGABYTE, "GB", at_most=2.0)


def test_peak_memory_with_a_wide_resnet(figures: FiguresOf) -> None:
    peak = _peak(512, wide_resnet=True)
    figures.add("peak of fit, 512 images, wide_resnet50_2", peak / GIGABYTE, "GB", at_most=2.0)


def test_cost_is_linear_in_images(figures: FiguresOf) -> None:
    per_image = {}
    for count in (1000, 4000):
        detector = _detector(wide_resnet=False)
        start = time.perf_counter()
        _fit(count, detector)
        per_image[count] = (time.perf_counter() - start) / count
    figures.add(
        "fit, seconds per image, 4,000 images against 1,000",
        per_image[4000] / per_image[1000],
        "x",
        note="each ran once",
        seconds_per_image={str(count): seconds for count, seconds in per_image.items()},
    )
