"""Small images for tiled ensembles, and the ensembles over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from support.networks import TinyNet
from support.textures import normal_images, with_defects

import ensemblead as ead

SIDE = 48
TRAIN = normal_images(7, side=SIDE)
BAD, MASKS = with_defects(normal_images(3, seed=5, side=SIDE))
GOOD = normal_images(3, seed=6, side=SIDE)
BOTH = np.concatenate([GOOD, BAD])


def patchcore(net: torch.nn.Module | None = None, **options: Any) -> ead.PatchCore:
    defaults: dict[str, Any] = {"coreset_fraction": 0.05, "batch_size": 4, "device": "cpu"}
    return ead.PatchCore(net or TinyNet(), ("first", "second"), **(defaults | options))


def tiled(member: Any = None, tile: Any = 24, stride: Any = 12, **options: Any) -> ead.TiledEnsemble:
    options = {"image_size": SIDE} | options
    return ead.TiledEnsemble(member or patchcore(), tile, stride, **options)


def crops(
    images: npt.NDArray[np.uint8], tile: Any, stride: Any, edge: Any = "flush"
) -> npt.NDArray[np.uint8]:
    """`[rows, cols, N, h, w, 3]`, by `ead.tile`."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return np.asarray(ead.tile(planes, tile, stride, edge=edge)).transpose(0, 1, 2, 4, 5, 3)
