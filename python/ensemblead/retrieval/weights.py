"""Grid search over the weights of joined embeddings: similarities once, all combinations in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ensemblead.common.extras import require
from ensemblead.common.files import StrPath, csv_line, write_atomically
from ensemblead.common.precision import exact_products
from ensemblead.common.validation import one_of, whole_number
from ensemblead.kernels.weighted import weighted_top_k
from ensemblead.metrics.bootstrap import Interval, interval
from ensemblead.retrieval.items import Floats, Ints, Items, checked_rows, unit_rows
from ensemblead.retrieval.metrics import draws, macro_weights, precisions_at_hits

Normalize: TypeAlias = Literal["each", "joint"]
Progress: TypeAlias = Callable[[str, int, int], object]

_MOST_COMBINATIONS = 100_000
_MOST_QUERIES, _MOST_AT_ONCE = 512, 128  # of one product, and combinations of one pass
_REPLICATES = 1000
_RESULT_BYTES = 40  # of one retrieved item, until it is a precision


@dataclass(frozen=True)
class WeightRow:
    """One combination of weights. `interval` and `holdout_interval` are 95 % intervals of the two means.

    Those of the queries that were held out are None if none were.
    """

    weights: tuple[float, ...]
    rank: int
    map: float
    macro_map: float
    interval: Interval
    holdout_map: float | None
    holdout_macro_map: float | None
    holdout_interval: Interval | None


@dataclass(frozen=True)
class WeightTable:
    """What `search_weights` finds: rows by rank, the best first.

    Attributes:
        rows: One for every combination; proportional ones share one.
        k: Depth of the mean average precision.
        normalize: "each" or "joint".
        queries: Number of queries that decided the ranks.
        holdout_queries: Number of queries that decided nothing.
        skipped: Number of items without any relevant item, which are no queries.
    """

    rows: tuple[WeightRow, ...]
    k: int
    normalize: str
    queries: int
    holdout_queries: int
    skipped: int

    def __repr__(self) -> str:
        return f"WeightTable({len(self.rows)} combinations, {self.queries} queries, best {self.best.map:.4f})"

    @property
    def best(self) -> WeightRow:
        """The row of rank 1. Its `holdout_map` is the figure to report: `map` chose it."""
        return self.rows[0]

    def columns(self) -> dict[str, list[Any]]:
        """The table by columns: rank, weight_1 to weight_K, map, macro_map, low, high, and those of the
        queries that were held out.
        """
        table: dict[str, list[Any]] = {"rank": [row.rank for row in self.rows]}
        for network in range(len(self.best.weights)):
            table[f"weight_{network + 1}"] = [row.weights[network] for row in self.rows]
        table["map"] = [row.map for row in self.rows]
        table["macro_map"] = [row.macro_map for row in self.rows]
        table["low"], table["high"] = ([row.interval[end] for row in self.rows] for end in (0, 1))
        table["holdout_map"] = [row.holdout_map for row in self.rows]
        table["holdout_macro_map"] = [row.holdout_macro_map for row in self.rows]
        for end, name in enumerate(("holdout_low", "holdout_high")):
            table[name] = [row.holdout_interval[end] if row.holdout_interval else None for row in self.rows]
        return table

    def to_csv(self, path: StrPath) -> None:
        """Write the table as csv, whole or not at all; a value that there is none of is empty."""
        table = self.columns()
        lines = [csv_line(table)]
        rows = zip(*table.values(), strict=True)
        lines += [csv_line("" if cell is None else cell for cell in cells) for cells in rows]
        write_atomically(path, "".join(lines))

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame; MissingExtraError where pandas is not installed."""
        return require("pandas", "WeightTable.to_pandas").DataFrame(self.columns())


