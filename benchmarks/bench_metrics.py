"""All pixel metrics of a test set beside the sweep over thresholds that they replace.

The test set is that of a common category: 83 maps of 512 x 512, 63 of them with one to three defects. The
maps are blurred noise, brighter in most defects, so that values and components are like those of a detector.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from common import interleaved, peak_memory, ratio

from ensemblead.metrics import PixelScores

COUNT, NORMAL, SIZE = 83, 20, 512
TARGET_SECONDS = 3.0
SWEEP = 200  # thresholds; usual implementations take between 100 and 300


@functools.cache
def drawn() -> tuple[Any, Any]:
    """Maps float32 and masks bool [83, 512, 512]."""
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    masks = np.zeros((COUNT, SIZE, SIZE), np.bool_)
    y, x = np.ogrid[:SIZE, :SIZE]
    for mask in masks[NORMAL:]:
        for _ in range(rng.integers(1, 4)):
            center, radii = rng.uniform(60, SIZE - 60, 2), rng.uniform(6, 50, 2)
            mask |= ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1
    strength = rng.uniform(0, 0.3, (COUNT, 1, 1)).astype(np.float32)
    noise = rng.normal(size=masks.shape).astype(np.float32) + 2.0 * strength * masks
    return ndimage.gaussian_filter(noise, (0, 4, 4)), masks


def all_metrics(
    test: tuple[Any, Any], memory_limit: int = 2 << 30, replicates: int = 0, types: int = 0
) -> Any:
    """With the defective images told apart by so many types."""
    pixels = PixelScores(memory_limit=memory_limit)
    for index, (anomaly_map, mask) in enumerate(zip(*test, strict=True)):
        pixels.add(anomaly_map, mask, f"type {index % types}" if types and index >= NORMAL else None)
    return pixels.compute(replicates=replicates)


def sweep(test: tuple[Any, Any]) -> float:
    """AUPRO up to 0.3 from evenly spaced thresholds: per threshold one pass over every image and region."""
    ndimage = pytest.importorskip("scipy.ndimage")
    maps, masks = test
    regions = []
    for index, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [(index, np.nonzero(labels == label)) for label in range(1, count + 1)]
    rates, overlaps = [], []
    for threshold in np.linspace(maps.max(), maps.min(), SWEEP):
        hits = maps >= threshold
        overlaps.append(np.mean([hits[index][place].mean() for index, place in regions]))
        rates.append((hits & ~masks).sum() / (~masks).sum())
    x = np.append([0.0], rates)
    y = np.append([0.0], overlaps)
    inside = np.append(x[x < 0.3], 0.3)
    return float(np.trapezoid(np.interp(inside, x, y), inside) / 0.3)


def test_pixel_metrics(figures: Any) -> None:
    test = drawn()
    candidates = {
        "exact": functools.partial(all_metrics, test),
        "streaming": functools.partial(all_metrics, test, 0),
        "five types": functools.partial(all_metrics, test, types=5),
        "with intervals": functools.partial(all_metrics, test, 2 << 30, 1000),
        "sweep": functools.partial(sweep, test),
    }
    timings = interleaved(candidates, repeats=5)
    exact, streaming = all_metrics(test), all_metrics(test, 0)
    error = abs(sweep(test) - exact.values["aupro"])
    faster = ratio(timings["sweep"], timings["exact"])
    figures.add(
        "all pixel metrics, exact, 83 maps of 512 x 512",
        timings["exact"].median,
        "s",
        at_most=TARGET_SECONDS,
        note=f"{faster:.0f}x the sweep, which gives one AUPRO, off by {error:.1g}",
        timings=timings,
        sweep_thresholds=SWEEP,
        sweep_error=error,
    )
    figures.add(
        "the same, and by type for five types of defect",
        timings["five types"].median,
        "s",
        at_most=TARGET_SECONDS,
        note=f"{ratio(timings['five types'], timings['exact']):.2f}x without types",
    )
    figures.add(
        "the same with bootstrap intervals, 1000 replicates",
        timings["with intervals"].median,
        "s",
        at_most=TARGET_SECONDS,
    )
    worst = max(streaming.errors, key=lambda name: streaming.errors[name])
    figures.add(
        "the same, streaming",
        timings["streaming"].median,
        "s",
        at_most=TARGET_SECONDS,
        note=f"off by at most {streaming.errors[worst]:.1g} ({worst})",
        bounds=streaming.errors,
    )


@pytest.mark.parametrize("types", [0, 5])
@pytest.mark.parametrize(("mode", "memory_limit"), [("exact", 2 << 30), ("streaming", 0)])
def test_memory(figures: Any, mode: str, memory_limit: int, types: int) -> None:
    maps = drawn()[0]
    peak = peak_memory(drawn, functools.partial(all_metrics, memory_limit=memory_limit, types=types))
    told = f"{mode}, {types} types" if types else mode
    figures.add(f"peak memory beyond the maps, {told}", peak / maps.nbytes, "x the maps")
