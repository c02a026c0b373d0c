"""Batches of network input, decoded by background threads while the consumer computes."""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.threads import available_cores, ended_with_generator
from ensemblead.common.validation import whole_number
from ensemblead.images.changes import Turn
from ensemblead.images.geometry import Geometry
from ensemblead.images.sources import ImageSource, open_images

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SkippedImage:
    """An image left out under `errors="skip"`, and why."""

    index: int
    path: str | None
    reason: str


@dataclass
class ImageBatch:
    """B images: `indices` into the source, `paths`, `sizes` as decoded (H, W), `fingerprints` (see
    `fingerprint`), `images[geometry]` `[B, 3, h, w]`; of changed copies of images `turns[geometry]`, one
    each.
    """

    indices: list[int]
    paths: list[str | None]
    sizes: list[tuple[int, int]]
    fingerprints: list[int]
    images: dict[Geometry, torch.Tensor]  # uint8, contiguous, on the CPU, pinned if that was asked for
    turns: dict[Geometry, tuple[Turn, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)


class BatchIterator(Iterator[ImageBatch]):
    """The batches of `iterate_batches`. `skipped` grows as it goes; `close` (or leaving `with`) stops the
    threads.
    """

    def __init__(self, batches: Any, skipped: list[SkippedImage]) -> None:
        self._batches = batches
        self.skipped = skipped

    def __next__(self) -> ImageBatch:
        batch: ImageBatch = next(self._batches)
        return batch

    def close(self) -> None:
        """Stop decoding, at the end of the image that each thread is at; iterating on gives nothing more."""
        self._batches.close()

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def iterate_batches(
    source: ImageSource,
    geometries: Sequence[Geometry],
    batch_size: int,
    *,
    errors: Literal["raise", "skip"] | Callable[[int, Exception], object] = "raise",
    workers: int | None = None,
    prefetch: int = 2,
    pin_memory: bool = False,
    bits: int | None = None,
) -> BatchIterator:
    """Decode every image once, in order, and apply every distinct geometry to it once.

    Args:
        source: from `open_images`.
        geometries: one or more; repeats cost nothing.
        batch_size: images per batch; the last batch may be smaller.
        errors: "raise" stops at the first image that cannot be read, or for which there is not enough memory;
            "skip" leaves it out, fills the batch with the next one, and records it in `.skipped` of the
            iterator. So does a function, which is called with the image's place and the error.
        workers: decoding threads, by default as many as there are cores, at most 8.
        prefetch: batches decoded ahead of the one being consumed; with the batch itself this bounds the
            memory.
        pin_memory: put the batches into page-locked memory, which a GPU reads while the program goes on
            (`to(device, non_blocking=True)`). It needs a GPU.
        bits: used bits of 16-bit files, as for `open_images`; None leaves it to the source.

    The images of one batch must come out in one size per geometry (ValueError naming two that do not): give
    an exact `resize` or a `crop`, or a batch size of 1. Threads start with the first `next` and end with
    the iterator, however it ends: exhausted, closed, dropped, or by an exception. Closed or dropped, each
    ends when it has read the image that it is at.
    """
    if not isinstance(source, ImageSource):
        raise TypeError(f"source must come from open_images, got {type(source).__name__}")
    distinct = tuple(dict.fromkeys(geometries))
    if not distinct:
        raise ValueError("geometries must not be empty")
    batch_size = whole_number("batch_size", batch_size, 1)
    if errors not in ("raise", "skip") and not callable(errors):
        raise ValueError(f'errors must be "raise", "skip" or a function, got {errors!r}')
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if prefetch < 0:
        raise ValueError(f"prefetch must not be negative, got {prefetch}")
    if workers is None:
        workers = 1 if len(source) == 1 else min(8, available_cores())
    source = open_images(source, bits=bits)
    skipped: list[SkippedImage] = []

    def leave_out(index: int, error: Exception) -> None:
        skipped.append(SkippedImage(index, source.paths[index], str(error)))
        if callable(errors):
            errors(index, error)

    # A plain function's generator, not a method's: no reference cycle keeps it alive when the iterator is
    # dropped.
    batches = _batches(
        source,
        distinct,
        batch_size,
        None if errors == "raise" else leave_out,
        workers if source.concurrent else 1,
        prefetch,
        pin_memory,
    )
    return BatchIterator(batches, skipped)


@dataclass
class _Decoded:
    size: tuple[int, int]
    fingerprint: int
    planes: list[npt.NDArray[np.uint8]]  # one [3, h, w] per geometry


def _decode(source: ImageSource, index: int, geometries: tuple[Geometry, ...]) -> _Decoded:
    try:
        image = source.read(index)
    except MemoryError as error:
        raise MemoryError(f"not enough memory to read {source.describe(index)}") from error
    try:
        resized = [geometry.apply(image) for geometry in geometries]
        # Transposed here, in the threads, so that the consumer only stacks.
        planes = [np.ascontiguousarray(pixels.transpose(2, 0, 1)) for pixels in resized]
    except UnreadableImageError as error:
        raise UnreadableImageError(f"cannot use image {source.describe(index)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source.describe(index)}: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"not enough memory to resize {source.describe(index)}") from error
    return _Decoded((image.shape[0], image.shape[1]), fingerprint(image), planes)


def fingerprint(image: npt.NDArray[np.uint8]) -> int:
    """64 bits that tell images apart: a checksum of all pixels, and 32 bits of a hash of every 7th of every
    7th row.
    """
    checksum = zlib.crc32(np.ascontiguousarray(image).data)
    sample = hashlib.sha256(image[::7, ::7].tobytes()).digest()
    return checksum << 32 | int.from_bytes(sample[:4], "little")


def _batches(
    source: ImageSource,
    geometries: tuple[Geometry, ...],
    batch_size: int,
    leave_out: Callable[[int, Exception], None] | None,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> Iterator[ImageBatch]:
    ahead = batch_size * prefetch + max(batch_size, workers)
    pending: deque[tuple[int, Future[_Decoded]]] = deque()
    upcoming = iter(range(len(source)))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ensemblead-decode")
    # A single image has nothing to be decoded beside, and a thread costs more than it gives.
    submit = pool.submit if len(source) > 1 else _done
    with ended_with_generator(pool):
        ready: list[tuple[int, _Decoded]] = []
        while True:
            while len(pending) + len(ready) < ahead and (index := next(upcoming, None)) is not None:
                pending.append((index, submit(_decode, source, index, geometries)))
            if not pending:
                break
            index, future = pending.popleft()
            try:
                ready.append((index, future.result()))
            except (UnreadableImageError, FileNotFoundError, MemoryError) as error:
                if leave_out is None:
                    raise
                leave_out(index, error)
            if len(ready) == batch_size:
                batch, ready = _assemble(source, geometries, ready, pin_memory), []
                yield batch
                del batch
        if ready:
            yield _assemble(source, geometries, ready, pin_memory)


def _done(function: Callable[..., _Decoded], *arguments: Any) -> Future[_Decoded]:
    """What a call gives or raises, at once, as an executor would give it later."""
    future: Future[_Decoded] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def stack_planes(planes: Sequence[npt.NDArray[np.uint8]], pin_memory: bool = False) -> torch.Tensor:
    """Planes `[3, h, w]` of one size as one tensor `[B, 3, h, w]`, in page-locked memory if that is asked
    for.

    Page-locked memory is a fresh tensor for every batch: torch gives it out again only when the copies queued
    from it are done, so no batch is overwritten on its way to the GPU.
    """
    import torch

    if not pin_memory:
        return torch.from_numpy(np.stack(planes))
    target = torch.empty((len(planes), *planes[0].shape), dtype=torch.uint8, pin_memory=True)
    np.stack(planes, out=target.numpy())
    return target


def several_sizes(first: str, size: tuple[int, ...], other: str, other_size: tuple[int, ...]) -> str:
    """The message for images of one batch, by their names, that come out in several sizes."""
    return (
        f"images of a batch must have one size, but {first} comes out as {size} and {other} as {other_size}; "
        "give an exact resize (h, w) or a crop, or batch_size=1"
    )


def _assemble(
    source: ImageSource,
    geometries: tuple[Geometry, ...],
    ready: list[tuple[int, _Decoded]],
    pin_memory: bool,
) -> ImageBatch:
    first = ready[0][1]
    images = {}
    for g, geometry in enumerate(geometries):
        for index, decoded in ready[1:]:
            if decoded.planes[g].shape != first.planes[g].shape:
                here, there = first.planes[g].shape[1:], decoded.planes[g].shape[1:]
                one, other = source.describe(ready[0][0]), source.describe(index)
                raise ValueError(several_sizes(one, here, other, there))
        images[geometry] = stack_planes([decoded.planes[g] for _, decoded in ready], pin_memory)
    indices = [index for index, _ in ready]
    paths = [source.paths[index] for index in indices]
    sizes = [decoded.size for _, decoded in ready]
    return ImageBatch(indices, paths, sizes, [decoded.fingerprint for _, decoded in ready], images)
