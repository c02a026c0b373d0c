"""The rows of a fitted memory bank: the nearest of them to a query, and how far others lie from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import NotFittedError
from ensemblead.common.validation import whole_number
from ensemblead.memory.buffer import as_rows, row_labels
from ensemblead.memory.coverage import Coverage, CoverageMeasure
from ensemblead.memory.defects import DefectRows
from ensemblead.memory.places import Blocks, Numbers, PlaceCounts, as_places
from ensemblead.memory.projection import Space
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import FaissIndex
from ensemblead.search.neighbors import Excluded, Nearby


class SearchedRows:
    """What a memory bank is once it is fitted: rows, the image of each, and an index over them."""

    def __init__(self, num_neighbors: int, position_radius: int | None = None) -> None:
        self.num_neighbors = num_neighbors
        self.position_radius = position_radius
        self.projection_: torch.Tensor | None = None
        self.defects_: DefectRows | None = None
        self.augment_: tuple[str, ...] = ()
        self._separation = 0.0  # see `BankState`
        self._rows: torch.Tensor | None = None
        self._images: torch.Tensor | None = None
        self._owners = np.empty(0, dtype=np.int64)  # the same as `_images`, on the host
        self._search: ExactIndex | FaissIndex | None = None
        self._blocks: Blocks | None = None  # of the selection
        self._places: torch.Tensor | None = None
        self._counts: PlaceCounts | None = None  # of the places

    @property
    def is_fitted(self) -> bool:
        return self._rows is not None

    @property
    def rows_(self) -> torch.Tensor:
        return self._fitted()[0]

    @property
    def images_(self) -> torch.Tensor:
        return self._fitted()[1]

    @property
    def places_(self) -> torch.Tensor | None:
        """The cell of every row, y before x, int64 `[M, 2]`, ascending; None without `position_radius`."""
        self._fitted()
        return self._places

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def search(
        self,
        queries: Any,
        k: int | None = None,
        *,
        exclude_image: int | Sequence[int] | npt.NDArray[np.integer] | None = None,
        places: Any = None,
    ) -> tuple[Any, Any]:
        """The k bank rows nearest to every query; with `position_radius`, of those near its place.

        Args:
            queries: float `[Q, D]`, NumPy, or torch on the bank's device.
            k: how many, exactly; by default `num_neighbors`.
            exclude_image: leave this image's rows out of the bank; or int `[Q]`, an image for every query.
            places: int `[Q, 2]`, the cell of every query, y before x; needed with `position_radius`, refused
                without.

        Returns:
            *Squared* L2 distances float32 `[Q, k]`, ascending, and row numbers int64 `[Q, k]`; NumPy or torch
            as `queries`.

        Raises:
            ValueError: the bank has fewer than k rows (other than the excluded ones).
            TypeError: k or images that are no whole numbers.
        """
        rows, numbers, index = self._fitted()
        k = self.num_neighbors if k is None else whole_number("k", k)
        away = None if exclude_image is None else _images(exclude_image)
        available = len(rows) if away is None else self._fewest_without(away)
        if not 1 <= k <= available:
            raise ValueError(f"k must be between 1 and the {available} rows of the bank, got {k}")
        points = self._points(queries, "queries")
        if away is not None and away.ndim and away.shape != (len(points),):
            raise ValueError(f"exclude_image must be one int, or [{len(points)}], got shape {away.shape}")
        # Where no row is left out, none need be compared.
        kept_out = away is not None and available < len(rows)
        excluded = Excluded.of(numbers, away) if kept_out and away is not None else None
        if isinstance(index, ExactIndex):
            distances, found = index.search(points, k, self._near(places, len(points), k, excluded))
        else:
            self._near(places, len(points), k, excluded)
            distances, found = index.search(points, k, excluded)
        if isinstance(queries, np.ndarray):
            return distances.cpu().numpy(), found.cpu().numpy()
        return distances, found

    def _checked_places(self, places: Any, count: int) -> Numbers | None:
        """Those of so many rows; None where places do not matter."""
        if (places is None) != (self.position_radius is None):
            given = "none" if places is None else "some"
            raise ValueError(
                f"places must go with position_radius, which is {self.position_radius}; got {given}"
            )
        return None if places is None else as_places(places, count)

    def _near(self, places: Any, count: int, k: int, excluded: Excluded | None) -> Excluded | Nearby | None:
        """The rows among which k are searched for queries at these places."""
        cells = self._checked_places(places, count)
        if cells is None or self._places is None or self._counts is None or self.position_radius is None:
            return excluded
        without = None if excluded is None else excluded.host
        radii = self._counts.radii(cells, self.position_radius, k, self._owners, without)
        device = self._places.device
        of_queries = torch.from_numpy(cells).to(device), torch.from_numpy(radii).to(device)
        return Nearby(self._places, *of_queries, excluded)

    def near_rows(self, places: Any, k: int) -> torch.Tensor:
        """Which rows are compared with queries at the places `[Q, 2]` for k neighbours: bool `[Q, M]`, on the
        CPU.
        """
        rows = self._fitted()[0]
        near = self._near(places, len(places), k, None)
        apart = torch.zeros(len(places), len(rows), device=rows.device)
        if near is not None:
            near.mask_out(apart, slice(None), slice(None))
        return (apart == 0).cpu()

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
            embeddings: float `[n, D]` as `add` takes them, or an iterable of such, of which one is held. With
                `position_radius`, pairs (tuples) of them and their places in place of each.

        Raises ValueError where there are none, and for NaN or infinity.
        """
        measure = self.coverage_measure()
        is_one = hasattr(embeddings, "shape") or isinstance(embeddings, tuple)
        for batch in [embeddings] if is_one else embeddings:
            given, places = batch if isinstance(batch, tuple) else (batch, None)
            points = self._points(given, "embeddings")
            if not bool(torch.isfinite(points).all()):
                raise ValueError("embeddings must be finite, got NaN or infinity")
            if len(points):
                measure.add(points, row_labels(0, self._checked_places(places, len(points)), len(points)))
        return measure.coverage()

    def coverage_measure(self) -> CoverageMeasure:
        """What `verify` adds rows to, float32 `[n, D]` on the bank's device."""
        space = Space(self.projection_, self._blocks)
        return CoverageMeasure(self._fitted()[0], self._labels, space, self._separation)

    @property
    def _labels(self) -> torch.Tensor:
        """Of the rows, as in `Buffer`."""
        owners = torch.from_numpy(self._owners)[:, None]
        return owners if self._places is None else torch.cat([owners, self._places.cpu()], 1)

    def _fitted(self) -> tuple[torch.Tensor, torch.Tensor, ExactIndex | FaissIndex]:
        if self._rows is None or self._images is None or self._search is None:
            raise NotFittedError("the memory bank is not fitted; call fit first")
        return self._rows, self._images, self._search

    def _set(self, rows: torch.Tensor, labels: Numbers, search: ExactIndex | FaissIndex) -> None:
        self._rows, self._owners, self._search = rows, labels[:, 0].copy(), search
        self._images = torch.from_numpy(self._owners).to(rows.device)
        if labels.shape[1] > 1:
            places = labels[:, 1:].copy()
            self._places, self._counts = torch.from_numpy(places).to(rows.device), PlaceCounts(places)

    def _points(self, given: Any, name: str) -> torch.Tensor:
        """Rows like the bank's, where it is."""
        rows, points = self._fitted()[0], as_rows(given, name, copy=False)
        if points.shape[1] != rows.shape[1]:
            raise ValueError(f"{name} must have {rows.shape[1]} columns, got shape {tuple(points.shape)}")
        if points.device != rows.device:
            raise ValueError(f"{name} are on {points.device}, but the bank is on {rows.device}")
        return points


def _images(given: Any) -> Numbers:
    numbers = np.asarray(given)
    if numbers.dtype.kind not in "iu" and numbers.size:
        raise TypeError(f"exclude_image must be whole numbers, got {numbers.dtype}")
    if numbers.size and numbers.max() > np.iinfo(np.int64).max:
        raise ValueError(f"exclude_image must be below 2^63, got {numbers.max()}")
    return numbers.astype(np.int64)
