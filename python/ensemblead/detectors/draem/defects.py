"""Synthetic defects: textures blended into normal images where Perlin noise is high."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.detectors.draem.textures import Folder, Generator, Size, drawn_texture, rotated, varied

# A normal image, the same with a defect, float32 [3, H, W] in 0..1, and the defect's mask, [1, H, W].
Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_DEFECTIVE = 0.5  # the share of images that get a defect
_NOISE_LEVEL = 0.5  # above it is the defect
_MOST_OF_IMAGE = 0.8  # that is left of the image in a defect
_TURN = 90.0  # degrees, either way
_CELLS = 6  # powers of two, from 1 on


def example(
    image: torch.Tensor, other: torch.Tensor, generator: Generator, rotate: float, textures: Folder | None
) -> Example:
    """What one image shows the networks.

    Args:
        image: uint8 `[3, H, W]`.
        other: another image, to take a texture from where there is no folder of them.
        rotate: the probability that the image is rotated first.
    """
    if generator.random() < rotate:
        image = rotated(image, generator.uniform(-_TURN, _TURN))
    normal = image / 255.0
    size = (image.shape[1], image.shape[2])
    if generator.random() >= _DEFECTIVE:
        return normal, normal, torch.zeros(1, *size)
    mask = torch.from_numpy(perlin_noise(size, generator) > _NOISE_LEVEL).float()[None]
    texture = drawn_texture(size, other, generator) if textures is None else textures.draw(size, generator)
    texture = varied(texture, generator) / 255.0
    kept = generator.uniform(0.0, _MOST_OF_IMAGE)
    blended = (1.0 - kept) * texture + kept * normal
    return normal, torch.where(mask > 0.0, blended, normal), mask


def perlin_noise(size: Size, generator: Generator) -> npt.NDArray[np.float64]:
    """Perlin noise `[H, W]`, about -1..1, of 1 to 32 cells along each side, rotated; zero where nothing is.

    The noise is computed at the rotated places themselves, so that nothing is resampled.
    """
    counts = 2 ** generator.integers(0, _CELLS, 2)
    angles = generator.uniform(0.0, 2.0 * math.pi, counts + 1)
    turned = turned_places(size, generator.uniform(-_TURN, _TURN))
    places = [np.clip(own, 0.0, side - 1.0) for own, side in zip(turned, size, strict=True)]
    is_inside = np.logical_and(*(abs(a - b) <= 0.5 for a, b in zip(turned, places, strict=True)))
    scaled = [own * (count / side) for own, count, side in zip(places, counts, size, strict=True)]
    return np.where(is_inside, lattice_noise(angles, *scaled), 0.0)


def turned_places(size: Size, degrees: float) -> npt.NDArray[np.float64]:
    """`[2, H, W]`: row and column of the pixel that a rotation about the image's centre moves to each."""
    turn, (height, width) = math.radians(degrees), size
    rows, columns = np.arange(height) - (height - 1) / 2.0, np.arange(width) - (width - 1) / 2.0
    down, right = rows[:, None], columns[None]
    return np.stack(
        [
            math.cos(turn) * down + math.sin(turn) * right + (height - 1) / 2.0,
            math.cos(turn) * right - math.sin(turn) * down + (width - 1) / 2.0,
        ]
    )


def lattice_noise(
    angles: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Perlin noise of gradients in the directions `angles`, `[n + 1, m + 1]`, at places in 0..n and 0..m."""
    down, right = np.cos(angles).ravel(), np.sin(angles).ravel()
    stride = angles.shape[1]
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    first = top * stride + left
    y, x = rows - top, columns - left

    def corner(below: int, beside: int) -> npt.NDArray[np.float64]:
        place = first + (below * stride + beside)
        found: npt.NDArray[np.float64] = down.take(place) * (y - below) + right.take(place) * (x - beside)
        return found

    to_below, to_beside = _fade(y), _fade(x)
    left_side = corner(0, 0) + to_below * (corner(1, 0) - corner(0, 0))
    right_side = corner(0, 1) + to_below * (corner(1, 1) - corner(0, 1))
    noise: npt.NDArray[np.float64] = math.sqrt(2.0) * (left_side + to_beside * (right_side - left_side))
    return noise


def _fade(part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    faded: npt.NDArray[np.float64] = part**3 * (part * (part * 6.0 - 15.0) + 10.0)
    return faded
