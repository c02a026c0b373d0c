"""Predictions made by hand, and a small detector, for the tests of drift."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import ensemblead as ead

SIDE = 32


def images(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Noise, uint8 `[count, side, side, 3]`."""
    return np.random.default_rng(seed).integers(90, 110, (count, side, side, 3), dtype=np.uint8)


@cache
def detector() -> Any:
    """Fitted on `images(12)`; not to be changed."""
    small = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.5, device="cpu")
    return small.fit(images(12))


def predictions(
    count: int, seed: int = 0, *, factor: float = 1.0, cell: int | None = None, dims: int = 12
) -> ead.Predictions:
    """Scores, maps and features of no image at all: normal ones, with scores `factor` times as large, or
    with one of 4 x 4 cells of the map raised.
    """
    rng = np.random.default_rng([seed, 11])
    maps = rng.gamma(20, 0.05, (count, 16, 16)).astype(np.float32)
    if cell is not None:
        row, column = divmod(cell, 4)
        maps[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.5
    scores = (factor * rng.gamma(40, 0.025, count)).astype(np.float32)
    features = rng.normal(size=(count, dims)).astype(np.float32)
    names: list[str | None] = [f"{seed}-{i}.png" for i in range(count)]
    return ead.Predictions(scores, maps, scores > 1.5, names, None, [(64, 32)] * count, features)


def monitor(**options: Any) -> ead.DriftMonitor:
    """Calibrated with `predictions(60)`."""
    return ead.DriftMonitor(detector(), **options).calibrate(predictions(60))
