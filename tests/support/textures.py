"""Small textured images, normal and with a defect, drawn from a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIDE = 64
Images = npt.NDArray[np.uint8]


def normal_images(count: int, seed: int = 0, side: int = SIDE) -> Images:
    """Woven stripes with noise and a little drift in brightness: uint8 `[count, side, side, 3]`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for _ in range(count):
        a, b = rng.uniform(0, 2 * np.pi, 2)
        weave = 110 + 40 * np.sin(x * 0.9 + a) + 30 * np.sin(y * 0.6 + b) + rng.uniform(-5, 5)
        tint = np.array([1.0, 0.9, 0.8])
        images.append(weave[..., None] * tint + rng.normal(0, 4, (side, side, 3)))
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


def with_defects(images: Images, seed: int = 0) -> tuple[Images, npt.NDArray[np.bool_]]:
    """A flat dark blot in every image, and where it is: bool `[count, side, side]`."""
    rng = np.random.default_rng(seed)
    spoiled, masks = images.copy(), np.zeros(images.shape[:3], dtype=bool)
    side = images.shape[1]
    y, x = np.mgrid[:side, :side]
    for image, mask in zip(spoiled, masks, strict=True):
        cy, cx = rng.uniform(side * 0.3, side * 0.7, 2)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < (side * 0.11) ** 2
        image[mask] = (60, 30, 40)
    return spoiled, masks
