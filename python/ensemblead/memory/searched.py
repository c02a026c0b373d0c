"""The rows of a fitted memory bank: the nearest of them to a query, and how far others lie from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import NotFittedError
from ensemblead.memory.buffer import as_rows
from ensemblead.memory.coverage import Coverage, CoverageMeasure
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import FaissIndex
from ensemblead.search.neighbors import Excluded


class SearchedRows:
    """What a memory bank is once it is fitted: rows, the image of each, and an index over them."""

    def __init__(self, num_neighbors: int) -> None:
        self.num_neighbors = num_neighbors
        self.projection_: torch.Tensor | None = None
        self._separation = 0.0  # see `BankState`
        self._rows: torch.Tensor | None = None
        self._images: torch.Tensor | None = None
        self._owners = np.empty(0, dtype=np.int64)  # the same as `_images`, on the host
        self._search: ExactIndex | FaissIndex | None = None

    @property
    def is_fitted(self) -> bool:
        return self._rows is not None

    @property
    def rows_(self) -> torch.Tensor:
        return self._fitted()[0]

    @property
    def images_(self) -> torch.Tensor:
        return self._fitted()[1]

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def search(
        self,
        queries: Any,
        k: int | None = None,
        *,
        exclude_image: int | Sequence[int] | npt.NDArray[np.integer] | None = None,
    ) -> tuple[Any, Any]:
        """The k bank rows nearest to every query.

        Args:
            queries: float `[Q, D]`, NumPy, or torch on the bank's device.
            k: how many, exactly; by default `num_neighbors`.
            exclude_image: leave this image's rows out of the bank; or int `[Q]`, an image for every query.

        Returns:
            *Squared* L2 distances float32 `[Q, k]`, ascending, and row numbers int64 `[Q, k]`; NumPy or torch
            as `queries`.

        Raises:
            ValueError: the bank has fewer than k rows (other than the excluded ones).
        """
        rows, numbers, index = self._fitted()
        k = self.num_neighbors if k is None else k
        away = None if exclude_image is None else np.asarray(exclude_image, dtype=np.int64)
        available = len(rows) if away is None else self._fewest_without(away)
        if not 1 <= k <= available:
            raise ValueError(f"k must be between 1 and the {available} rows of the bank, got {k}")
        points = self._points(queries, "queries")
        if away is not None and away.ndim and away.shape != (len(points),):
            raise ValueError(f"exclude_image must be one int, or [{len(points)}], got shape {away.shape}")
        # Where no row is left out, none need be compared.
        kept_out = away is not None and available < len(rows)
        excluded = Excluded.of(numbers, away) if kept_out and away is not None else None
        distances, found = index.search(points, k, excluded)
        if isinstance(queries, np.ndarray):
            return distances.cpu().numpy(), found.cpu().numpy()
        return distances, found

    def rows_without(self, image: int) -> int:
        """How many bank rows are of other images than this one."""
        self._fitted()
        return len(self._owners) - int((self._owners == image).sum())

    def _fewest_without(self, images: npt.NDArray[np.int64]) -> int:
        return min(self.rows_without(int(image)) for image in np.unique(images)) if images.size else len(self)

    def verify(self, embeddings: Any | Iterable[Any]) -> Coverage:
        """How far rows lie from the bank, in the projected space: those that it learned from, in a second
        pass over them, or others.

        Args:
            embeddings: float `[n, D]` as `add` takes them, or an iterable of such, of which one is held.

        Raises ValueError where there are none, and for NaN or infinity.
        """
        measure = self.coverage_measure()
        is_one = hasattr(embeddings, "shape")
        for batch in [embeddings] if is_one else embeddings:
            points = self._points(batch, "embeddings")
            if not bool(torch.isfinite(points).all()):
                raise ValueError("embeddings must be finite, got NaN or infinity")
            if len(points):
                measure.add(points)
        return measure.coverage()

    def coverage_measure(self) -> CoverageMeasure:
        """What `verify` adds rows to, float32 `[n, D]` on the bank's device."""
        return CoverageMeasure(self._fitted()[0], self.projection_, self._separation)

    def _fitted(self) -> tuple[torch.Tensor, torch.Tensor, ExactIndex | FaissIndex]:
        if self._rows is None or self._images is None or self._search is None:
            raise NotFittedError("the memory bank is not fitted; call fit first")
        return self._rows, self._images, self._search

    def _set(
        self, rows: torch.Tensor, owners: npt.NDArray[np.int64], search: ExactIndex | FaissIndex
    ) -> None:
        self._rows, self._owners, self._search = rows, owners, search
        self._images = torch.from_numpy(owners).to(rows.device)

    def _points(self, given: Any, name: str) -> torch.Tensor:
        """Rows like the bank's, where it is."""
        rows, points = self._fitted()[0], as_rows(given, name, copy=False)
        if points.shape[1] != rows.shape[1]:
            raise ValueError(f"{name} must have {rows.shape[1]} columns, got shape {tuple(points.shape)}")
        if points.device != rows.device:
            raise ValueError(f"{name} are on {points.device}, but the bank is on {rows.device}")
        return points
