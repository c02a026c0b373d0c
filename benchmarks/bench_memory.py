"""Peak memory of `PatchCore.fit` within its budget, its cost per image, and how well banks in groups cover.

Embeddings have 784 x 1024 values an image, as a wide ResNet's at 224 pixels (3.2 MB; 64 GB of 20,000 images).
A small stand-in whose layers have those shapes measures what the detector holds; a wide ResNet itself, random
weights, adds the network's activations. Every fit runs in a process of its own.

    python -m pytest benchmarks/bench_memory.py                                     # two hours
    python -m pytest benchmarks/bench_memory.py -k "budget or radius" --images 1000   # some minutes
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from common import PeakMemory, in_child
from record import FiguresOf
from torch import nn

from ensemblead import MemoryBank, PatchCore
from ensemblead.memory.bank import MEMORY_BUDGET

SIDE = 224
GIGABYTE = 1e9
COUNTS = (500, 1000, 2000, 5000, 20_000)
MANY = 100_000
BASE = 1000  # images whose time each is compared with
BANK = 16_384  # rows


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


def _detector(wide_resnet: bool, device: str = "cpu", **options: Any) -> PatchCore:
    backbone = "wide_resnet50_2" if wide_resnet else WideShapes()
    weights = None if wide_resnet else "default"
    options = {"weights": weights, "resize": None, "image_size": SIDE, "device": device, **options}
    detector = PatchCore(backbone, ("layer2", "layer3"), **options)
    _ = detector.network_
    return detector


def _measure(count: int, wide_resnet: bool, **options: Any) -> tuple[int, float, float, float | None]:
    """Peak bytes, wall and processor seconds of a fit in this process, and its bank's certified factor."""
    _detector(wide_resnet, **options).fit(Textures(32))
    detector = _detector(wide_resnet, **options)
    memory, start, busy = PeakMemory(), time.perf_counter(), time.process_time()
    detector.fit(Textures(count))
    took, busy = time.perf_counter() - start, time.process_time() - busy
    return memory.read(), took, busy, detector.memory_bank_.certificate_


def test_budget(figures: FiguresOf, request: pytest.FixtureRequest) -> None:
    """A bank of one size within the default budget, whatever the number of images."""
    most = request.config.getoption("--images") or COUNTS[-1]
    seconds: dict[int, float] = {}
    processor: dict[int, float] = {}
    for count in [count for count in COUNTS if count <= most]:
        peak, took, busy, factor = in_child(partial(_measure, coreset_size=BANK), count, False)
        seconds[count], processor[count] = took / count, busy / count
        note = f"{peak / GIGABYTE:.3g} GB; ran once, {took:.0f} s; certified factor {factor:.3g}"
        what = f"peak of fit, {count:,} images, bank of {BANK:,}, beside the budget"
        figures.add(what, peak / MEMORY_BUDGET, "x", at_most=1.15, note=note)
    last = max(seconds)
    if last > BASE:
        figures.add(
            f"fit, time per image: {last:,} images / {BASE:,} images",
            seconds[last] / seconds[BASE],
            "x",
            at_most=1.1,
            seconds={str(count): took for count, took in seconds.items()},
        )
        # Of all threads: what a busy machine changes least.
        figures.add(
            f"fit, processor time per image: {last:,} images / {BASE:,} images",
            processor[last] / processor[BASE],
            "x",
            seconds={str(count): took for count, took in processor.items()},
        )


def test_a_hundred_thousand_images(figures: FiguresOf) -> None:
    """An hour of one core."""
    fit = partial(_measure, coreset_size=BANK)
    _, _, base, _ = in_child(fit, BASE, False)
    peak, took, busy, factor = in_child(fit, MANY, False)
    note = f"{peak / GIGABYTE:.3g} GB; ran once, {took:.0f} s; certified factor {factor:.3g}"
    what = f"peak of fit, {MANY:,} images, bank of {BANK:,}, beside the budget"
    figures.add(what, peak / MEMORY_BUDGET, "x", at_most=1.15, note=note)
    what = f"fit, processor time per image: {MANY:,} images / {BASE:,} images"
    note = f"{1e3 * busy / MANY:.1f} and {1e3 * base / BASE:.1f} ms"
    figures.add(what, (busy / MANY) / (base / BASE), "x", at_most=1.1, note=note)


