"""A memory bank: a coreset of normal embeddings, and the nearest of them to a query."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ensemblead.common.validation import one_of, whole_number
from ensemblead.common.warnings import warn
from ensemblead.config.names import explain_unknown_keywords
from ensemblead.memory.buffer import as_rows, row_labels
from ensemblead.memory.covering import CoveringRows
from ensemblead.memory.intake import Intake, Known, Sizes
from ensemblead.memory.places import checked_radius, in_order
from ensemblead.memory.selection import ROUNDING, Progress
from ensemblead.memory.state import BankState
from ensemblead.search.faiss import FaissIndex
from ensemblead.search.plan import (
    INDEX_NAMES,
    extended_index,
    flat_index,
    index_from_bytes,
    moved_index,
)

MEMORY_BUDGET = 1_450_000_000
DEFAULT_FRACTION = 0.01
DTYPES = ("float32", "float16")


@explain_unknown_keywords
class MemoryBank(CoveringRows):
    """A coreset of embeddings (PatchCore; Roth et al. 2022), with the image every row came from.

    `add` rows as they come, then `fit`; more normal rows later with `add` and `extend`, or `extend(rows)`.
    Rows stay on the device where they were added, and are searched there (`ensemblead info` says by what).

    Args:
        coreset_fraction: share of the added rows that the bank keeps, in (0, 1]. 1 keeps all that differ,
            and nothing need be selected.
        coreset_size: how many rows the bank keeps, instead of a share; fewer if there are fewer that differ.
        index: how it is searched: "flat" is exact; "ivf", "ivfpq", "hnsw" and "sq16" are FAISS's. On a GPU
            "ivf" needs FAISS's GPU build; without it, and for the last three, queries are copied to the CPU
            for every batch, and a UserWarning says so.
        num_neighbors: default `k` of `search`.
        seed: of the projection and of the start rows; nothing else is random.
        projection_dim: rows are shortened to this many dimensions for the selection (only); None: they are
            not.
        memory_budget: bytes that rows may take until they are in the bank, the bank included. Where all rows
            fit, the selection is exactly that of `select_coreset` over all of them. Where they do not, they
            are taken group by group: every group keeps as many of its own rows as the bank will have, and
            what the groups keep is merged and reduced again (Malkomes et al. 2015).
            The bank then covers all rows within 4 times the least radius that is possible with so many, or
            2 more for every time that kept rows had to be reduced on the way. That needs the number of rows:
            say it by `expect`, or give `coreset_size`. Otherwise a group keeps twice its share, without such
            a bound. The default holds 397 images of 784 patches of 1024 dimensions. Rows of a GPU wait
            there, or, where it has less than twice this size to spare, in page-locked memory of the host.
        position_radius: compare a query only with rows at most so many cells from its place, in y and in x;
            where these are fewer than are searched for, with those of the least larger radius that holds
            enough. Needs `places` of all rows and queries, and index "flat". The selection then covers every
            square of `position_radius + 1` cells by rows of its own, as far as `coreset_size` allows. None:
            places do not matter. docs/design/position.md has the reasons.
        max_buffer_bytes: the former name of `memory_budget`.
        dtype: of the rows once they are selected: "float32", or "float16", which takes half of the memory.
            Distances are then exact for the rounded rows, and `radius_` grows by what rounding moves them.
            Needs index "flat".

    Attributes after `fit`: `rows_` of `dtype`, `[M, D]`, without repeats but for rounding to it, in selection
    order, or, with `position_radius`, in order of `places_`; `images_` int64 `[M]`; `projection_` float32
    `[d, D]` or None;
    `radius_`, a Euclidean distance in the projected space within which all rows added lie from the bank: the
    largest there is where all rows fitted, a bound above it where there were groups, and the noise floor
    where that is larger; `certificate_`, a factor: no bank of as many rows covers them within less than
    `radius_ / certificate_`. It is computed, not assumed. It is 1 where all rows lie in the bank but for
    rounding, and None where it is not known: of earlier versions' banks, and after `extend` has added rows.
    `augment_`: names of the changes of images that gave rows besides; set by who adds rows, () for none.

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
        coreset_fraction: float = DEFAULT_FRACTION,
        *,
        coreset_size: int | None = None,
        index: str = "flat",
        num_neighbors: int = 1,
        seed: int = 0,
        projection_dim: int | None = 128,
        memory_budget: int = MEMORY_BUDGET,
        position_radius: int | None = None,
        max_buffer_bytes: int | None = None,
        dtype: str = "float32",
    ) -> None:
        if not 0 < coreset_fraction <= 1:
            raise ValueError(f"coreset_fraction must be in (0, 1], got {coreset_fraction}")
        radius = checked_radius(position_radius, index)
        super().__init__(whole_number("num_neighbors", num_neighbors, 1), radius)
        self.grid: tuple[int, int] | None = None  # that all places are of, if it is known
        if coreset_size is not None:
            coreset_size = whole_number("coreset_size", coreset_size, 1)
            if coreset_fraction != DEFAULT_FRACTION:
                raise ValueError(
                    f"coreset_size is {coreset_size} and coreset_fraction {coreset_fraction}: give only one"
                )
        if max_buffer_bytes is not None:
            if memory_budget != MEMORY_BUDGET:
                raise ValueError("max_buffer_bytes is the former name of memory_budget: give only one")
            warn("max_buffer_bytes is called memory_budget now", DeprecationWarning)
            memory_budget = max_buffer_bytes
        if index not in INDEX_NAMES:
            raise ValueError(f"index must be one of {', '.join(INDEX_NAMES)}, got {index!r}")
        one_of("dtype", dtype, DTYPES)
        if dtype != "float32" and index != "flat":
            raise ValueError(
                f'dtype="{dtype}" (bank_dtype of a detector) needs index="flat", got {index!r}; "sq16" is '
                "FAISS's own"
            )
        self.dtype = dtype
        if projection_dim is not None:
            projection_dim = whole_number("projection_dim", projection_dim, 1)
        self.coreset_fraction, self.coreset_size = float(coreset_fraction), coreset_size
        self.index = index
        self.seed = whole_number("seed", seed)
        self.projection_dim = projection_dim
        self.memory_budget = whole_number("memory_budget", memory_budget, 1)
        self._num_added = 0
        self._last_image = -1  # the largest number of one added
        self._intake = Intake(self._sizes())

    def __repr__(self) -> str:
        """One line: how much of what it keeps, and what it holds."""
        kept = f"coreset_fraction={self.coreset_fraction:g}"
        if self.coreset_size is not None:
            kept = f"coreset_size={self.coreset_size}"
        holds = f"{len(self)} rows of {self.rows_.shape[1]} dimensions" if len(self) else "not fitted"
        return f"MemoryBank({kept}, index={self.index!r}), {holds}"

    @property
    def holds_all_rows(self) -> bool:
        """Whether all rows added since the last `fit` or `extend` are in the buffer: none has left with a
        group.
        """
        return self._intake.groups.count == 0

    def expect(self, num_rows: int, num_columns: int, *, beside: int = 0) -> None:
        """Say how many rows will be added for `fit` or `extend`, before the first of them.

        Where they will not fit at once they are taken by groups from the start. For `fit` each group then
        keeps what the bound on the radius needs.

        Args:
            num_rows: of all calls of `add`; some may not come.
            num_columns: D.
            beside: bytes of `memory_budget` that others need, where there will be groups.

        Raises ValueError where `memory_budget` is too small to fit a bank; it says what would do, and which
        `coreset_size`.
        """
        num_rows, num_columns = (
            whole_number(name, value, 1)
            for name, value in (("num_rows", num_rows), ("num_columns", num_columns))
        )
        beside = whole_number("beside", beside, 0)
        self._intake.expect(num_rows, num_columns, beside, extending=self._rows is not None)

    def fits(self, num_rows: int, num_columns: int) -> bool:
        """Whether so many rows can be held at once, so that the selection is exact."""
        sizes = self._sizes()
        return sizes.budget(num_columns).fits(num_rows, sizes.of(num_rows))

    def bytes_for(self, num_rows: int, num_columns: int) -> int:
        """The least `memory_budget` for which `fits` is true."""
        sizes = self._sizes()
        return sizes.budget(num_columns).at_once(num_rows, sizes.of(num_rows))

    def add(
        self,
        embeddings: Any,
        images: Any = None,
        *,
        places: Any = None,
        copy: bool = True,
        known_finite: bool = False,
    ) -> None:
        """Hold more rows for the next `fit`, or, on a fitted bank, for the next `extend`.

        Args:
            embeddings: float `[n, D]`, NumPy or torch; kept as float32. All on one device.
            images: which image each row is of: int `[n]`, or one int for all. None: the rows of this call are
                one image.
            places: int `[n, 2]`, the cell of every row, y before x, with `position_radius` and only then.
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
        home = self._intake.buffer.home
        if home is not None and rows.device != home:
            raise ValueError(f"embeddings are on {rows.device}, but those before are on {home}")
        if images is None:
            known = [int(self._owners.max())] if len(self._owners) else []
            images = 1 + max(self._last_image, *known, -1)
        labels = row_labels(images, self._checked_places(places, len(rows)), len(rows))
        if len(rows) == 0:
            return
        self._intake.add(rows, labels, squares, self._known(0.0))
        self._last_image = max(self._last_image, int(np.max(np.asarray(images))))

    def held_rows(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The rows added since the last `fit` or `extend` in the pieces they came in, and the image of each
        row: float32 `[n, D]` and int64 `[n]`. Where some have left with a group, only those that wait.
        """
        buffer = self._intake.buffer
        return [(rows, own[:, 0]) for rows, own in zip(buffer.chunks, buffer.labels, strict=True)]

    def leave_out(self, images: Collection[int]) -> None:
        """Let the rows of these images go, before `fit`, as if they had not been added.

        Raises ValueError where rows have left with a group: some of theirs may be kept.
        """
        if not self.holds_all_rows:
            raise ValueError("leave_out needs all rows at once, but they outgrew memory_budget")
        self._intake.leave_out(images)

    def mean_square_norm(self) -> float:
        """The mean squared Euclidean norm of the rows added since the last `fit` or `extend`; 0 without any.

        A GPU is waited for here alone.
        """
        return self._intake.buffer.mean_square_norm()

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
                not enter it: they may differ from its rows by rounding alone. (Where the bank keeps all rows,
                they do.) A bank row that such rows of
                other images equal belongs to no image (-1), and is never left out of a search. Where there
                were groups, equal rows are found among those that the groups have kept.
            progress: called with the picks made and the picks to make.

        The first two need all rows in the buffer (ValueError otherwise).
        """
        if self._rows is not None:
            raise ValueError("the bank is fitted already; extend it, or make a new one")
        intake = self._intake
        if intake.num_rows == 0:
            raise ValueError("the bank has no rows to fit; add some first")
        floor = _checked_floor(noise_floor)
        if self.holds_all_rows:
            chunks, labels = intake.buffer.chunks, intake.buffer.labels
            intake.projection = intake.drawn_projection(chunks[0].shape[1], projection)
            self._select(chunks, labels, intake.size, floor, progress, start_indices=start_indices)
        else:
            if projection is not None or start_indices is not None:
                raise ValueError(
                    "projection and start_indices need all rows at once, but they outgrew memory_budget="
                    f"{self.memory_budget}"
                )
            intake.leave(None)
            kept = intake.groups.kept
            chunks, labels = [one.rows for one in kept], [one.labels for one in kept]
            slack = intake.groups.slacks(intake.home)
            self._select(chunks, labels, intake.size, floor, progress, slack=slack)
            self._bound_from(intake.groups.separation(len(self)))
        self.projection_, self._blocks = intake.projection, intake.blocks
        self._taken()
        self._round()
        return self

    def extend(
        self,
        embeddings: Any = None,
        images: Any = None,
        *,
        places: Any = None,
        noise_floor: float = 0.0,
        max_rows: int | None = None,
    ) -> MemoryBank:
        """Take in the normal rows added since `fit` (and `embeddings`, as `add` takes them).

        Existing rows stay. New ones enter by the same greedy rule, farthest first, until every new row lies
        within the distance that the selection left, in the projected space, or within `noise_floor` if that
        is larger. That distance is `radius_` where all rows fitted at once.

        Rows that wait keep to `memory_budget`; the bank and the rows that enter it are held besides.

        Args:
            max_rows: where the bank would have more rows it is selected anew, of its own and the new rows, so
                that it has this many. `radius_` grows by the distance that this leaves.
        """
        self._fitted()
        floor = _checked_floor(noise_floor)
        most = None if max_rows is None else whole_number("max_rows", max_rows, 1)
        if embeddings is not None:
            self.add(embeddings, images, places=places)
        rows, _, old = self._fitted()
        self._intake.leave(self._known(floor))
        kept = self._intake.groups.kept
        chunks = [rows, *(one.rows for one in kept)]
        labels = [self._labels, *(one.labels for one in kept)]
        if self._intake.num_rows:
            # What stayed out lies within this, but for rounding.
            self.radius_ = max(self.radius_, max(self._reach, floor) * (1 + ROUNDING))
            if self._separation > 0:
                self.certificate_ = 2 * self.radius_ / self._separation
        if most is not None and sum(map(len, chunks)) > most:
            slack = torch.tensor(self.radius_, device=rows.device)
            self._select(chunks, labels, most, floor, None, slack=slack)
        elif kept:
            grown, own = in_order(torch.cat(chunks), torch.cat(labels).numpy())
            self._set(grown, own, extended_index(old, grown, len(rows)))
            self.certificate_, self._separation = None, 0.0
        self._taken()
        self._round()
        return self

    def to(self, device: torch.device | str) -> MemoryBank:
        """Move a fitted bank to another device. Raises ValueError where rows wait for `extend`."""
        rows, _, old = self._fitted()
        if self._intake.num_rows:
            raise ValueError(f"{self._intake.num_rows} rows were added: call extend before to")
        rows = rows.to(device)
        if self.projection_ is not None:
            self.projection_ = self.projection_.to(device)
        self.defects_ = None if self.defects_ is None else self.defects_.to(device)
        self._set(rows, self._labels.numpy(), moved_index(old, rows))
        self._taken()
        return self

    def copy(self) -> MemoryBank:
        """A bank that can be extended without touching this one; the rows are shared until then."""
        other = MemoryBank(**self.parameters())
        other._rows, other._images, other._search = self._fitted()
        other._num_added = self._num_added
        names = "projection_ radius_ certificate_ grid _owners _places _counts _blocks _reach _separation"
        vars(other).update({name: getattr(self, name) for name in (*names.split(), "defects_", "augment_")})
        other._taken()
        return other

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("coreset_fraction", "coreset_size", "index", "num_neighbors", "seed", "projection_dim")
        return {name: getattr(self, name) for name in (*names, "memory_budget", "position_radius", "dtype")}

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
            reach=self._reach,
            separation=self._separation,
            certificate=self.certificate_,
            places=self._places,
            place_scale=0.0 if self._blocks is None else self._blocks.scale,
            grid=self.grid,
            defects=self.defects_,
            augment=self.augment_,
        )

    @classmethod
    def from_state(cls, parameters: Mapping[str, Any], state: BankState) -> MemoryBank:
        """A fitted bank from `parameters` and `state` of another, on the device of the state.

        Raises ValueError or TypeError where they do not belong together, DamagedModelError for an index that
        is not the rows'.
        """
        bank = cls(**parameters)
        rows, labels = state.rows, state.labels(bank.index, bank.position_radius)
        if str(rows.dtype) != f"torch.{bank.dtype}":
            raise ValueError(f"dtype={bank.dtype!r} does not go with rows of {rows.dtype}")
        bank._blocks, bank.grid = bank._sizes().blocks(float(state.place_scale)), state.grid
        bank.defects_, bank.augment_ = state.defects, state.augment
        if state.index is None:
            bank._set(rows, labels, flat_index(rows))
        else:
            bank._set(rows, labels, index_from_bytes(bank.index, rows, state.index, bank.seed))
        bank.projection_, bank.radius_ = state.projection, float(state.radius)
        bank._reach = bank.radius_ if state.reach is None else float(state.reach)
        bank._separation, bank.certificate_ = float(state.separation), state.certificate
        bank._num_added = state.num_added
        bank._taken()
        return bank

    def _known(self, floor: float) -> Known | None:
        """The bank as rows that extend it see it."""
        return None if self._rows is None else Known(self._rows, self._labels, max(self._reach, floor))

    def _taken(self) -> None:
        """The rows added are in the bank: others may come."""
        self._num_added += self._intake.num_rows
        scale = 0.0 if self._blocks is None else self._blocks.scale
        self._intake = Intake(self._sizes(), self._fitted()[0].device, scale)
        self._intake.projection = self.projection_

    def _sizes(self) -> Sizes:
        return Sizes(
            self.coreset_fraction,
            self.coreset_size,
            self.memory_budget,
            self.projection_dim,
            self.seed,
            self.position_radius,
        )

    def _dims(self) -> int | None:
        return self._intake.dims if self._rows is None else int(self._rows.shape[1])


def _checked_floor(noise_floor: float) -> float:
    if not 0.0 <= noise_floor < np.inf:
        raise ValueError(f"noise_floor must be a finite distance of 0 or more, got {noise_floor}")
    return float(noise_floor)
