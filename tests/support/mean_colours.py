"""A stand-in embedder: the mean colours of the cells of an image. It has the members that an index needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead import store
from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.files import write_atomically
from ensemblead.config.names import is_registered, register
from ensemblead.images import open_images


class MeanColours:
    """Embeds an image as the mean colours of `cells` x `cells` cells, 0..255; black images are zero."""

    def __init__(self, cells: int = 2, batch_size: int = 4) -> None:
        self.cells, self.batch_size = cells, batch_size

    @property
    def dim(self) -> int:
        return 3 * self.cells**2

    def vector(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        rows = np.array_split(pixels, self.cells, axis=0)
        cells = [cell for row in rows for cell in np.array_split(row, self.cells, axis=1)]
        return np.concatenate([cell.mean((0, 1)) for cell in cells]).astype(np.float32)

    def embed(self, images: Any) -> npt.NDArray[np.float32]:
        source = open_images(images)
        return np.stack([self.vector(source.read(i)) for i in range(len(source))])

    def embed_batches(
        self, images: Any, *, on_error: Callable[[int, Exception], object] | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        source = open_images(images)
        for a in range(0, len(source), self.batch_size):
            vectors = {}
            for i in range(a, min(a + self.batch_size, len(source))):
                try:
                    vectors[i] = self.vector(source.read(i))
                except (UnreadableImageError, FileNotFoundError) as error:
                    if on_error is None:
                        raise
                    on_error(i, error)
            if vectors:
                yield np.array(list(vectors)), np.stack(list(vectors.values()))

    def describe(self) -> dict[str, Any]:
        return {"type": "MeanColours", "cells": self.cells}

    def save(self, path: Any, include_backbone: bool = False) -> None:
        store.save(self, path)

    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        return {"cells": self.cells}

    @classmethod
    def from_store(cls, reader: store.FolderReader) -> MeanColours:
        return cls(reader.state["cells"])


def register_mean_colours() -> None:
    """Let saved ones be loaded; inside `separate_registry` for the time of a test."""
    if not is_registered(MeanColours):
        register("MeanColours")(MeanColours)


def draw_image(path: Path, seed: int, size: int = 8) -> Path:
    """An image of random cells, which no other seed has; written whole or not at all."""
    cells = np.random.default_rng(seed).integers(1, 256, (2, 2, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(cells.repeat(size // 2, 0).repeat(size // 2, 1))
    return write_atomically(path, lambda file: image.save(file, "PNG"))
