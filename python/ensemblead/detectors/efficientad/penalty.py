"""Images that are drawn: recoloured ones, and penalty images, which a student must not learn to describe."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.warnings import warn
from ensemblead.detectors.training.data import TrainingData
from ensemblead.images import Geometry, ImageSource, detect_bits, open_images

Planes = npt.NDArray[np.uint8]  # [3, h, w]
PROCEDURAL = "procedural"
GREY = 0.3
_OF_EIGHT_BITS = (".jpg", ".jpeg", ".bmp", ".webp")
_OCTAVES = 5
# Sides of the patches that are shuffled.
_PATCHES = (16, 32, 64)
_PIECES = 4  # along a side, at least
_LUMA = (0.299, 0.587, 0.114)
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def recoloured(image: Planes, generator: np.random.Generator) -> Planes:
    """The image with its brightness, its contrast or its saturation scaled by 0.8 to 1.2."""
    enhancer = _ENHANCERS[generator.integers(len(_ENHANCERS))]
    return _planes(enhancer(_picture(image)).enhance(generator.uniform(0.8, 1.2)))


def grey(image: Planes) -> Planes:
    """The image without colours."""
    luma = np.tensordot(_LUMA, image.astype(np.float32), 1)
    return np.broadcast_to(np.rint(luma).astype(np.uint8), image.shape)


def procedural(image: Planes, generator: np.random.Generator) -> Planes:
    """An image that looks not normal: colour noise, or the pieces of a normal one in disorder.

    A normal image as it is would push the student away from what it should learn.
    """
    drawn = noise(image.shape[1:], generator) if generator.random() < 0.5 else disordered(image, generator)
    return grey(drawn) if generator.random() < GREY else drawn


def noise(size: tuple[int, ...], generator: np.random.Generator) -> Planes:
    """Colour noise of five octaves, each with half the amplitude of the one before."""
    height, width = size
    total = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(_OCTAVES):
        cells = 4 << octave
        values = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        grown = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(grown, dtype=np.float32) / (1 << octave)
    total -= total.min()
    total *= 255.0 / max(float(total.max()), 1.0)
    return np.ascontiguousarray(total.astype(np.uint8).transpose(2, 0, 1))


def disordered(image: Planes, generator: np.random.Generator) -> Planes:
    """A part of an image, enlarged, its patches shuffled, its channels permuted, and its colours moved."""
    height, width = image.shape[1:]
    patch = int(generator.choice([side for side in _PATCHES if _PIECES * side <= min(height, width)]))
    rows, columns = -(-height // patch), -(-width // patch)
    part = window(image, generator.uniform(0.5, 1.0), (rows * patch, columns * patch), generator)
    pieces = part.reshape(3, rows, patch, columns, patch).transpose(1, 3, 0, 2, 4)
    pieces = generator.permutation(pieces.reshape(rows * columns, 3, patch, patch))
    shuffled = pieces.reshape(rows, columns, 3, patch, patch).transpose(2, 0, 3, 1, 4)
    shuffled = shuffled.reshape(part.shape)[generator.permutation(3), :height, :width]
    gains, shifts = generator.uniform(0.7, 1.3, (3, 1, 1)), generator.uniform(-40.0, 40.0, (3, 1, 1))
    moved: Planes = np.clip(np.rint(shuffled * gains + shifts), 0, 255).astype(np.uint8)
    return moved


def window(image: Planes, share: float, size: tuple[int, int], generator: np.random.Generator) -> Planes:
    """A window of a share of the image's sides, at random, resized to `size` (h, w)."""
    height, width = image.shape[1:]
    top, left = (generator.uniform(0.0, side * (1.0 - share)) for side in (height, width))
    box = (left, top, left + share * width, top + share * height)
    return _planes(_picture(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


class PenaltyImages:
    """Penalty images for the images of a training.

    Args:
        source: "procedural", or a folder of photographs, each resized to twice the size that is needed, of
            which the centre is taken. Others take the place of those that cannot be read, with a warning.
            Files of 16 bits are read by the range that all of them use.

    Raises FileNotFoundError or ValueError, naming `penalty_images`, for a folder without images.
    """

    def __init__(self, source: str | os.PathLike[str], data: TrainingData) -> None:
        self._data, self._source = data, os.fspath(source)
        self._unreadable = set[int]()
        try:
            self._folder = None if source == PROCEDURAL else _of_one_depth(open_images(source))
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"penalty_images: {error}") from error

    def identity(self) -> dict[str, Any]:
        """What training depends on, by name: of a folder the images' names and sizes in bytes."""
        if self._folder is None:
            return {}
        paths = [path for path in self._folder.paths if path is not None]
        seen = [(os.path.relpath(path, self._source), Path(path).stat().st_size) for path in paths]
        return {"contents of penalty_images": hashlib.sha256(repr(seen).encode()).hexdigest()}

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> Planes:
        """One of them, of that height and width."""
        if self._folder is None:
            other = self._data.pixels([int(generator.integers(len(self._data)))])[0]
            return procedural(other.numpy(), generator)
        geometry = Geometry((2 * size[0], 2 * size[1]), size)
        photograph = geometry.apply(self._photograph(self._folder, generator))
        planes = np.ascontiguousarray(photograph.transpose(2, 0, 1))
        return grey(planes) if generator.random() < GREY else planes

    def _photograph(self, folder: ImageSource, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
        # Training takes days: it does not end because of one of a million photographs.
        while len(self._unreadable) < len(folder):
            number = int(generator.integers(len(folder)))
            try:
                return folder.read(number)
            except UnreadableImageError as error:
                if number not in self._unreadable:
                    warn(f"penalty_images: {error}; another takes its place")
                self._unreadable.add(number)
        raise ValueError(f"penalty_images: none of the images in {self._source} can be read")


def _of_one_depth(source: ImageSource) -> ImageSource:
    # A million photographs are not opened to learn that a JPEG has 8 bits.
    wide = [path for path in source.paths if path is not None and not path.lower().endswith(_OF_EIGHT_BITS)]
    return open_images(source, bits=detect_bits(open_images(wide), errors="skip")) if wide else source


def _picture(image: Planes) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _planes(picture: Image.Image) -> Planes:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