def test_a_share_of_the_patches(figures: FiguresOf) -> None:
    """The default, 1 %, of 1,000 images: seven groups."""
    peak, seconds, _, factor = in_child(_measure, BASE, False)
    note = f"{peak / GIGABYTE:.3g} GB; ran once, {seconds:.0f} s; certified factor {factor:.3g}"
    what = f"peak of fit, {BASE:,} images, 1 %, beside the budget"
    figures.add(what, peak / MEMORY_BUDGET, "x", at_most=1.15, note=note)


def _products() -> list[np.ndarray[Any, Any]]:
    """Embeddings of 20 images of each of five products: 784 rows of 128 values an image. Their spectrum falls
    as that of features does, and each product has its own directions.
    """
    images = []
    for product in range(5):
        rng = np.random.default_rng(product)
        spectrum = (1.0 + np.arange(128)) ** -0.75
        directions = np.linalg.qr(rng.normal(size=(128, 128)))[0] * spectrum[:, None]
        centres = rng.normal(size=(40, 128)) * spectrum
        for _ in range(20):
            kinds = rng.integers(40, size=784)
            rows = 2 * centres[kinds] + rng.normal(size=(784, 128)) + 0.5 * rng.normal(size=128)
            images.append((rows @ directions).astype(np.float32))
    return images


def _bank(images: list[np.ndarray[Any, Any]], groups: int) -> MemoryBank:
    """Of 1 % of the rows, selected at once, or in so many groups."""
    rows = sum(map(len, images))
    one = -(-rows // groups // len(images[0])) * len(images[0])
    budget = MEMORY_BUDGET if groups == 1 else 2 * one * images[0].nbytes // len(images[0]) * 2
    bank = MemoryBank(coreset_size=rows // 100, projection_dim=None, memory_budget=budget)
    bank.expect(rows, images[0].shape[1])
    for number, image in enumerate(images):
        bank.add(image, number)
    return bank.fit()


def test_radius(figures: FiguresOf) -> None:
    """What is lost by 16 groups, of images in any order and sorted by product."""
    images = _products()
    shuffled = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    for order, given in (("shuffled", shuffled), ("sorted by product", images)):
        exact, bank = _bank(given, 1), _bank(given, 16)
        least, found = exact.verify(images), bank.verify(images)
        note = f"certified factor {bank.certificate_:.3g}, and {found.certificate:.3g} by verify"
        what = f"covering radius, 16 groups / at once, {order}"
        figures.add(what, found.radius / least.radius, "x", at_most=1.3, note=note)
        figures.add(
            f"radius_ / true radius, 16 groups, {order}", bank.radius_ / found.radius, "x", at_least=1.0
        )


def _select(rows: int, size: int, budget: int) -> tuple[int, float, float, float | None]:
    """Peak bytes, wall and processor seconds of a bank of `size` of so many rows of 384 values, which are
    drawn as they are added, and its certified factor.
    """
    dims, rank, piece = 384, 96, 1024
    rng = np.random.default_rng(0)
    spectrum = (1.0 + np.arange(rank, dtype=np.float32)) ** -0.75
    directions = rng.standard_normal((rank, dims), dtype=np.float32) * spectrum[:, None]
    bank = MemoryBank(coreset_size=size, memory_budget=budget)
    bank.expect(rows, dims)
    memory, start, busy = PeakMemory(), time.perf_counter(), time.process_time()
    for image, first in enumerate(range(0, rows, piece)):
        count = min(piece, rows - first)
        drawn = rng.standard_normal((count, rank), dtype=np.float32) @ directions
        noise = 0.1 * rng.standard_normal((count, dims), dtype=np.float32)
        bank.add(drawn + noise, image, copy=False)
    bank.fit()
    took, busy = time.perf_counter() - start, time.process_time() - busy
    return memory.read(), took, busy, bank.certificate_


def test_a_large_bank(figures: FiguresOf, request: pytest.FixtureRequest) -> None:
    """20,000 of 2,000,000 rows within the default budget; with `--rows N` all of it in proportion."""
    rows = request.config.getoption("--rows") or 2_000_000
    size, budget = rows // 100, MEMORY_BUDGET * rows // 2_000_000
    peak, seconds, busy, factor = in_child(_select, rows, size, budget)
    note = (
        f"{peak / GIGABYTE:.3g} GB; ran once, {seconds:.0f} s, {busy:.0f} s of the processor; "
        f"certified factor {factor:.3g}"
    )
    what = f"peak of a bank of {size:,} of {rows:,} rows of 384, beside the budget"
    figures.add(what, peak / budget, "x", at_most=1.15, note=note)


def test_with_a_wide_resnet(figures: FiguresOf) -> None:
    peak, seconds, _, _ = in_child(_measure, 512, True)
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