def search_weights(
    embeddings: Sequence[Any],
    labels: Any,
    *,
    grid: Iterable[Any] = range(1, 6),
    k: int = 50,
    normalize: Normalize = "each",
    groups: Any = None,
    holdout: float = 0.5,
    max_queries: int | None = None,
    memory_budget: int = 512_000_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> WeightTable:
    """Measures every combination of weights by mean average precision at k, and ranks them.

    A combination joins the networks' embeddings of an item to one vector, and items are compared by cosine
    similarity. `normalize="each"`: `concat_k(w_k x_k / |x_k|)`. `normalize="joint"`: `concat_k(w_k x_k)`, as
    published for ImageNet. No vector is joined here. With similarities `S_k` of the networks, items are
    ordered exactly by `sum_k w_k^2 S_k`, for "joint" by `sum_k w_k^2 S_k / sqrt(sum_k w_k^2 |x_k|^2)`. So
    products are made once for each network, and all combinations are summed and ranked in one pass.

    The metric is that of `retrieval_metrics`, with its denominator "min": the query is left out, and so is
    its group.
    Proportional weights order alike and share one row, that of the first: 125 combinations of three weights
    of 1 to 5 have 115 rows.

    Args:
        embeddings: One array float `[N, D_k]` for each network, NumPy or torch, all of the same items. Torch
            tensors on a GPU are searched there.
        labels: `[N]`, integers or strings.
        grid: The values of every network's weight, or the combinations themselves `[W, K]`. Weights are not
            negative. 0 leaves a network out; a combination of zeros alone is left out of a grid.
        k: Depth, 1 to N - 1.
        normalize: "each" or "joint".
        groups: `[N]`: items of one group are left out for each other, and are held out together.
        holdout: Share of the queries that choose nothing, in 0 to below 1; all items are searched by all
            queries. The mean of the best row over them is no longer optimistic by having been chosen. Without
            `groups` it has the same share of every class.
        max_queries: At most so many queries, drawn at random; None: all.
        memory_budget: Bytes for similarities and results, beyond the embeddings and a copy of them. What one
            query and one combination need is taken in any case.
        seed: Of what is held out, of `max_queries`, and of the bootstrap.
        progress: Called as `progress("weights", done, total)`. An exception in it ends the search.

    Returns:
        The table. Its intervals are central 95 % intervals of 1000 replicates in which the queries, with
        `groups` whole groups of them, are drawn with replacement.

    Raises:
        ValueError: A shape or value out of range; zero or non-finite embeddings; labels of one class;
            negative or non-finite weights, or all of them zero; more than 100,000 combinations; no query to
            choose by or, with a holdout, to hold out.
        TypeError: Embeddings that are no list of arrays, or numbers of another kind.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(60) % 3
        >>> sharp = np.eye(3)[labels] + 0.3 * rng.standard_normal((60, 3))
        >>> blurred = np.eye(3)[labels] + 3.0 * rng.standard_normal((60, 3))
        >>> table = ead.search_weights([sharp, blurred], labels, grid=[0, 1, 2], k=10)
        >>> len(table.rows), table.best.weights[0] > table.best.weights[1]
        (5, True)
    """
    if not isinstance(embeddings, (list, tuple)) or not embeddings:
        raise TypeError(
            f"embeddings must be a list of one array per network, got {type(embeddings).__name__}"
        )
    plan = planned_search(len(embeddings), labels, grid, k, groups, holdout, max_queries, seed)
    items, count, combinations, chosen, held = plan
    one_of("normalize", normalize, ("each", "joint"))
    whole_number("memory_budget", memory_budget, 1)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got {type(progress).__name__}")
    search = _Search(embeddings, items, count, normalize == "joint", memory_budget)
    queries = np.concatenate([chosen, held])
    parts: list[list[_Means]] = [[], []]
    weights = np.array(combinations)
    step = max(1, memory_budget // 4 // max(4 * len(queries), 16 * _REPLICATES))
    for start in range(0, len(weights), step):
        some = weights[start : start + step]
        report = _report(progress, start * len(queries), len(some), len(weights) * len(queries))
        precision = search.average_precision(queries, some, report)
        parts[0].append(_means(precision[:, : len(chosen)], items, chosen, seed))
        if len(held):
            parts[1].append(_means(precision[:, len(chosen) :], items, held, seed))
    rows = _ranked(combinations, parts[0], parts[1])
    skipped = int((items.relevant_counts() == 0).sum())
    return WeightTable(rows, count, normalize, len(chosen), len(held), skipped)


# --- combinations and queries ---------------------------------------------------------------------


class Plan(NamedTuple):
    """What a search is of: items, depth, combinations, the queries that choose, and those held out."""

    items: Items
    k: int
    combinations: list[tuple[float, ...]]
    chosen: Ints
    held: Ints


def planned_search(
    networks: int,
    labels: Any,
    grid: Iterable[Any],
    k: int,
    groups: Any,
    holdout: float,
    max_queries: int | None,
    seed: int,
) -> Plan:
    """Arguments of `search_weights`, checked before there are embeddings; errors as there."""
    items = Items.of(labels, groups)
    count = whole_number("k", k, 1)
    if count >= items.count:
        raise ValueError(f"k must be below the {items.count} items, got {count}")
    combinations = distinct_combinations(grid, networks)
    split = _split(items, holdout, max_queries, whole_number("seed", seed, 0))
    return Plan(items, count, combinations, *split)


def distinct_combinations(grid: Iterable[Any], networks: int) -> list[tuple[float, ...]]:
    """The combinations of a grid, or those given `[W, K]`, without those proportional to an earlier one.

    Raises:
        ValueError: see `search_weights`.
        TypeError: what is no number.
    """
    if isinstance(grid, str) or not isinstance(grid, Iterable):
        raise TypeError(f"grid must hold numbers, or rows of {networks} numbers, got {grid!r}")
    some = itertools.islice(grid, _MOST_COMBINATIONS + 1)
    listed = [value.tolist() if hasattr(value, "tolist") else value for value in some]
    explicit = bool(listed) and all(isinstance(row, (list, tuple)) for row in listed)
    total = len(listed) if explicit else len(listed) ** networks
    if not 0 < total <= _MOST_COMBINATIONS:
        got = f"{total:,}" if len(listed) <= _MOST_COMBINATIONS else "more"
        raise ValueError(f"grid must have 1 to {_MOST_COMBINATIONS:,} combinations, got {got}")
    rows = listed if explicit else list(itertools.product(listed, repeat=networks))
    try:
        weights = np.array(rows, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"grid must hold numbers, or rows of {networks} numbers, got {listed[:3]!r}"
        ) from None
    if weights.shape != (total, networks):
        raise ValueError(f"grid must have a weight for each of the {networks} networks, got {listed[0]!r}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise ValueError(f"grid must hold finite weights that are not negative, got {wrong:g}")
    largest = weights.max(axis=1)
    if not (largest.all() if explicit else largest.any()):
        raise ValueError("grid has weights that are all zero, which join nothing")
    found: dict[tuple[float, ...], tuple[float, ...]] = {}
    for row, most in zip(weights, largest, strict=True):
        if most > 0:
            found.setdefault(tuple(np.round(row / most, 9).tolist()), tuple(row.tolist()))
    return list(found.values())


def _split(items: Items, holdout: float, max_queries: int | None, seed: int) -> tuple[Ints, Ints]:
    """The queries that choose and those held out, positions in ascending order."""
    if isinstance(holdout, bool) or not isinstance(holdout, (int, float)):
        raise TypeError(f"holdout must be a number, got {holdout!r}")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be at least 0 and below 1, got {holdout}")
    rng = np.random.default_rng(seed)
    queries = rng.permutation(np.flatnonzero(items.relevant_counts() > 0))
    if max_queries is not None:
        queries = queries[: whole_number("max_queries", max_queries, 1)]
    if items.groups is None:
        queries = queries[np.argsort(items.classes[queries], kind="stable")]
        number = np.arange(len(queries))
    else:
        number = np.unique(items.groups[queries], return_inverse=True)[1]
        number = rng.permutation(int(number.max(initial=-1)) + 1)[number]
    # Every (1 / holdout)-th of what is numbered.
    is_held = np.floor((number + 1) * holdout) > np.floor(number * holdout)
    chosen, held = np.sort(queries[~is_held]), np.sort(queries[is_held])
    if not len(chosen) or (holdout > 0 and not len(held)):
        raise ValueError(
            f"labels leave {len(chosen)} queries to choose by and {len(held)} held out, for holdout = "
            f"{holdout}; there must be one at least"
        )
    return chosen, held


def _report(progress: Progress | None, done: int, weight: int, total: int) -> Callable[[int], object]:
    return lambda queries: None if progress is None else progress("weights", done + weight * queries, total)


# --- average precision ----------------------------------------------------------------------------


class _Search:
    """The networks' embeddings, made ready for products."""

    def __init__(
        self, embeddings: Sequence[Any], items: Items, k: int, joint: bool, memory_budget: int
    ) -> None:
        self._items, self._k, self._at_once = items, k, _MOST_AT_ONCE
        self._factors = np.ones(len(embeddings))
        self._squares: Floats | None = None
        arguments = [f"embeddings[{index}]" for index in range(len(embeddings))]
        if joint:
            checked = [
                checked_rows(one, name, items) for one, name in zip(embeddings, arguments, strict=True)
            ]
            # By powers of two, which change no bit, so that no product is beyond float32. The weights are
            # multiplied by them instead.
            largest = np.array([float(lengths.max()) for _, lengths in checked])
            self._factors = 2.0 ** np.ceil(np.log2(largest))
            scaled = list(zip(checked, self._factors.tolist(), strict=True))
            self._rows = [(rows.double() / by).float().contiguous() for (rows, _), by in scaled]
            self._squares = np.stack([(lengths / by).square().cpu().numpy() for (_, lengths), by in scaled])
            self._at_once = int(np.clip(memory_budget // 4 // (4 * items.count), 1, _MOST_AT_ONCE))
        else:
            self._rows = [
                unit_rows(one, name, items) for one, name in zip(embeddings, arguments, strict=True)
            ]
        needed = items.count * (4 * len(embeddings) + 1) + self._at_once * k * _RESULT_BYTES
        self._step = int(np.clip(memory_budget // 2 // needed, 1, _MOST_QUERIES))

    def average_precision(
        self, queries: Ints, weights: Floats, report: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """float32 `[W, Q]`."""
        found = np.empty((len(weights), len(queries)), np.float32)
        relevant = np.minimum(self._items.relevant_counts(), self._k)
        for start in range(0, len(queries), self._step):
            some = queries[start : start + self._step]
            blocks = self._blocks(some)
            exclude = torch.from_numpy(self._items.excluded(some)).to(blocks[0].device)
            for first, flags in self._relevance(blocks, weights, exclude, some):
                sums = precisions_at_hits(flags).sum(axis=2)
                found[first : first + len(flags), start : start + len(some)] = sums / relevant[some]
            report(start + len(some))
        return found

    def _blocks(self, queries: Ints) -> list[torch.Tensor]:
        with exact_products():
            return [rows[torch.from_numpy(queries).to(rows.device)] @ rows.T for rows in self._rows]

    def _relevance(
        self, blocks: list[torch.Tensor], weights: Floats, exclude: torch.Tensor, queries: Ints
    ) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The first combination, and whether what is retrieved is relevant `[w, q, k]`."""
        classes = self._items.classes
        for first in range(0, len(weights), self._at_once):
            some = weights[first : first + self._at_once]
            some = some / some.max(axis=1, keepdims=True) * self._factors
            squares = np.square(some / some.max(axis=1, keepdims=True))
            scales = None
            if self._squares is not None:
                scales = torch.empty(len(squares), self._items.count)
                for row, of_items in zip(squares, scales.numpy(), strict=True):
                    of_items[:] = (row @ self._squares) ** -0.5
                scales = scales.to(exclude.device)
            _, top = weighted_top_k(blocks, squares, self._k, exclude=exclude, scales=scales)
            indices = top.cpu().numpy()
            yield first, (classes[indices] == classes[queries][:, None]) & (indices >= 0)


# --- rows of the table ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Means:
    """Of some combinations over some queries."""

    micro: Floats
    macro: Floats
    intervals: list[Interval]


def _means(precision: NDArray[np.float32], items: Items, queries: Ints, seed: int) -> _Means:
    values = precision.T.astype(np.float64)
    samples = [
        drawn @ values / drawn.sum(axis=1, keepdims=True)
        for drawn in draws(items.units(queries), _REPLICATES, seed)
    ]
    ends = [interval(column, 0.95) for column in np.concatenate(samples).T]
    return _Means(values.mean(axis=0), macro_weights(items.classes[queries]) @ values, ends)


def _ranked(
    combinations: list[tuple[float, ...]], chosen: list[_Means], held: list[_Means]
) -> tuple[WeightRow, ...]:
    micro, macro = (np.concatenate([getattr(part, name) for part in chosen]) for name in ("micro", "macro"))
    intervals = [ends for part in chosen for ends in part.intervals]
    held_micro = np.concatenate([part.micro for part in held]).tolist() if held else None
    held_macro = np.concatenate([part.macro for part in held]).tolist() if held else None
    held_intervals = [ends for part in held for ends in part.intervals]
    rows = []
    for rank, index in enumerate(np.argsort(-micro, kind="stable").tolist(), start=1):
        rows.append(
            WeightRow(
                combinations[index],
                rank,
                float(micro[index]),
                float(macro[index]),
                intervals[index],
                held_micro[index] if held_micro else None,
                held_macro[index] if held_macro else None,
                held_intervals[index] if held_intervals else None,
            )
        )
    return tuple(rows)
