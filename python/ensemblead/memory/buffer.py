"""Rows on their way into a bank: where they wait, and how a few of them are taken out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.memory.places import Numbers


class Buffer:
    """Rows in the pieces they came in, and labels of every row: int64 on the host, `[n, 1]` its image, or
    `[n, 3]` its image and its place.
    """

    def __init__(self) -> None:
        self.chunks: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []
        self.num_rows = 0

    def append(self, rows: torch.Tensor, labels: torch.Tensor) -> None:
        self.chunks.append(rows)
        self.labels.append(labels)
        self.num_rows += len(rows)

    def leave_out(self, images: Collection[int]) -> None:
        """Let the rows of these images go; piece by piece, so that no second copy of all is held."""
        gone = torch.tensor(sorted(images), dtype=torch.int64)
        for place in reversed(range(len(self.chunks))):
            kept = torch.isin(self.labels[place][:, 0], gone, invert=True)
            if bool(kept.all()):
                continue
            self.num_rows -= len(kept) - int(kept.sum())
            self.chunks[place] = self.chunks[place][kept.to(self.chunks[place].device)]
            self.labels[place] = self.labels[place][kept]
            if not len(self.chunks[place]):
                del self.chunks[place], self.labels[place]

    def groups(self, most: int) -> list[Buffer]:
        """The same pieces in groups of at most `most` rows, or of one piece; this buffer lets them go."""
        groups: list[Buffer] = []
        for chunk, labels in zip(self.chunks, self.labels, strict=True):
            if not groups or groups[-1].num_rows + len(chunk) > most:
                groups.append(Buffer())
            groups[-1].append(chunk, labels)
        self.chunks, self.labels, self.num_rows = [], [], 0
        return groups


class AddedRows(Buffer):
    """The rows added to a bank since its last `fit` or `extend`, all of one device.

    Attributes:
        home: where rows come from, and are selected and searched.
    """

    def __init__(self, home: torch.device | None = None) -> None:
        super().__init__()
        self.home = home
        self._on_host = False  # rows of a GPU wait on the host
        self._squares: torch.Tensor | None = None  # of all rows added, summed
        self._num_squared = 0

    def add(self, rows: torch.Tensor, labels: torch.Tensor, squares: torch.Tensor, max_bytes: int) -> None:
        """Hold rows, whose sum of squares is `squares`, float64 `[]`; `max_bytes` may come to be held."""
        self.home = rows.device
        if rows.is_cuda and self.num_rows == 0:
            self._on_host = waits_on_host(max_bytes, free_on(rows.device))
        self.append(to_host(rows) if rows.is_cuda and self._on_host else rows, labels)
        self._squares = squares if self._squares is None else self._squares + squares
        self._num_squared += len(rows)

    def mean_square_norm(self) -> float:
        """The mean squared Euclidean norm of the rows; 0 without any."""
        return 0.0 if self._squares is None else float(self._squares) / self._num_squared


def as_rows(array: Any, name: str, copy: bool) -> torch.Tensor:
    """float32 `[n, D]` on its own device."""
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.array(array, order="C") if copy else np.ascontiguousarray(array))
        copy = False
    if not isinstance(array, torch.Tensor):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(array).__name__}")
    if not array.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {array.dtype}")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be 2-D [n, D], got shape {tuple(array.shape)}")
    return array.detach().to(torch.float32, copy=copy).contiguous()


def row_labels(images: Any, places: Numbers | None, count: int) -> torch.Tensor:
    """The labels of a `Buffer` from one image for all rows, or one for each, and from their places."""
    given = np.asarray(images)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"images must be whole numbers, got {given.dtype}")
    for extreme in (given.min(), given.max()) if given.size else ():
        if not 0 <= extreme <= np.iinfo(np.int64).max:
            raise ValueError(f"images must be from 0 to 2^63 - 1, got {extreme}")
    numbers = torch.tensor(given, dtype=torch.int64)
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) != count):
        raise ValueError(f"images must be one int, or [{count}], got shape {tuple(numbers.shape)}")
    numbers = numbers.expand(count)[:, None]
    return numbers if places is None else torch.cat([numbers, torch.from_numpy(places)], 1)


def waits_on_host(buffer_bytes: int, free_bytes: int) -> bool:
    """Whether rows of a GPU wait in page-locked memory of the host: where the card has less room than the
    buffer and as much again, for the network and for the selection. The selection does not depend on it.
    """
    return free_bytes < 2 * buffer_bytes


def free_on(device: torch.device) -> int:
    """Bytes that torch can still have on a GPU."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def to_host(rows: torch.Tensor) -> torch.Tensor:
    """Rows in page-locked memory, copied in the order of the GPU's work: only that may read them."""
    return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True).copy_(rows, non_blocking=True)


def take(chunks: list[torch.Tensor], picks: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """The picked rows, in the order of the picks, of what the chunks would be in one piece, on `device`.

    Which chunk a row is in is worked out on the host: a GPU would be waited for at every chunk.
    """
    out = torch.empty((len(picks), chunks[0].shape[1]), dtype=torch.float32, device=device)
    order = np.argsort(picks, kind="stable")
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    bounds = np.searchsorted(picks[order], starts)
    places = torch.from_numpy(np.stack([order, picks[order]])).to(device, non_blocking=True)
    for i, chunk in enumerate(chunks):
        here = places[:, bounds[i] : bounds[i + 1]]
        if here.shape[1]:
            rows = chunk.to(device, non_blocking=True).index_select(0, here[1] - int(starts[i])).float()
            out.index_copy_(0, here[0], rows)
    return out
