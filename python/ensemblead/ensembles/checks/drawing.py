"""Images for checks: textured parts, good ones and ones with a blot, drawn from a seed."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ensemblead.detectors.parts import Part
from ensemblead.ensembles.tiles import TiledEnsemble

Pixels = npt.NDArray[np.uint8]
# Side of the images for a detector that takes them at their own size.
SIDE = 64


def drawn_size(parts: list[Part]) -> tuple[int, int]:
    """Height and width of images that the parts can see, and that the first of them need not resize, unless a
    region is of another size.
    """
    region = parts[0].region
    if region is not None and region.size is not None:
        return region.size
    sizes = [_size_for(part) for part in parts]
    if parts[0].geometry.resize is not None:
        return sizes[0]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _size_for(part: Part) -> tuple[int, int]:
    resize, crop = part.geometry.resize, part.geometry.crop
    if resize == "auto":
        return SIDE, SIDE
    if isinstance(resize, tuple):
        return resize
    if resize is not None:
        return resize, resize
    if isinstance(part, TiledEnsemble):
        (height, width), (down, right) = part.tile_size, part.stride
        smallest = min(1.0, *part.scales)  # which leaves a whole tile
        return math.ceil((height + down) / smallest), math.ceil((width + right) / smallest)
    return crop if isinstance(crop, tuple) else (SIDE, SIDE)


def good_images(count: int, size: tuple[int, int], seed: int) -> Pixels:
    """Woven stripes with noise and a little drift in brightness: uint8 `[count, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    tint = np.array([1.0, 0.9, 0.8])
    images = []
    for _ in range(count):
        a, b = rng.uniform(0, 2 * np.pi, 2)
        weave = 110 + 40 * np.sin(x * 0.9 + a) + 30 * np.sin(y * 0.6 + b) + rng.uniform(-5, 5)
        images.append(weave[..., None] * tint + rng.normal(0, 4, (*size, 3)))
    drawn: Pixels = np.clip(np.stack(images), 0, 255).astype(np.uint8)
    return drawn


def darkened(images: Pixels) -> Pixels:
    """The same images, ever darker from right to left, so that no tile looks like another."""
    shade = np.linspace(0.4, 1.0, images.shape[2])[:, None]
    darker: Pixels = (images * shade).astype(np.uint8)
    return darker


def with_blots(images: Pixels) -> Pixels:
    """The same images, each with a flat dark blot in the middle."""
    height, width = images.shape[1:3]
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2 < 0.15**2
    spoiled: Pixels = images.copy()
    spoiled[:, inside] = (60, 30, 40)
    return spoiled
