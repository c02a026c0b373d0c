"""Patches compared with rows from near their own place (`position_radius`), against rows of all places.

    python -m pytest benchmarks/bench_position.py --data FOLDER --weights FOLDER [-k "bottle and 0.1"]

Bottles under a fixed camera, magnetic tiles, and cookies that lie turned any way, through ResNet18's layer2
and layer3 at 256 x 256 pixels: a grid of 32 x 32 cells. One fit per radius; scores as `score="topk"` has
them. Embeddings are made once per category, and kept in the folder of `--cache`. Milliseconds are the
processor's, of one thread, the least of several runs of one batch of 16 images: other work changes them
least.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from real_features import category_features, masks_of  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402
from ensemblead.datasets import MVTecAD  # noqa: E402
from ensemblead.kernels.maps import render_maps  # noqa: E402
from ensemblead.memory.places import grid_places  # noqa: E402

CATEGORIES = {"bottle": "mvtec_bottle", "cookies": "aws_cookies", "magnetic tile": "magnetic_tile"}
SIZE, BATCH, RUNS = 256, 16, 7
RADII = (None, 0, 1, 2, 4, 8)


def _least_seconds(function: Callable[[], Any]) -> float:
    taken = []
    for _ in range(RUNS):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_radii(
    figures: FiguresOf,
    material: tuple[Path, Path],
    pytestconfig: pytest.Config,
    category: str,
    fraction: float,
) -> None:
    torch.set_num_threads(1)
    data, weights = material
    known = MVTecAD(data / CATEGORIES[category]).categories[0]
    train, test = category_features(known, weights, SIZE, pytestconfig.getoption("--cache"))
    labels = np.array([sample.label for sample in known.test])
    masks = masks_of(known, SIZE)
    count, patches, dims = train.shape
    side = int(patches**0.5)
    images = np.arange(count).repeat(patches)
    for radius in RADII:
        near = radius is not None
        bank = ead.MemoryBank(fraction, position_radius=radius)
        places = grid_places(count, side, side) if near else None
        bank.add(train.reshape(-1, dims), images, places=places, copy=False)
        bank.fit()
        grids = torch.cat([_searched(bank, some, side) for some in test.split(BATCH)])
        maps = render_maps(grids, (SIZE, SIZE)).numpy()
        scores = grids.flatten(1).topk(max(1, patches // 100), dim=1).values.mean(1).numpy()
        columns = {
            "image AUROC": ead.auroc(scores, labels),
            "pixel AUROC": ead.auroc(maps.ravel(), masks.ravel()),
            "AUPRO": ead.aupro(maps, masks),
            "ms per image": _least_seconds(functools.partial(_searched, bank, test[:BATCH], side))
            / BATCH
            * 1e3,
            "rows": len(bank),
        }
        what = (
            f"{category}, {fraction:.0%} coreset, {'rows of all places' if not near else f'radius {radius}'}"
        )
        figures.add(what, columns["AUPRO"], "AUPRO", columns=columns)


def _searched(bank: ead.MemoryBank, images: Any, side: int) -> Any:
    """Squared distances `[B, side, side]` of patches `[B, patches, D]`."""
    places = None if bank.position_radius is None else grid_places(len(images), side, side)
    distances, _ = bank.search(images.reshape(-1, images.shape[2]), places=places)
    return distances.view(-1, side, side)
