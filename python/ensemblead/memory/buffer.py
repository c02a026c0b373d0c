"""Rows on their way into a bank: where they wait, and how a few of them are taken out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch


class Buffer:
    """Rows in the pieces they came in, and the image of every row (int64, on the host)."""

    def __init__(self) -> None:
        self.chunks: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.num_rows = 0

    def append(self, rows: torch.Tensor, images: torch.Tensor) -> None:
        self.chunks.append(rows)
        self.images.append(images)
        self.num_rows += len(rows)

    def groups(self, is_full: Callable[[int], bool]) -> list[Buffer]:
        """The same pieces in groups, each closed as soon as it is full; this buffer lets them go."""
        groups: list[Buffer] = []
        for chunk, images in zip(self.chunks, self.images, strict=True):
            if not groups or is_full(groups[-1].num_rows):
                groups.append(Buffer())
            groups[-1].append(chunk, images)
        self.chunks, self.images, self.num_rows = [], [], 0
        return groups


def waits_on_host(buffer_bytes: int, free_bytes: int) -> bool:
    """Whether rows of a GPU wait in page-locked memory of the host: where the card has less room than the
    buffer and as much again, for the network and for the selection. What is selected does not depend on it.
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
            rows = chunk.to(device, non_blocking=True).index_select(0, here[1] - int(starts[i]))
            out.index_copy_(0, here[0], rows)
    return out
