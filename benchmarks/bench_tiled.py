"""Tiled ensembles against single models: the setups of the paper, what they cost, and how it grows.

    python -m pytest benchmarks/bench_tiled.py --data FOLDER --weights FOLDER [-k "bottle and PaDiM and ENS9"]

The paper is Rolih et al., arXiv 2403.04932. Its six setups: one model on images of 256 (SM256) or 512 pixels
(SM512), one model on all tiles of 256 pixels out of 512 (ST4, ST9 with half a tile of overlap), one model per
tile (ENS4, ENS9). `--data` and `--weights` are those of bench_detection.py.

Every seed is measured in a process of its own and kept in results/tiled.json at once, with its commit. So a
run can be stopped, and goes on with what is missing; `--again` measures anew what is known.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from common import interleaved, ratio
from kept import Kept
from record import Figure, FiguresOf
from tiled_setups import (
    METHODS,
    SETUPS,
    TILE,
    Drawn,
    measure_memory,
    measure_resolution,
    measure_scales,
    measure_setup,
    tiles_of,
)

import ensemblead as ead

CATEGORIES = {"bottle": "mvtec_bottle", "magnetic tile": "magnetic_tile"}
MORE_CATEGORIES = {"cookies": "aws_cookies"}  # of the scales
NETWORKS = ("resnet18", "efficientnet_lite0")
SCALES = {(1.0,): "scale 1", (0.5,): "scale .5", (1.0, 0.5): "scales 1 and .5"}
SEEDS = (0, 1, 2)
RESOLUTIONS = (256, 384, 512, 768, 1024)
MEMORY_SIZES = (512, 768, 1024, 1536, 2048)
# Training images of the memory's growth, and bytes of embeddings: about those of one location.
MEMORY_IMAGES, MEMORY_BUDGET = 32, 100_000_000
FIGURE = Path(__file__).resolve().parent.parent / "docs" / "tiled_memory.png"
# What nine banks hold that 209 images give at 1 %, from fewer images.
WIDE_IMAGES, WIDE_FRACTION = 40, 0.01 * 209 / 40
methods = pytest.mark.parametrize("method", METHODS)
categories = pytest.mark.parametrize("category", CATEGORIES)


def folder(material: tuple[Path, Path], category: str) -> Path:
    path = material[0] / {**CATEGORIES, **MORE_CATEGORIES}[category]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    return path


# --- keeping --------------------------------------------------------------------------------------


class Quality(Kept):
    """A setup, by seeds: its metrics with mean and standard deviation, its costs by their medians."""

    def figure(self) -> Figure:
        columns: dict[str, Any] = {
            "image AUROC": self.spread("image_auroc"),
            "pixel AUROC": self.spread("pixel_auroc"),
            "AUPRO": self.spread("aupro"),
        }
        costs = {
            "bank rows": ("bank_rows", 1.0),
            "fit, s": ("fit_seconds", 1.0),
            "parameters, M": ("parameters", 1e-6),
            "one image, ms": ("latency", 1e3),
            "images/s": ("images_per_second", 1.0),
            "fit's peak, MB": ("fit_peak", 1e-6),
            "predict's peak, MB": ("predict_peak", 1e-6),
        }
        cell = next(iter(self._cells.values()))
        for head, (name, scale) in costs.items():
            if name in cell:
                columns[head] = statistics.median(self.values(name)) * scale
        columns["seeds"] = str(len(self._cells))
        mean = statistics.fmean(self.values("image_auroc"))
        details = {"columns": columns, "cells": self._cells}
        return Figure(self._figures.benchmark, self._what, mean, "image AUROC", details=details)


class Memory(Kept):
    """Peaks of one kind of model, by the side of the image."""

    def figure(self) -> Figure:
        sizes = sorted(map(int, self._cells))
        peaks = {size: self._cells[str(size)] for size in sizes}
        columns: dict[str, Any] = {}
        for size in MEMORY_SIZES:
            known = peaks.get(size)
            columns[f"{size} px, fit / predict, MB"] = (
                f"{known['fit_peak'] / 1e6:.0f} / {known['predict_peak'] / 1e6:.0f}" if known else "-"
            )
        growth = peaks[sizes[-1]]["fit_peak"] / peaks[sizes[0]]["fit_peak"]
        note = f"fit's peak at {sizes[-1]} px / at {sizes[0]} px; {MEMORY_IMAGES} images"
        details = {"columns": columns, "cells": self._cells}
        return Figure(self._figures.benchmark, self._what, growth, "x", note=note, details=details)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Sides, and peaks in MB."""
        sizes = sorted(map(int, self._cells))
        return sizes, [self._cells[str(size)][name] / 1e6 for size in sizes]


# --- the cells ------------------------------------------------------------------------------------


