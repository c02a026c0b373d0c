"""A memory bank: a coreset of normal embeddings, and the nearest of them to a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import NotFittedError
from ensemblead.common.validation import whole_number
from ensemblead.memory.buffer import AddedRows, Buffer, as_rows, image_numbers, take
from ensemblead.memory.projection import make_projection, project_chunks
from ensemblead.memory.selection import Progress, select, select_above_noise
from ensemblead.memory.state import BankState
from ensemblead.search.exact import ExactIndex
from ensemblead.search.faiss import FaissIndex
from ensemblead.search.neighbors import Excluded
from ensemblead.search.plan import (
    INDEX_NAMES,
    extended_index,
    flat_index,
    index_from_bytes,
    make_index,
    moved_index,
)

# How much a group of rows keeps of itself, as a multiple of the coreset's fraction, when not all rows fit the
# buffer.
_OVERSAMPLING = 2.0
# A row at the radius itself must not enter for the last bit of its distance.
_ROUNDING = 2e-6


class MemoryBank:
    """A coreset of embeddings (PatchCore; Roth et al. 2022), with the image every row came from.

    `add` rows as they come, then `fit`; more normal rows later with `add` and `extend`, or `extend(rows)`.
    Rows stay on the device where they were added, and are searched there (`ensemblead info` says by what).

    Args:
        coreset_fraction: share of the added rows that the bank keeps, in (0, 1].
        index: how it is searched: "flat" is exact; "ivf", "ivfpq", "hnsw" and "sq16" are FAISS's. On a GPU
            "ivf" needs FAISS's GPU build; without it, and for the last three, queries are copied to the CPU
            for every batch, and a UserWarning says so.
        num_neighbors: default `k` of `search`.
        seed: of the projection and of the start rows; nothing else is random.
        projection_dim: rows are shortened to this many dimensions for the selection (only); None: they are
            not.
        max_buffer_bytes: rows added are held until `fit` up to this size, and then the selection is exactly
            that of `select_coreset` over all of them. Beyond it rows are taken group by group (a quarter of
            the size each), every group keeps its own coreset of twice the fraction, and `fit` selects among
            what the groups kept: the composable form of the greedy k-center (Malkomes et al. 2015). Memory
            then grows with the bank only, and the cost linearly with the rows. The default holds 400 images
            of 784 patches of 1024 dimensions. Rows of a GPU wait there, or, where it has less than twice this
            size to spare, in page-locked memory of the host.

    Attributes after `fit`: `rows_` float32 `[M, D]` without repeats, in selection order; `images_` int64
    `[M]`; `projection_` float32 `[d, D]` or None; `radius_`, the largest Euclidean distance, in the projected
    space, from an added row to its nearest bank row (over the groups' own selections where there were
    groups), or the noise floor where that is larger.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
        >>> bank = MemoryBank(0.1)
        >>> bank.add(rows[:250])  # the rows of one image
        >>> bank.add(rows[250:])
        >>> len(bank.fit())
        50
        >>> distances, found = bank.search(bank.rows_, k=2)
        >>> distances.shape, float(distances[:, 0].max())
        (torch.Size([50, 2]), 0.0)
    """

    def __init__(
        self,
        coreset_fraction: float = 0.01,
        *,
        index: str = "flat",
        num_neighbors: int = 1,
        seed: int = 0,
        projection_dim: int | None = 128,
        max_buffer_bytes: int = 1_450_000_000,
    ) -> None:
        if not 0 < coreset_fraction <= 1:
            raise ValueError(f"coreset_fraction must be in (0, 1], got {coreset_fraction}")
        if index not in INDEX_NAMES:
            raise ValueError(f"index must be one of {', '.join(INDEX_NAMES)}, got {index!r}")
        if projection_dim is not None:
            projection_dim = whole_number("projection_dim", projection_dim, 1)
        if max_buffer_bytes < 1:
            raise ValueError(f"max_buffer_bytes must be positive, got {max_buffer_bytes}")
        self.coreset_fraction = float(coreset_fraction)
        self.index = index
        self.num_neighbors = whole_number("num_neighbors", num_neighbors, 1)
        self.seed = whole_number("seed", seed)
        self.projection_dim = projection_dim
        self.max_buffer_bytes = int(max_buffer_bytes)
        self.projection_: torch.Tensor | None = None
        self.radius_ = 0.0
        self._rows: torch.Tensor | None = None
        self._images: torch.Tensor | None = None
        self._owners = np.empty(0, dtype=np.int64)  # the same as `_images`, on the host
        self._search: ExactIndex | FaissIndex | None = None
        self._buffer = AddedRows()
        self._num_added = 0

    @property
    def is_fitted(self) -> bool:
        return self._rows is not None

    @property
    def holds_all_rows(self) -> bool:
        """Whether all rows added since the last `fit` or `extend` are in the buffer: none has left with a
        group.
        """
        return self._buffer.num_groups == 0

    @property
    def rows_(self) -> torch.Tensor:
        return self._fitted()[0]

    @property
    def images_(self) -> torch.Tensor:
        return self._fitted()[1]

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def add(
        self, embeddings: Any, images: Any = None, *, copy: bool = True, known_finite: bool = False
    ) -> None:
        """Hold more rows for the next `fit`, or, on a fitted bank, for the next `extend`.

        Args:
            embeddings: float `[n, D]`, NumPy or torch; kept as float32. All on one device.
            images: which image each row is of: int `[n]`, or one int for all. None: the rows of this call are
                one image.
            copy: False when the caller gives the rows away.
            known_finite: the caller has seen that they are. A GPU is waited for to see it here.
        """
        rows = as_rows(embeddings, "embeddings", copy)
        # In one pass: in float64 a sum of squares of float32 is finite exactly if every term is.
        squares = torch.linalg.vector_norm(rows, dtype=torch.float64).square()
        # Here, where rows can be refused alone: found by the selection, they would spoil the whole group.
        if not known_finite and not bool(torch.isfinite(squares)):
            raise ValueError("embeddings must be finite, got NaN or infinity")
        width = self._dims()
        if width is not None and rows.shape[1] != width:
            raise ValueError(f"embeddings must have {width} columns as before, got shape {tuple(rows.shape)}")
        home = self._buffer.home
        if home is not None and rows.device != home:
            raise ValueError(f"embeddings are on {rows.device}, but those before are on {home}")
        if images is None:
            known = [int(self._owners.max())] if len(self._owners) else []
            images = 1 + max(self._buffer.last_image(), *known, -1)
        numbers = image_numbers(images, len(rows))
        if len(rows) == 0:
            return
        self._buffer.add(rows, numbers, squares, self.max_buffer_bytes)
        self._num_added += len(rows)
        # After the first overflow groups are a quarter as large: the peak stays at that first buffer.
        limit = self.max_buffer_bytes if self._buffer.num_groups == 0 else self.max_buffer_bytes // 4
        if self._bytes(self._buffer.num_rows) > limit:
            self._leave_buffer(0.0)

    def mean_square_norm(self) -> float:
        """The mean squared Euclidean norm of the rows added since the last `fit` or `extend`; 0 without any.

        A GPU is waited for here alone.
        """
        return self._buffer.mean_square_norm()

    def fit(
        self,
        *,
        projection: Any = None,
        start_indices: Any = None,
        noise_floor: float = 0.0,
        progress: Progress | None = None,
    ) -> MemoryBank:
        """Select the coreset among the rows added, and make it searchable.

        Args:
            projection: float `[d, D]` in place of the map drawn from the seed.
            start_indices: rows (by order of addition) whose mean distance starts the selection, in place of
                random ones; `start_rows` draws some that do not depend on the order of the images.
            noise_floor: rows that lie within this Euclidean distance of the bank, in the projected space, do
                not enter it: they may differ from its rows by rounding alone. A bank row that such rows of
                other images equal belongs to no image (-1), and is never left out of a search.
            progress: called with the picks made and the picks to make.

        The first two need all rows in the buffer (ValueError otherwise).
        """
        if self._rows is not None:
            raise ValueError("the bank is fitted already; extend it, or make a new one")
        if self._num_added == 0:
            raise ValueError("the bank has no rows to fit; add some first")
        floor = _checked_floor(noise_floor)
        if self._buffer.num_groups:
            if projection is not None or start_indices is not None:
                raise ValueError(
                    "projection and start_indices need all rows at once, but they outgrew max_buffer_bytes="
                    f"{self.max_buffer_bytes}"
                )
            self._leave_buffer(0.0)
            kept = self._buffer.kept
            chunks, images, mapping = kept.chunks, kept.images, self.projection_
        else:
            chunks, images = self._buffer.chunks, self._buffer.images
            mapping = self._projection_for(chunks[0].shape[1], projection)
        home = self._require_home()
        size = max(1, int(self._num_added * self.coreset_fraction))
        projected = project_chunks(chunks, mapping, home)
        selected = select_above_noise(
            projected, size, floor, progress, seed=self.seed, start_indices=start_indices
        )
        rows, owners = take(chunks, selected.picks, home), selected.images(torch.cat(images), floor)
        self._set(rows, owners, make_index(self.index, rows, self.seed))
        self.projection_, self.radius_ = mapping, max(selected.reach, floor)
        self._buffer = AddedRows(self._buffer.home)
        return self

    def extend(self, embeddings: Any = None, images: Any = None, *, noise_floor: float = 0.0) -> MemoryBank:
        """Take in the normal rows added since `fit` (and `embeddings`, as `add` takes them).

        Existing rows stay. New ones enter by the same greedy rule, farthest first, until every new row lies
        within `radius_` of the bank, or within `noise_floor` if that is larger, in the projected space.
        """
        rows, _, old = self._fitted()
        floor = _checked_floor(noise_floor)
        if embeddings is not None:
            self.add(embeddings, images)
        self._leave_buffer(floor)
        kept = self._buffer.kept
        if kept.num_rows:
            first_new = len(rows)
            rows = torch.cat([rows, *kept.chunks])
            owners = torch.cat([torch.from_numpy(self._owners), *kept.images]).numpy()
            self._set(rows, owners, extended_index(old, rows, first_new))
        self._buffer = AddedRows(self._buffer.home)
        return self

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
        points = as_rows(queries, "queries", copy=False)
        if points.shape[1] != rows.shape[1]:
            raise ValueError(f"queries must have {rows.shape[1]} columns, got shape {tuple(points.shape)}")
        if points.device != rows.device:
            raise ValueError(f"queries are on {points.device}, but the bank is on {rows.device}")
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

    def to(self, device: torch.device | str) -> MemoryBank:
        """Move a fitted bank to another device."""
        rows, _, old = self._fitted()
        rows = rows.to(device)
        self._set(rows, self._owners, moved_index(old, rows))
        self._buffer.home = rows.device
        if self.projection_ is not None:
            self.projection_ = self.projection_.to(device)
        return self

    def copy(self) -> MemoryBank:
        """A bank that can be extended without touching this one; the rows are shared until then."""
        other = MemoryBank(**self.parameters())
        other._rows, other._images, other._search = self._fitted()
        other._owners, other._buffer.home = self._owners, self._buffer.home
        other.projection_, other.radius_, other._num_added = self.projection_, self.radius_, self._num_added
        return other

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("coreset_fraction", "index", "num_neighbors", "seed", "projection_dim", "max_buffer_bytes")
        return {name: getattr(self, name) for name in names}

    def state(self) -> BankState:
        """The learned part as data; `from_state` makes the bank again from it and `parameters`."""
        rows, _, index = self._fitted()
        return BankState(
            rows=rows,
            images=torch.from_numpy(self._owners),
            projection=self.projection_,
            radius=self.radius_,
            num_added=self._num_added,
            index=index.to_bytes() if isinstance(index, FaissIndex) else None,
        )

    @classmethod
    def from_state(cls, parameters: Mapping[str, Any], state: BankState) -> MemoryBank:
        """A fitted bank from `parameters` and `state` of another, on the device of the state.

        Raises ValueError or TypeError where they do not belong together, DamagedModelError for an index that
        is not the rows'.
        """
        bank = cls(**parameters)
        rows = state.rows
        if (state.index is None) != (bank.index == "flat"):
            raise ValueError(f"index={bank.index!r} does not go with a state that has {_which(state.index)}")
        owners = state.images.cpu().numpy()
        if state.index is None:
            bank._set(rows, owners, flat_index(rows))
        else:
            bank._set(rows, owners, index_from_bytes(bank.index, rows, state.index, bank.seed))
        bank._buffer.home = rows.device
        bank.projection_, bank.radius_ = state.projection, float(state.radius)
        bank._num_added = state.num_added
        return bank

    def _fitted(self) -> tuple[torch.Tensor, torch.Tensor, ExactIndex | FaissIndex]:
        if self._rows is None or self._images is None or self._search is None:
            raise NotFittedError("the memory bank is not fitted; call fit first")
        return self._rows, self._images, self._search

    def _set(
        self, rows: torch.Tensor, owners: npt.NDArray[np.int64], search: ExactIndex | FaissIndex
    ) -> None:
        self._rows, self._owners, self._search = rows, owners, search
        self._images = torch.from_numpy(owners).to(rows.device)

    def _require_home(self) -> torch.device:
        assert self._buffer.home is not None, "rows were added"
        return self._buffer.home

    def _dims(self) -> int | None:
        bank = [] if self._rows is None else [self._rows]
        chunks = bank + self._buffer.chunks + self._buffer.kept.chunks
        return int(chunks[0].shape[1]) if chunks else None

    def _bytes(self, num_rows: int) -> int:
        dims = self._dims() or 0
        return 4 * num_rows * (dims + min(dims, self.projection_dim or dims))

    def _projection_for(self, dims: int, given: Any) -> torch.Tensor | None:
        mapping = make_projection(given, dims, self.projection_dim, self.seed)
        return None if mapping is None else mapping.to(self._require_home())

    def _leave_buffer(self, noise_floor: float) -> None:
        """Take the buffered rows group by group: their coreset is kept, the rest is let go. Rows leave with
        their group: after a failure those of the groups left are still in the buffer.
        """
        groups = self._buffer.groups(lambda rows: self._bytes(rows) >= self.max_buffer_bytes // 4)
        try:
            if groups and self._rows is None and self._buffer.num_groups == 0:
                self.projection_ = self._projection_for(groups[0].chunks[0].shape[1], None)
            while groups:
                self._keep_of(groups[0], noise_floor)
                groups.pop(0)
        finally:
            for group in groups:
                for rows, numbers in zip(group.chunks, group.images, strict=True):
                    self._buffer.append(rows, numbers)

    def _keep_of(self, group: Buffer, noise_floor: float) -> None:
        home = self._require_home()
        projected = project_chunks(group.chunks, self.projection_, home)
        if self._rows is None:
            size = max(1, int(group.num_rows * min(1.0, _OVERSAMPLING * self.coreset_fraction)))
            picks = select(projected, size=size, seed=self.seed + self._buffer.num_groups)
        else:
            bank = project_chunks([self._rows, *self._buffer.kept.chunks], self.projection_, home)
            radius = max(self.radius_, noise_floor) * (1 + _ROUNDING)
            picks = select(projected, size=len(projected), radius=radius, bank=bank)
        if len(picks):
            numbers = torch.cat(group.images)[torch.from_numpy(picks)]
            self._buffer.kept.append(take(group.chunks, picks, home), numbers)
        self._buffer.num_groups += 1


def _checked_floor(noise_floor: float) -> float:
    if not 0.0 <= noise_floor < np.inf:
        raise ValueError(f"noise_floor must be a finite distance of 0 or more, got {noise_floor}")
    return float(noise_floor)


def _which(index: bytes | None) -> str:
    return "no serialised index" if index is None else "one"
