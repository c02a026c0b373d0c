"""The images of one fit: decoded and resized once, read again in any order."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import UnreadableImageError
from ensemblead.images.batches import (
    ImageBatch,
    SkippedImage,
    iterate_batches,
    several_sizes,
    stack_planes,
)
from ensemblead.images.geometry import Geometry
from ensemblead.images.sources import ImageSource

if TYPE_CHECKING:
    import torch

Planes = npt.NDArray[np.uint8]
# Resized images kept in memory, in bytes, unless the caller has less to give.
MEMORY_BYTES = 256 << 20
# "off": nothing is written to disk, and images beyond the memory budget are decoded again for every pass.
SPOOL_VARIABLE = "ENSEMBLEAD_SPOOL"
# Images decoded together where they are wanted one by one.
_FEW = 1
# Images whose sizes are looked at to decide on a geometry.
_ASKED = 100


class ImageSet(Protocol):
    """Images that can be read any number of times. `frame` says which geometry stands for the one asked
    for.
    """

    @property
    def skipped(self) -> list[SkippedImage]:
        """Images left out so far."""
        ...

    @property
    def view(self) -> str:
        """What is seen of the images: of whole ones ""."""
        ...

    @property
    def bits(self) -> int | None:
        """Used bits of 16-bit files; None where there are none."""
        ...

    @property
    def copies(self) -> int:
        """How many of an image there are: it alone, or with changed copies."""
        ...

    def __len__(self) -> int: ...

    def stretch(self, geometry: Geometry, size: tuple[int, int]) -> float:
        """How much higher a pixel of a photograph (H, W) is than wide in a frame."""
        ...

    def frame(self, geometry: Geometry) -> Geometry: ...

    def batches(
        self, geometries: Sequence[Geometry], batch_size: int, *, pin_memory: bool = False
    ) -> Iterator[ImageBatch]: ...

    def read(self, geometry: Geometry, items: Sequence[int]) -> tuple[torch.Tensor, list[int]]: ...

    def positions(self) -> list[int]: ...

    def identities(self) -> list[tuple[int, tuple[int, int], int]]: ...


class Images:
    """Images of a source, for a fit that reads them several times.

    The first pass decodes. It keeps the images in the geometries `kept`: in memory up to `memory_bytes`,
    beyond that in a temporary file, which has no name and vanishes with the process. Later passes, in any
    order, read what was kept. With `ENSEMBLEAD_SPOOL=off` in the environment nothing is written to disk,
    and images beyond the memory budget are decoded once more for every pass.

    Args:
        source: from `open_images`.
        kept: the geometries that will be asked for more than once; none for a single pass.
        errors: "raise", "skip" or a function, as `iterate_batches` has it; images skipped are left out of
            all passes.
        memory_bytes: bytes of resized images in memory.

    Attributes: `skipped`, images left out so far; after the first pass `fingerprints`, one per image read.

    Raises (from the first pass): OSError where the temporary folder is full or cannot be written to.
    """

    def __init__(
        self,
        source: ImageSource,
        kept: Sequence[Geometry] = (),
        *,
        errors: Literal["raise", "skip"] | Callable[[int, Exception], object] = "raise",
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.source = source
        self._skipped: list[SkippedImage] = []
        self.fingerprints = array("Q")
        self.sizes: list[tuple[int, int]] = []
        self._decided: dict[Geometry, Geometry] = {}
        self._errors = errors
        self._kept = tuple(dict.fromkeys(map(self.frame, kept)))
        self._memory = min(memory_bytes, MEMORY_BYTES)
        self._file: _File | None = None
        self._positions = array("q")
        self._stored: dict[Geometry, list[Planes | _Place | None]] = {geometry: [] for geometry in self._kept}
        self._complete = False

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def skipped(self) -> list[SkippedImage]:
        return self._skipped

    @property
    def view(self) -> str:
        return ""

    @property
    def bits(self) -> int | None:
        return self.source.bits

    @property
    def copies(self) -> int:
        return 1

    def stretch(self, geometry: Geometry, size: tuple[int, int]) -> float:
        height, width = geometry.resized_size(*size)
        return (height / size[0]) / (width / size[1])

    def __len__(self) -> int:
        """Images of the source; after the first pass, those that could be read."""
        return len(self._positions) if self._complete else len(self.source)

    def frame(self, geometry: Geometry) -> Geometry:
        """The geometry itself, or, of one that is decided by the images, the one that follows from these."""
        if geometry.is_decided:
            return geometry
        if geometry not in self._decided:
            self._decided[geometry] = geometry.decided(self._some_sizes())
        return self._decided[geometry]

    def _some_sizes(self) -> list[tuple[int, int]]:
        """Sizes of images, evenly spread over the source."""
        count = len(self.source)
        sizes = []
        for index in sorted(
            {int(place * count / _ASKED) for place in range(_ASKED)} if count > _ASKED else range(count)
        ):
            try:
                sizes.append(self.source.size(index))
            except (UnreadableImageError, FileNotFoundError, MemoryError):
                if self._errors == "raise":
                    raise
        if not sizes:
            raise ValueError(f"images: none of the {count} images can be read")
        return sizes

    def positions(self) -> list[int]:
        """The place in the source of every image that could be read. Makes the first pass if there was
        none.
        """
        self._ensure_read()
        return list(self._positions)

    def identities(self) -> list[tuple[int, tuple[int, int], int]]:
        """Of every image read its place in the source, its size as decoded, and its fingerprint."""
        return list(zip(self.positions(), self.sizes, self.fingerprints, strict=True))

    def batches(
        self, geometries: Sequence[Geometry], batch_size: int, *, pin_memory: bool = False
    ) -> Iterator[ImageBatch]:
        """All images in order, in batches of `batch_size`; the arguments as in `iterate_batches`."""
        if not self._complete:
            yield from self._first_pass(geometries, batch_size, pin_memory)
            return
        for start in range(0, len(self._positions), batch_size):
            items = range(start, min(start + batch_size, len(self._positions)))
            yield self._batch(geometries, items, pin_memory)

    def read(self, geometry: Geometry, items: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """Some images, uint8 `[n, 3, h, w]`, and their places in the source. `items` count the images
        read.
        """
        self._ensure_read()
        batch = self._batch([geometry], items, False)
        return batch.images[geometry], batch.indices

    def planes(self, geometry: Geometry, item: int) -> Planes:
        """One image, uint8 `[3, h, w]`."""
        stored = self._stored[geometry][item] if geometry in self._stored else None
        if isinstance(stored, _Place):
            assert self._file is not None
            return self._file.read(stored)
        return self._decode_again(geometry, item) if stored is None else stored

    def window(self, geometry: Geometry, item: int, rows: slice, columns: slice) -> Planes:
        """A part of one image, uint8 `[3, h, w]`: of one in the file, its rows alone are read."""
        stored = self._stored[geometry][item] if geometry in self._stored else None
        if isinstance(stored, _Place):
            assert self._file is not None
            return np.ascontiguousarray(self._file.read(stored, rows)[:, :, columns])
        return np.ascontiguousarray(self.planes(geometry, item)[:, rows, columns])

    def size(self, geometry: Geometry, item: int) -> tuple[int, int]:
        """Height and width of an image as `geometry` makes it."""
        self._ensure_read()
        return geometry.output_size(*self.sizes[item])

    def _ensure_read(self) -> None:
        if not self._complete:
            for _ in self._first_pass(self._kept, _FEW, False):
                pass

    def _first_pass(
        self, geometries: Sequence[Geometry], batch_size: int, pin_memory: bool
    ) -> Iterator[ImageBatch]:
        wanted = tuple(dict.fromkeys((*geometries, *self._kept)))
        # An earlier pass may have been left before its end.
        self._positions, self.sizes, self.fingerprints = array("q"), [], array("Q")
        same: dict[tuple[int, int], tuple[int, int]] = {}  # a size that many images have is kept once
        self._stored = {geometry: [] for geometry in self._kept}
        with iterate_batches(
            self.source, wanted, batch_size, errors=self._errors, pin_memory=pin_memory
        ) as batches:
            self._skipped = batches.skipped
            for batch in batches:
                self._positions.extend(batch.indices)
                self.fingerprints.extend(batch.fingerprints)
                self.sizes += [same.setdefault(size, size) for size in batch.sizes]
                for geometry in self._kept:
                    for pixels in batch.images[geometry]:
                        self._stored[geometry].append(
                            self._store(pixels.numpy(), copy=len(batch) > 1 or pin_memory)
                        )
                yield batch
                del batch
        self._complete = True

    def _store(self, planes: Planes, *, copy: bool) -> Planes | _Place | None:
        if planes.nbytes <= self._memory:
            self._memory -= planes.nbytes
            return planes.copy() if copy else planes
        self._memory = 0  # images in memory come first
        if os.environ.get(SPOOL_VARIABLE, "") == "off":
            return None
        if self._file is None:
            self._file = _File()
        return self._file.append(planes)

    def _batch(self, geometries: Sequence[Geometry], items: Sequence[int], pin_memory: bool) -> ImageBatch:
        indices = [self._positions[item] for item in items]
        for geometry in geometries:
            self._check_sizes(geometry, items)
        images = {
            geometry: stack_planes([self.planes(geometry, item) for item in items], pin_memory)
            for geometry in dict.fromkeys(geometries)
        }
        paths = [self.source.paths[index] for index in indices]
        sizes = [self.sizes[item] for item in items]
        return ImageBatch(indices, paths, sizes, [self.fingerprints[item] for item in items], images)

    def _check_sizes(self, geometry: Geometry, items: Sequence[int]) -> None:
        """Raise ValueError where images of a batch come out in several sizes."""
        sizes = [self.size(geometry, item) for item in items]
        for item, size in zip(items, sizes, strict=True):
            if size != sizes[0]:
                describe = self.source.describe
                first, other = self._positions[items[0]], self._positions[item]
                raise ValueError(several_sizes(describe(first), sizes[0], describe(other), size))

    def _decode_again(self, geometry: Geometry, item: int) -> Planes:
        """An image that was not kept. One that cannot be read any more is an error: parts of the detector
        have learned it already.
        """
        try:
            pixels = geometry.apply(self.source.read(self._positions[item]))
        except (FileNotFoundError, UnreadableImageError) as error:
            raise type(error)(
                f"{error} (an earlier pass of this fit has read it, and parts of the detector have learned "
                "it, so that it can no longer be left out: fit again)"
            ) from error
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _Place:
    """Where an image lies in the file."""

    __slots__ = ("offset", "shape")

    def __init__(self, offset: int, shape: tuple[int, ...]) -> None:
        self.offset, self.shape = offset, shape


class _File:
    """A temporary file of images one behind the other."""

    def __init__(self) -> None:
        self._folder = tempfile.gettempdir()
        try:
            # The file has no name from the start, or loses it on closing: nothing is left behind.
            self._file: Any = tempfile.TemporaryFile(  # noqa: SIM115 - closed by `close`
                prefix="ensemblead-", dir=self._folder, buffering=0
            )
        except OSError as error:
            raise self._explained(error) from error
        self._end = 0

    def append(self, planes: Planes) -> _Place:
        data = memoryview(np.ascontiguousarray(planes).data).cast("B")
        place = _Place(self._end, planes.shape)
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, self._end)
                self._end += written
                data = data[written:]
        except OSError as error:
            raise self._explained(error) from error
        return place

    def read(self, place: _Place, rows: slice | None = None) -> Planes:
        channels, height, width = place.shape
        first, last, _ = (rows or slice(None)).indices(height)
        out = np.empty((channels, last - first, width), dtype=np.uint8)
        for channel in range(channels):
            target = memoryview(out[channel].data).cast("B")
            offset = place.offset + (channel * height + first) * width
            while target:
                got = os.preadv(self._file.fileno(), [target], offset)
                if got == 0:
                    raise OSError(f"the temporary file of images in {self._folder} was cut short")
                target, offset = target[got:], offset + got
        return out

    def close(self) -> None:
        self._file.close()

    def _explained(self, error: OSError) -> OSError:
        return OSError(
            error.errno,
            f"cannot keep resized images in the temporary folder {self._folder}: {error.strerror}; set "
            f"TMPDIR to a folder with room, or {SPOOL_VARIABLE}=off to decode images again for every pass",
        )
