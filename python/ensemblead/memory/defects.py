"""Rows of known defects beside those of a memory bank: patches near them score higher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ensemblead.search.exact import ExactIndex
from ensemblead.search.plan import flat_index


@dataclass(frozen=True)
class DefectRows:
    """Embeddings of patches of known defects, which are searched exactly, whatever place they are of.

    Attributes:
        rows: float32 or float16 `[K, D]`, finite.
        images: the defective image of every row, int64 `[K]`, by its place in `contents`.
        contents: 64 bits of the pixels of every defective image, as they were embedded, int64 `[n]`.

    Raises TypeError for another dtype, ValueError for a shape or value that they never have.
    """

    rows: torch.Tensor
    images: torch.Tensor
    contents: torch.Tensor

    def __post_init__(self) -> None:
        if self.rows.dtype not in (torch.float32, torch.float16):
            raise TypeError(f"rows must be float32 or float16, got {self.rows.dtype}")
        if self.rows.ndim != 2 or 0 in self.rows.shape:
            raise ValueError(f"rows must be [K, D], got shape {tuple(self.rows.shape)}")
        if not bool(torch.isfinite(self.rows).all()):
            raise ValueError("rows of known defects must be finite, got NaN or infinity")
        for name in ("images", "contents"):
            if (own := getattr(self, name)).dtype != torch.int64 or own.ndim != 1:
                raise TypeError(f"{name} must be int64 with one axis, got {own.dtype} {tuple(own.shape)}")
        if len(self.images) != len(self.rows):
            raise ValueError(f"images must be [{len(self.rows)}] as the rows, got {len(self.images)}")
        if not bool(((self.images >= 0) & (self.images < len(self.contents))).all()):
            raise ValueError(f"images must be places in contents, 0 to {len(self.contents) - 1}")

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _index(self) -> ExactIndex:
        return flat_index(self.rows)

    def nearest(self, queries: torch.Tensor) -> torch.Tensor:
        """The squared L2 distance of every query `[Q, D]` to the nearest row: float32 `[Q]`."""
        return self._index.search(queries, 1, None)[0][:, 0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> DefectRows:
        """The same rows elsewhere, or rounded."""
        rows = self.rows.to(device=device, dtype=dtype)
        return DefectRows(rows, self.images.to(device), self.contents.to(device))

    def joined(self, more: DefectRows) -> DefectRows:
        """These, and more of other images."""
        more = more.to(self.rows.device, self.rows.dtype)
        return DefectRows(
            torch.cat([self.rows, more.rows]),
            torch.cat([self.images, more.images + len(self.contents)]),
            torch.cat([self.contents, more.contents]),
        )

    def check_half(self, argument: str) -> None:
        """Raise ValueError, naming `argument`, for values that float16 does not have."""
        if not bool(torch.isfinite(self.rows.half()).all()):
            largest = float(self.rows.abs().max())
            raise ValueError(
                f"{argument}: float16 has values up to 65504, those of known defects go up to {largest:.6g}"
            )
