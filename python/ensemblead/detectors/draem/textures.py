"""Textures for synthetic defects: images of a folder, or drawn ones, and operations that vary them.

Textures are uint8 `[3, H, W]`. All that is random comes from the generator given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ensemblead.common.extras import require
from ensemblead.images import Geometry, ImageSource, detect_bits, open_images

Generator = np.random.Generator
Size = tuple[int, int]
# So many of the operations vary a texture.
_NUM_OPERATIONS = 3
# Blocks along a side of a training image, which are shuffled.
_BLOCKS = 8
_OCTAVES = 4


class Folder:
    """Images to take textures from, each resized to the size wanted when it is drawn.

    Files of 16 bits are read by the range that all of them use. Raises FileNotFoundError or ValueError,
    naming `textures`, for a folder without images, and for a file that is no image.
    """

    def __init__(self, path: str) -> None:
        with _as_textures():
            source = open_images(path)
            self._source: ImageSource = open_images(source, bits=detect_bits(source))

    def digest(self, threads: ThreadPoolExecutor) -> str:
        """SHA-256 of the names and pixels of the images, each of which is read for it."""
        with _as_textures():
            seen = "".join(threads.map(self._digest, range(len(self._source))))
        return hashlib.sha256(seen.encode()).hexdigest()

    def _digest(self, index: int) -> str:
        pixels = self._source.read(index)
        seen = hashlib.sha256(repr((self._source.describe(index), pixels.shape)).encode())
        seen.update(pixels.tobytes())
        return seen.hexdigest()

    def draw(self, size: Size, generator: Generator) -> torch.Tensor:
        with _as_textures():
            pixels = self._source.read(int(generator.integers(len(self._source))))
            return torch.from_numpy(Geometry(size, None).apply(pixels).copy()).permute(2, 0, 1)


@contextmanager
def _as_textures() -> Iterator[None]:
    """Around what reads: an error says that it is of the textures."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"textures: {error}") from error


def drawn_texture(size: Size, other: torch.Tensor, generator: Generator) -> torch.Tensor:
    """Colour noise, stripes or checks, Voronoi cells, or the shuffled blocks of another training image."""
    kind = int(generator.integers(4))
    if kind == 3:
        return shuffled(other, generator)
    painter = (colour_noise, stripes, cells)[kind]
    return (painter(size, generator) * 255.0).round().to(torch.uint8)


def colour_noise(size: Size, generator: Generator) -> torch.Tensor:
    """Noise of several scales, each half as strong as the coarser one before; 0..1 in every channel."""
    first = int(generator.integers(1, 5))
    total = torch.zeros(1, 3, *size)
    for octave in range(_OCTAVES):
        side = 2 ** (first + octave)
        grid = torch.from_numpy(generator.random((1, 3, side, side), dtype=np.float32))
        total += functional.interpolate(grid, size, mode="bilinear", align_corners=True) / 2**octave
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    noise: torch.Tensor = ((total - low) / (high - low).clamp_min(1e-6))[0]
    return noise


def stripes(size: Size, generator: Generator) -> torch.Tensor:
    """Two colours in bent stripes, or in checks; their borders are soft or hard."""
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    angle, period = generator.uniform(0.0, math.pi), 2.0 ** generator.uniform(1.0, 5.0)
    across = rows * math.cos(angle) + columns * math.sin(angle)
    along = columns * math.cos(angle) - rows * math.sin(angle)
    bend = generator.uniform(0.0, 0.1) * np.sin(2.0 * math.pi * (generator.uniform(0.5, 3.0) * along))
    waves = np.sin(2.0 * math.pi * period * (across + bend))
    if generator.random() < 0.5:
        waves = waves * np.sin(2.0 * math.pi * period * (along + bend))
    if generator.random() < 0.5:
        waves = np.sign(waves)
    share = torch.from_numpy((waves + 1.0) / 2.0).float()
    colours = torch.from_numpy(generator.random((2, 3, 1, 1), dtype=np.float32))
    return share * colours[0] + (1.0 - share) * colours[1]