@pytest.fixture
def again(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--again"))


@pytest.mark.parametrize("seed", SEEDS, ids=[f"seed{seed}" for seed in SEEDS])
@pytest.mark.parametrize("setup", SETUPS)
@methods
@categories
def test_setup(
    figures: FiguresOf,
    material: tuple[Path, Path],
    again: bool,
    category: str,
    method: str,
    setup: str,
    seed: int,
) -> None:
    kept = Quality(figures, f"{category}, {method}, {setup}", again)
    path = folder(material, category)
    kept.measure(str(seed), measure_setup, path, material[1], method, setup, seed)
    kept.report()


@pytest.mark.parametrize("size", RESOLUTIONS)
@pytest.mark.parametrize("kind", ["single", "tiled"])
@methods
@categories
def test_resolution(
    figures: FiguresOf,
    material: tuple[Path, Path],
    again: bool,
    category: str,
    method: str,
    kind: str,
    size: int,
) -> None:
    """One model on the whole image, or one per tile of 256 with half a tile of overlap; one seed."""
    kept = Quality(figures, f"resolution: {category}, {method}, {kind}, {size} px", again)
    path = folder(material, category)
    kept.measure("0", measure_resolution, path, material[1], method, kind, size)
    kept.report()


@pytest.mark.parametrize("scales", SCALES, ids=SCALES.get)
@pytest.mark.parametrize("category", [*CATEGORIES, *MORE_CATEGORIES])
@pytest.mark.parametrize("network", NETWORKS)
def test_scales(
    figures: FiguresOf,
    material: tuple[Path, Path],
    again: bool,
    network: str,
    category: str,
    scales: tuple[float, ...],
) -> None:
    """One PatchCore for all tiles of a scale, 2 x 2 at the scale 1 and one at .5; one thread, one seed, 60
    images to learn and to test at most.
    """
    kept = Quality(figures, f"scales: {category}, {network}, {SCALES[scales]}", again)
    path = folder(material, category)
    kept.measure("0", measure_scales, path, material[1], network, scales)
    kept.report()


@pytest.mark.parametrize("size", MEMORY_SIZES)
@pytest.mark.parametrize("kind", ["single", "tiled"])
def test_memory(figures: FiguresOf, again: bool, kind: str, size: int) -> None:
    """PatchCore over resnet18; the tiles do not overlap. Draws docs/tiled_memory.png from what is known."""
    kept = Memory(figures, f"memory: {kind}", again)
    kept.measure(str(size), measure_memory, kind, size, MEMORY_IMAGES, MEMORY_BUDGET)
    kept.report()
    draw_memory({name: Memory(figures, f"memory: {name}", False) for name in ("single", "tiled")}, FIGURE)


def draw_memory(kept: Mapping[str, Memory], path: Path) -> None:
    """Peak memory over the side of the image, as a PNG; nothing until both kinds have a size."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    if not all(one.curve("fit_peak")[0] for one in kept.values()):
        return
    picture = Picture(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    looks = {
        "single": ("one model on the whole image", "tab:red"),
        "tiled": ("a model per tile of 256", "tab:blue"),
    }
    for name, (words, color) in looks.items():
        for peak, style in (("fit_peak", "o-"), ("predict_peak", "s--")):
            sizes, megabytes = kept[name].curve(peak)
            label = f"{words}: {peak.removesuffix('_peak')}"
            axes.plot(sizes, megabytes, style, color=color, label=label)
    axes.set_xlabel("side of the image, pixels")
    axes.set_ylabel("peak memory beyond the model, MB")
    axes.set_xticks(MEMORY_SIZES)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    picture.savefig(path, dpi=110, metadata={"Software": None})


def test_wide_predict(figures: FiguresOf) -> None:
    """3 x 3 tiles of wide_resnet50_2 against the network alone over the same nine tiles as one batch."""
    detector = ead.PatchCore(weights=None, device="cpu", coreset_fraction=WIDE_FRACTION)
    ensemble = ead.TiledEnsemble(detector, TILE, TILE // 2, image_size=2 * TILE)
    size = 2 * TILE
    ensemble.fit(Drawn(WIDE_IMAGES, size))
    images = np.stack([Drawn(4, size)[index] for index in range(4)])
    batches = [detector.network_.normalize(tiles) for tiles in tiles_of(images, TILE // 2)]
    module = detector.network_.module
    stem = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3")
    layers = torch.nn.Sequential(*(getattr(module, name) for name in stem)).eval()

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                layers(batch)

    timings = interleaved({"forward": forward, "predict": lambda: ensemble.predict(images)})
    bank = max(len(one.memory_bank_) for one in ensemble.members_ if isinstance(one, ead.PatchCore))
    per_image = {name: timing.median / len(images) * 1e3 for name, timing in timings.items()}
    figures.add(
        f"wide_resnet50_2, 3 x 3 tiles, nine banks of {bank}: predict / one forward over nine tiles",
        ratio(timings["predict"], timings["forward"]),
        "x",
        at_most=1.25,
        timings=timings,
        note=f"forward {per_image['forward']:.0f}, predict {per_image['predict']:.0f} ms per image",
    )
