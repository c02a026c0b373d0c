"""Tiles of images as images of their own: a location of a tiled ensemble learns from a view of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemblead.images.batches import ImageBatch, SkippedImage, stack_planes
from ensemblead.images.geometry import Geometry
from ensemblead.images.spool import Images, Planes

if TYPE_CHECKING:
    import torch

# Tiles are network input as they are.
AS_IS = Geometry(None, None)


@dataclass(frozen=True)
class Window:
    """A part of an image: `height` x `width` pixels from (`top`, `left`) on; zeros where it overhangs."""

    top: int
    left: int
    height: int
    width: int

    def rows(self, height: int) -> slice:
        return slice(self.top, min(self.top + self.height, height))

    def columns(self, width: int) -> slice:
        return slice(self.left, min(self.left + self.width, width))


class Tiles:
    """What windows show of images: image by image, all windows of each, in the order given.

    Args:
        images: of which the windows are parts.
        windows: each with the geometry in which it is a part of an image; all of one height and width.

    An `ImageSet`. Its items are tiles, its positions those of their images: a position occurs once per
    window. Whatever geometry is asked for, a tile stays as it is.
    """

    def __init__(self, images: Images, windows: Sequence[tuple[Geometry, Window]]) -> None:
        self._images = images
        self._windows = list(windows)

    @property
    def skipped(self) -> list[SkippedImage]:
        return self._images.skipped

    @property
    def view(self) -> str:
        return f"{self._windows}"

    @property
    def bits(self) -> int | None:
        return self._images.bits

    @property
    def copies(self) -> int:
        return self._images.copies

    def stretch(self, geometry: Geometry, size: tuple[int, int]) -> float:
        # Windows of all scales have one aspect, to the rounding of a pixel, so that of the first serves all.
        return self._images.stretch(self._windows[0][0], size)

    def __len__(self) -> int:
        return len(self._images.positions()) * len(self._windows)

    def frame(self, geometry: Geometry) -> Geometry:
        return AS_IS

    def positions(self) -> list[int]:
        return [position for position in self._images.positions() for _ in self._windows]

    def identities(self) -> list[tuple[int, tuple[int, int], int]]:
        return [identity for identity in self._images.identities() for _ in self._windows]

    def batches(
        self, geometries: Sequence[Geometry], batch_size: int, *, pin_memory: bool = False
    ) -> Iterator[ImageBatch]:
        count = len(self)
        for start in range(0, count, batch_size):
            yield self._batch(range(start, min(start + batch_size, count)), pin_memory)

    def read(self, geometry: Geometry, items: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        batch = self._batch(items, False)
        return batch.images[AS_IS], batch.indices

    def _batch(self, items: Sequence[int], pin_memory: bool) -> ImageBatch:
        images, positions = self._images, self._images.positions()
        owners = [divmod(item, len(self._windows)) for item in items]
        tiles = [self._cut(image, *self._windows[window]) for image, window in owners]
        indices = [positions[image] for image, _ in owners]
        return ImageBatch(
            indices,
            [images.source.paths[index] for index in indices],
            [images.sizes[image] for image, _ in owners],
            [images.fingerprints[image] for image, _ in owners],
            {AS_IS: stack_planes(tiles, pin_memory)},
        )

    def _cut(self, image: int, geometry: Geometry, window: Window) -> Planes:
        height, width = self._images.size(geometry, image)
        part = self._images.window(geometry, image, window.rows(height), window.columns(width))
        if part.shape[1:] == (window.height, window.width):
            return part
        tile = np.zeros((3, window.height, window.width), dtype=np.uint8)
        tile[:, : part.shape[1], : part.shape[2]] = part
        return tile