def cells(size: Size, generator: Generator) -> torch.Tensor:
    """Voronoi cells, each of a colour."""
    count = int(generator.integers(8, 33))
    centres = generator.random((count, 2, 1), dtype=np.float32) * np.array(size, dtype=np.float32)[:, None]
    rows, columns = (np.arange(side, dtype=np.float32) for side in size)
    away = (rows - centres[:, 0])[:, :, None] ** 2 + (columns - centres[:, 1])[:, None] ** 2
    colours = generator.random((3, count), dtype=np.float32)
    return torch.from_numpy(colours[:, away.argmin(0)])


def shuffled(image: torch.Tensor, generator: Generator) -> torch.Tensor:
    """The blocks of an image, of which the sides are multiples of 8, in another order."""
    height, width = image.shape[1:]
    blocks = image.view(3, _BLOCKS, height // _BLOCKS, _BLOCKS, width // _BLOCKS).permute(1, 3, 0, 2, 4)
    order = torch.from_numpy(generator.permutation(_BLOCKS**2))
    mixed = blocks.flatten(0, 1)[order].view(_BLOCKS, _BLOCKS, 3, height // _BLOCKS, width // _BLOCKS)
    return mixed.permute(2, 0, 3, 1, 4).reshape(image.shape)


def varied(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    """The texture after three different ones of ten operations."""
    for number in generator.choice(len(OPERATIONS), _NUM_OPERATIONS, replace=False):
        texture = OPERATIONS[number](texture, generator)
    return texture


def rotated(image: torch.Tensor, degrees: float) -> torch.Tensor:
    """About its centre, bilinear; black where nothing is."""
    transforms = _transforms()
    bilinear = transforms.InterpolationMode.BILINEAR
    turned: torch.Tensor = transforms.functional.rotate(image, degrees, bilinear)
    return turned


def _transforms() -> Any:
    require("torchvision", "DRAEM")
    from torchvision.transforms import v2

    return v2


def _gamma(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    powers = torch.from_numpy(generator.uniform(0.5, 2.0, (3, 1, 1))).float()
    return ((texture / 255.0) ** powers * 255.0).round().to(torch.uint8)


def _brightness(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    changed = texture * generator.uniform(0.8, 1.2) + generator.uniform(-30.0, 30.0)
    return changed.round().clamp(0.0, 255.0).to(torch.uint8)


def _colour(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    hue, saturation = generator.uniform(-50.0, 50.0, 2) / 255.0
    turned = _transforms().functional.adjust_hue(texture, float(hue))
    changed: torch.Tensor = _transforms().functional.adjust_saturation(turned, 1.0 + float(saturation))
    return changed


def _solarise(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    threshold = generator.uniform(32.0, 128.0)
    return _apply("solarize", texture, generator, threshold) if generator.random() < 0.5 else texture


def _sharpness(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    return _apply("adjust_sharpness", texture, generator, generator.uniform(0.0, 2.0))


def _posterise(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    return _apply("posterize", texture, generator, int(generator.integers(1, 9)))


def _rotate(texture: torch.Tensor, generator: Generator) -> torch.Tensor:
    return rotated(texture, generator.uniform(-45.0, 45.0))


def _apply(name: str, texture: torch.Tensor, _: Generator, *options: float) -> torch.Tensor:
    changed: torch.Tensor = getattr(_transforms().functional, name)(texture, *options)
    return changed


OPERATIONS: tuple[Callable[[torch.Tensor, Generator], torch.Tensor], ...] = (
    _gamma,
    _brightness,
    _sharpness,
    _colour,
    _solarise,
    _posterise,
    partial(_apply, "invert"),
    partial(_apply, "autocontrast"),
    partial(_apply, "equalize"),
    _rotate,
)
