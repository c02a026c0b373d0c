"""Photographs with a region of interest, and detectors that inspect it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import ensemblead as ead

SIDE = 64
# Not convex, with a hole, and off every grid of patches.
MASK = np.zeros((SIDE, SIDE), dtype=bool)
MASK[10:40, 8:50] = True
MASK[20:24, 20:24] = False
MASK[40:45, 8:20] = True
_COMMON: dict[str, Any] = {"resize": None, "device": "cpu"}


def photographs(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(90, 110, (count, SIDE, SIDE, 3), dtype=np.uint8)


def painted_outside(images: Any, mask: Any = MASK, seed: int = 5) -> Any:
    """The same inside, and noise of all colours everywhere else, up to the border."""
    noise = np.random.default_rng(seed).integers(0, 256, images.shape, dtype=np.uint8)
    return np.where(mask[..., None], images, noise)


def painted_inside(images: Any) -> Any:
    spoiled = images.copy()
    spoiled[:, 26:36, 28:40] = 230
    return spoiled


def patchcore(layer: str = "layer2", **options: Any) -> Any:
    return ead.PatchCore("gabor", (layer,), **(_COMMON | {"coreset_fraction": 0.2} | options))


def padim(**options: Any) -> Any:
    return ead.PaDiM("gabor", ("layer2",), num_dimensions=8, **(_COMMON | options))


def tiled(member: Any = None, **options: Any) -> Any:
    return ead.TiledEnsemble(member or patchcore(), 32, 16, **({"image_size": SIDE} | options))


def _trained(cls: Any, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda region: cls(*arguments, **_COMMON, **options, region=region)


# Functions of the region, by the name of what they make.
DETECTORS: dict[str, Callable[[Any], Any]] = {
    "topk": lambda region: patchcore(region=region),
    "reweighted": lambda region: patchcore(score="reweighted", num_neighbors=2, region=region),
    "nearest": lambda region: patchcore(map_kind="nearest", resize=(96, 96), image_size=80, region=region),
    "padim": lambda region: padim(region=region),
    "reverse distillation": _trained(ead.ReverseDistillation, "gabor", steps=2, batch_size=4),
    "fastflow": _trained(ead.FastFlow, "gabor", steps=2, batch_size=4),
    "efficientad": _trained(ead.EfficientAD, "small", "gabor", steps=1),
    "draem": _trained(ead.DRAEM, 4, steps=10, learning_rate=0.01, batch_size=4),
    "backbones": lambda region: ead.BackboneEnsemble(
        [patchcore("layer1"), patchcore(resize=(48, 48)), padim()], region=region
    ),
    "tiles": lambda region: tiled(region=region),
    "tiles of backbones": lambda region: tiled(
        ead.BackboneEnsemble([patchcore(), padim()]), region=region, normalization="image", score="max"
    ),
    "backbones of tiles": lambda region: ead.BackboneEnsemble([tiled(), tiled(padim())], region=region),
}
