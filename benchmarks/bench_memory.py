"""Peak memory of `PatchCore.fit`, and that its cost is linear in images.

The target is 2 GB beyond the network for 5,000 images at 224 pixels, with embeddings of 784 x 1024 per image
(16 GB in all). Two rows: 5,000 images through a small stand-in whose layers have the shapes of a wide
ResNet's layer2 and layer3, which measures what the detector holds; and the wide ResNet itself, random
weights, with as many images as make the memory bank leave its buffer, which adds the network's activations.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from common import PeakMemory, in_child
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


def _detector(wide_resnet: bool, device: str = "cpu") -> PatchCore:
    backbone = "wide_resnet50_2" if wide_resnet else WideShapes()
    weights = None if wide_resnet else "default"
    detector = PatchCore(backbone, weights=weights, resize=None, image_size=SIDE, device=device)
    _ = detector.network_
    return detector


def _measure(count: int, wide_resnet: bool) -> tuple[int, float]:
    """Peak bytes and seconds of a fit, in this process."""
    _detector(wide_resnet).fit(Textures(32))
    detector = _detector(wide_resnet)
    memory, start = PeakMemory(), time.perf_counter()
    detector.fit(Textures(count))
    return memory.read(), time.perf_counter() - start


def test_5000_images(figures: FiguresOf) -> None:
    """Memory, and time per image against a fifth of the images."""
    fewer, few_seconds = in_child(_measure, 1000, False)
    peak, seconds = in_child(_measure, 5000, False)
    note = f"{fewer / GIGABYTE:.3g} GB for 1,000 images"
    figures.add("peak of fit, 5,000 images, layers' shapes", peak / GIGABYTE, "GB", at_most=2.0, note=note)
    figures.add(
        "fit, time per image: 5,000 images / 1,000 images",
        (seconds / 5000) / (few_seconds / 1000),
        "x",
        note=f"each ran once: {seconds:.0f} s and {few_seconds:.0f} s",
        seconds={"1000": few_seconds, "5000": seconds},
    )


def test_with_a_wide_resnet(figures: FiguresOf) -> None:
    peak, seconds = in_child(_measure, 512, True)
    note = f"ran once, {seconds:.0f} s"
    figures.add("peak of fit, 512 images, wide_resnet50_2", peak / GIGABYTE, "GB", at_most=2.0, note=note)


def _measure_on_gpu(count: int, wide_resnet: bool) -> tuple[int, float]:
    """Peak bytes on the GPU beyond the network, and seconds, of a fit in this process."""
    detector = _detector(wide_resnet, "cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    detector.fit(Textures(count))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, time.perf_counter() - start


def test_gpu(figures: FiguresOf, gpu: str) -> None:
    """What torch's allocator gave out; FAISS, where it is used, takes 64 MiB beside it."""
    peak, seconds = in_child(_measure_on_gpu, 5000, False)
    note = f"ran once, {seconds:.0f} s, the drawing of the images included"
    what = "peak of fit, 5,000 images, layers' shapes"
    figures.add(what, peak / GIGABYTE, "GB", at_most=2.0, device=gpu, note=note)
    peak, seconds = in_child(_measure_on_gpu, 512, True)
    what = "peak of fit, 512 images, wide_resnet50_2"
    figures.add(what, peak / GIGABYTE, "GB", at_most=2.0, device=gpu, note=f"ran once, {seconds:.0f} s")
