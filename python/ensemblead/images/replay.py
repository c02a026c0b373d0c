"""The images of a run once more, without decoding them all again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import UnreadableImageError
from ensemblead.images.batches import ImageBatch, iterate_batches
from ensemblead.images.geometry import Geometry
from ensemblead.images.sources import ImageSource

# Resized images, in bytes, that are kept between the passes of a fit; the others are decoded again.
REPLAY_BYTES = 256 << 20


class Replay:
    """Batches that a first pass over `source` has yielded, again and in the same order.

    Give `offer` every batch of the first pass; it keeps the first ones, up to `budget` bytes of pixels, at
    most `REPLAY_BYTES`.
    """

    def __init__(self, source: ImageSource, batch_size: int, budget: int | None = None) -> None:
        self._source = source
        self._batch_size = batch_size
        self._budget = REPLAY_BYTES if budget is None else min(budget, REPLAY_BYTES)
        self._kept: list[ImageBatch] = []
        self._rest: list[int] = []

    def __len__(self) -> int:
        """Images offered."""
        return sum(map(len, self._kept)) + len(self._rest)

    def offer(self, batch: ImageBatch, geometries: Sequence[Geometry]) -> None:
        """A batch, and in which geometries it will be wanted again; none: it will not be."""
        images = {geometry: batch.images[geometry] for geometry in geometries}
        cost = sum(pixels.numel() for pixels in images.values())
        # Once a batch is left out, so are all that follow: what is kept comes first again.
        if self._rest or not images or cost > self._budget:
            self._rest += batch.indices
            return
        self._budget -= cost
        self._kept.append(replace(batch, images=images))

    def again(self, geometries: Sequence[Geometry]) -> Iterator[ImageBatch]:
        """All batches offered, in some of the geometries they were offered in.

        An image that cannot be read any more is an error that says so (FileNotFoundError or
        UnreadableImageError): what has been learned in the first pass includes it, and what is still to be
        learned would not.
        """
        yield from self._kept
        if not self._rest:
            return
        with iterate_batches(_Some(self._source, self._rest), geometries, self._batch_size) as batches:
            try:
                for batch in batches:
                    batch.indices = [self._rest[i] for i in batch.indices]
                    yield batch
            except (FileNotFoundError, UnreadableImageError) as error:
                raise type(error)(
                    f"{error} (an earlier pass of this fit has read it, and parts of the detector have "
                    "learned it, so that it can no longer be left out: fit again)"
                ) from error


class _Some(ImageSource):
    """Some images of a source."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.paths = [source.paths[i] for i in indices]
        self.concurrent = source.concurrent
        self._source, self._indices = source, indices

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return self._source.read(self._indices[index])

    def describe(self, index: int) -> str:
        return self._source.describe(self._indices[index])
