"""Images and changed copies of them, as images of their own: what a fit with `augment` learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ensemblead.images.batches import ImageBatch, SkippedImage, stack_planes
from ensemblead.images.changes import Copy, Turn
from ensemblead.images.geometry import Geometry
from ensemblead.images.spool import ImageSet

if TYPE_CHECKING:
    import torch


class Augmented:
    """Images as they are, then all of them changed in a first way, then in a second.

    An `ImageSet`. Copies have the positions and fingerprints of their images, so that what is learned of an
    image and of its copies can be left out together.

    Args:
        images: whole images or tiles.
        copies: the first changes nothing.
    """

    def __init__(self, images: ImageSet, copies: Sequence[Copy]) -> None:
        self._images, self._copies = images, list(copies)

    @property
    def skipped(self) -> list[SkippedImage]:
        return self._images.skipped

    @property
    def view(self) -> str:
        return f"{self._images.view} {self._copies}"

    @property
    def bits(self) -> int | None:
        return self._images.bits

    @property
    def copies(self) -> int:
        return self._images.copies * len(self._copies)

    def __len__(self) -> int:
        return len(self._images) * len(self._copies)

    def frame(self, geometry: Geometry) -> Geometry:
        return self._images.frame(geometry)

    def stretch(self, geometry: Geometry, size: tuple[int, int]) -> float:
        return self._images.stretch(geometry, size)

    def positions(self) -> list[int]:
        return self._images.positions() * len(self._copies)

    def identities(self) -> list[tuple[int, tuple[int, int], int]]:
        return self._images.identities() * len(self._copies)

    def batches(
        self, geometries: Sequence[Geometry], batch_size: int, *, pin_memory: bool = False
    ) -> Iterator[ImageBatch]:
        for copy in self._copies:
            for batch in self._images.batches(geometries, batch_size, pin_memory=pin_memory):
                yield batch if copy.is_unchanged else self._changed(batch, copy, pin_memory)

    def read(self, geometry: Geometry, items: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        identities, frames, positions = self._images.identities(), [], []
        for number, item in (divmod(item, len(self._images)) for item in items):
            pixels, place = self._images.read(geometry, [item])
            stretch = self.stretch(geometry, identities[item][1])
            frames.append(self._copies[number].of(pixels[0].numpy(), stretch))
            positions += place
        return stack_planes(frames), positions

    def _changed(self, batch: ImageBatch, copy: Copy, pin_memory: bool) -> ImageBatch:
        turns = {
            geometry: tuple(Turn(copy.angle, self.stretch(geometry, size)) for size in batch.sizes)
            for geometry in batch.images
        }
        images = {
            geometry: stack_planes(
                [
                    copy.of(planes.numpy(), turn.stretch)
                    for planes, turn in zip(pixels, turns[geometry], strict=True)
                ],
                pin_memory,
            )
            for geometry, pixels in batch.images.items()
        }
        return replace(batch, images=images, turns=turns)
