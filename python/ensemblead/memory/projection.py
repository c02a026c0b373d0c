"""Shortening embeddings by a random linear map before a coreset is selected among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ensemblead.kernels.coreset import project, random_projection
from ensemblead.memory.places import BLOCK_DIMS, Blocks

_AT_ONCE = 4096  # rows that are widened


def make_projection(given: Any, dims: int, length: int | None, seed: int) -> torch.Tensor | None:
    """The map to use: float32 `[length, dims]` on the CPU, or None for rows that are short enough.

    Args:
        given: a map to use instead of a random one, `[d, dims]`, or `[dims, d]` where that cannot be
            mistaken.
        dims: length of the rows.
        length: what they are shortened to, if that is less; None: they are not.
        seed: of the random map, which is that of `select_coreset`.
    """
    if given is not None:
        mapping = torch.as_tensor(given).detach().to("cpu", torch.float32)
        if mapping.ndim == 2 and mapping.shape[1] != dims and mapping.shape[0] == dims:
            mapping = mapping.T
        if mapping.ndim != 2 or mapping.shape[1] != dims or len(mapping) == 0:
            raise ValueError(f"projection must be [d, {dims}], got shape {tuple(mapping.shape)}")
        return mapping.contiguous()
    if length is None or length >= dims:
        return None
    return torch.from_numpy(random_projection(dims, length, seed))


def project_chunks(
    chunks: list[torch.Tensor], projection: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """The rows of all chunks `[n_i, D]` in one tensor on `device`, float32, mapped by `projection` `[d, D]`,
    or as they are if it is None.

    Only the short rows are held beside the chunks, never a second copy of the long ones. How the rows are cut
    into chunks does not change a bit of the result. Rows in half precision are widened some at a time.
    """
    pieces = (
        piece
        for chunk in chunks
        for piece in ([chunk] if chunk.dtype == torch.float32 else torch.split(chunk, _AT_ONCE))
    )
    placed = (piece.to(device, non_blocking=True).float() for piece in pieces)
    parts = [chunk if projection is None else project(chunk, projection) for chunk in placed]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class Space:
    """Where a selection measures distances: rows mapped by `projection` `[d, D]`, beside the coordinates of
    their `blocks`, where places matter.
    """

    projection: torch.Tensor | None
    blocks: Blocks | None = None

    def of(
        self, chunks: list[torch.Tensor], labels: list[torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """All rows in one tensor on `device`; `labels` as in `Buffer`."""
        short = project_chunks(chunks, self.projection, device)
        if self.blocks is None:
            return short
        self.blocks.fit_scale(short)
        whole = short.new_empty(len(short), short.shape[1] + BLOCK_DIMS)
        whole[:, :-BLOCK_DIMS] = short
        whole[:, -BLOCK_DIMS:] = self.blocks.coordinates(torch.cat(labels)[:, 1:].to(device))
        return whole
