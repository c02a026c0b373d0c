"""Feature maps of frozen networks, computed once for all epochs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.detectors.parts import Run
from ensemblead.detectors.training.data import TrainingData
from ensemblead.images.spool import SPOOL_VARIABLE

# Bytes of feature maps kept in memory; of more, all are in a file.
MEMORY_BYTES = 1 << 30


class FeatureCache:
    """The feature maps of all images that are trained on, in the dtype of the network.

    They are computed when the first are asked for, and kept in memory up to `memory_bytes`, beyond that in a
    temporary file, which has no name and vanishes with the process. With `ENSEMBLEAD_SPOOL=off` in the
    environment nothing is written to disk, and what memory does not hold is computed again for every batch.

    Raises OSError where the temporary folder is full or cannot be written to.
    """

    def __init__(self, data: TrainingData, run: Run, memory_bytes: int = MEMORY_BYTES) -> None:
        self._data, self._progress, self._memory = data, run.progress, memory_bytes
        self._rows: npt.NDArray[np.uint8] | None = None  # [N, bytes]
        self._layers: list[tuple[torch.Size, torch.dtype]] = []
        self._device = torch.device("cpu")
        self._file: Any = None
        self._is_read = False

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows = None  # before the file that it may lie in
        if self._file is not None:
            self._file.close()

    def batch(self, items: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """One `[B, C, H, W]` per layer, channels last, on the network's device."""
        if not self._is_read:
            self._read()
        if self._rows is None:
            return self._data.batch(items).feature_maps
        rows = torch.from_numpy(self._rows[np.asarray(items)]).to(self._device)
        maps, start = [], 0
        for shape, dtype in self._layers:
            end = start + shape.numel() * dtype.itemsize
            maps.append(rows[:, start:end].contiguous().view(dtype).view(-1, *shape).permute(0, 3, 1, 2))
            start = end
        return tuple(maps)

    def _read(self) -> None:
        total = len(self._data)
        for start in range(0, total, self._data.batch_size):
            items = range(start, min(start + self._data.batch_size, total))
            maps = [own.permute(0, 2, 3, 1).contiguous() for own in self._data.batch(items).feature_maps]
            if not start:
                self._device = maps[0].device
                self._layers = [(own.shape[1:], own.dtype) for own in maps]
                self._rows = self._room(total, sum(own[0].numel() * own.element_size() for own in maps))
            if self._rows is None:
                break
            for offset, own in zip(self._offsets(), maps, strict=True):
                values = own.flatten(1).view(torch.uint8).cpu().numpy()
                self._rows[start : items.stop, offset : offset + values.shape[1]] = values
            self._progress("embed", items.stop, total)
        self._is_read = True

    def _offsets(self) -> list[int]:
        sizes = [shape.numel() * dtype.itemsize for shape, dtype in self._layers]
        return [sum(sizes[:number]) for number in range(len(sizes))]

    def _room(self, count: int, size: int) -> npt.NDArray[np.uint8] | None:
        if count * size <= self._memory:
            return np.empty((count, size), dtype=np.uint8)
        if os.environ.get(SPOOL_VARIABLE, "") == "off":
            return None
        folder = tempfile.gettempdir()
        try:
            # The file has no name from the start, or loses it on closing: nothing is left behind.
            self._file = tempfile.TemporaryFile(prefix="ensemblead-", dir=folder)  # noqa: SIM115
            # Room is taken at once: a full disk met later would end the process.
            _take_room(self._file, count * size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot keep {count * size:,} bytes of feature maps in the temporary folder {folder}: "
                f"{error.strerror}; set TMPDIR to a folder with room, or {SPOOL_VARIABLE}=off to compute "
                "them again for every batch",
            ) from error
        return np.memmap(self._file, dtype=np.uint8, mode="r+", shape=(count, size))


def _take_room(file: Any, size: int) -> None:
    """Let a new file have `size` bytes of the disk, rather than a length and no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = memoryview(bytes(1 << 20))
    for begin in range(0, size, len(zeros)):
        file.write(zeros[: size - begin])
    file.flush()
