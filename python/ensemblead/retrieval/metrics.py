"""Retrieval metrics of labelled items, each of which is the query once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ensemblead.common.precision import exact_products
from ensemblead.common.validation import one_of, whole_number
from ensemblead.kernels.weighted import weighted_top_k
from ensemblead.metrics.bootstrap import Interval, interval, multiplicities
from ensemblead.metrics.inputs import as_numpy
from ensemblead.retrieval.items import Floats, Ints, Items, unit_rows

Denominator: TypeAlias = Literal["min", "relevant", "retrieved"]
_DENOMINATORS = ("min", "relevant", "retrieved")
_CHUNK = 16_000_000  # similarities of one product: 64 MB
_REPLICATES = 4_000_000  # numbers in one array of replicates


@dataclass(frozen=True)
class RetrievalMetrics:
    """What `retrieval_metrics` finds; all values lie in 0 to 1.

    Attributes:
        map: Mean average precision at k over the queries.
        macro_map: Mean over classes of the class means of average precision.
        precision: Mean share of the first k that is relevant.
        recall: Mean share of the relevant items that is among the first k.
        r_precision: Mean precision at R, for R relevant items; None where a ready list ends before.
        map_at_r: MAP@R, the mean of `1/R * sum_{i<=R} rel_i P@i` (Musgrave et al., "A Metric Learning Reality
            Check", arXiv 2003.08505); None where a ready list ends before.
        skipped: Number of queries without any relevant item, which are left out of all means.
        intervals: 95 % intervals by the metric's name.
        average_precision: float64 `[N]`, of every query; NaN for those that were left out.
        k: Depth of map, macro_map, precision and recall.
        denominator: That of average precision.
    """

    map: float
    macro_map: float
    precision: float
    recall: float
    r_precision: float | None
    map_at_r: float | None
    skipped: int
    intervals: dict[str, Interval] = field(repr=False)
    average_precision: Floats = field(repr=False)
    k: int
    denominator: str


def retrieval_metrics(
    embeddings_or_top: Any,
    labels: Any,
    *,
    k: int = 50,
    ids: Sequence[Any] | None = None,
    denominator: Denominator = "min",
    groups: Any = None,
    replicates: int = 1000,
    seed: int = 0,
) -> RetrievalMetrics:
    """Mean average precision at k and its relatives, with every item as the query once.

    An item is relevant to a query of its label. The query itself is neither relevant nor retrieved: it is
    left out by identity, wherever it stands in the list. So are all items of its group.
    `AP@k = 1/d * sum_{i<=k} rel_i P@i`, where `P@i` is the share of relevant items among the first `i`, and
    `d` is the denominator. "mAP@k" has three meanings:

    | denominator | d | also in |
    | --- | --- | --- |
    | "min" | `min(R, k)`, for R relevant items | a perfect list has 1, whatever R is |
    | "relevant" | R | ranx `map@k`; pytorch-metric-learning `mean_average_precision` |
    | "retrieved" | relevant items among the first k | torchmetrics `RetrievalMAP(top_k=k)` |

    Without any relevant item among the first k, AP is 0. torchmetrics also drops every item whose similarity
    is 0 or below. `map_at_r` and `r_precision` are pytorch-metric-learning's `mean_average_precision_at_r`
    and `r_precision`.

    Args:
        embeddings_or_top: float `[N, D]`: embeddings, compared by cosine similarity, ties by the lowest
            position. Or ready result lists `[N, m]`, the most similar first: positions of the items, or their
            `ids` where those are given; -1 (with ids: None) fills a list that is shorter. The query may stand
            in its list.
        labels: `[N]`, integers or strings.
        k: Depth, 1 to N - 1.
        ids: Names of the items `[N]`, all different; errors use them. By default positions.
        denominator: "min", "relevant" or "retrieved".
        groups: `[N]`, integers or strings: items of one group (one part, one plate) are left out for each
            other.
        replicates: Number of bootstrap replicates of the intervals; 0: no intervals.
        seed: Of the bootstrap.

    Returns:
        The metrics. Intervals hold the central 95 % of replicates in which the queries are drawn with
        replacement, with `groups` whole groups of queries; the items that are searched stay as they are. In
        a replicate of macro_map a class without a drawn query is left out.

    Memory is bounded: at most 64 MB of similarities are there at a time.

    Raises:
        ValueError: A shape, k or name out of range; a zero or non-finite embedding, named by id; duplicate
            ids; labels of one class; no query with a relevant item; a ready list that names an unknown item,
            one twice, or ends before k items.
        TypeError: `k` or `seed` no integer, or embeddings that hold no numbers.

    Example:
        >>> import ensemblead as ead
        >>> embeddings = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.55]]
        >>> found = ead.retrieval_metrics(embeddings, ["nut", "nut", "bolt", "bolt"], k=2)
        >>> found.map, found.average_precision.tolist()
        (0.875, [1.0, 1.0, 1.0, 0.5])
        >>> ead.retrieval_metrics([[1, 3], [0, 3], [3, 1], [1, 0]], [0, 0, 1, 1], k=2).map
        0.75
    """
    items = Items.of(labels, groups, ids)
    count = whole_number("k", k, 1)
    if count >= items.count:
        raise ValueError(f"k must be below the {items.count} items, got {count}")
    one_of("denominator", denominator, _DENOMINATORS)
    whole_number("replicates", replicates, 0)
    whole_number("seed", seed, 0)
    tops = _tops(embeddings_or_top, items, ids is not None, count)
    measured = _measure(tops, items, count, denominator)
    return _summary(measured, items, count, denominator, replicates, seed)


def precisions_at_hits(relevant: NDArray[np.bool_]) -> Floats:
    """`rel_i * P@i`, float64, of ranked relevance `[..., k]`: summed over i it is AP's numerator."""
    hits = np.cumsum(relevant, axis=-1, dtype=np.int32)
    return np.where(relevant, hits, 0) / np.arange(1, relevant.shape[-1] + 1)


def divisors(denominator: str, relevant: Ints, k: int, retrieved: Ints) -> Ints:
    """What AP's numerator is divided by, for counts of relevant items and of those among the first k."""
    if denominator == "retrieved":
        return retrieved
    return np.minimum(relevant, k) if denominator == "min" else relevant


def divided(sums: Floats, by: Ints) -> Floats:
    """`sums / by`, and 0 where that is 0 / 0."""
    return sums / np.maximum(by, 1)


# --- result lists ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lists:
    """Of some queries the positions retrieved `[q, m]`, -1 behind the last, without query and group."""

    queries: Ints
    positions: Ints
    is_complete: bool  # whether R items were asked for, or all that there are


def _tops(embeddings_or_top: Any, items: Items, by_name: bool, k: int) -> Iterator[_Lists]:
    try:
        given = embeddings_or_top if hasattr(embeddings_or_top, "dtype") else np.asarray(embeddings_or_top)
    except ValueError:
        raise ValueError(
            "embeddings_or_top must be one array, got rows of different lengths; fill lists that end with -1 "
            "(with ids: None)"
        ) from None
    if "float" in str(given.dtype):
        return _searched(given, items, k)
    return _ready(_positions(given, items, by_name), items, k)


def _searched(embeddings: Any, items: Items, k: int) -> Iterator[_Lists]:
    """By cosine similarity, some queries at a time."""
    rows = unit_rows(embeddings, "embeddings", items)
    depth = min(items.count, max(k, int(items.relevant_counts().max())))
    step = max(1, _CHUNK // (items.count + 4 * depth))
    for start in range(0, items.count, step):
        queries = np.arange(start, min(items.count, start + step))
        with exact_products():
            block = rows[start : start + step] @ rows.T
        exclude = torch.from_numpy(items.excluded(queries)).to(rows.device)
        _, found = weighted_top_k([block], [[1.0]], depth, exclude=exclude)
        yield _Lists(queries, found[0].cpu().numpy(), True)


def _positions(top: Any, items: Items, by_name: bool) -> Ints:
    """Ready lists as positions int64 `[N, m]`."""
    if by_name:
        place = {name: position for position, name in enumerate(items.names)}
        listed = top.tolist()
        try:
            lists = np.array([[-1 if name is None else place[name] for name in row] for row in listed])
        except KeyError as error:
            raise ValueError(f"embeddings_or_top names {error.args[0]!r}, which is none of ids") from None
    else:
        lists = as_numpy(top, "embeddings_or_top")
    if lists.ndim != 2 or len(lists) != items.count:
        raise ValueError(
            f"embeddings_or_top must be [N, D] embeddings or [N, m] lists with N = {items.count} as labels, "
            f"got shape {lists.shape}"
        )
    if lists.dtype.kind not in "iu":
        raise TypeError(
            f"embeddings_or_top must be floats (embeddings) or integers (lists), got {lists.dtype}"
        )
    lists = lists.astype(np.int64)
    if lists.size and not -1 <= lists.min() <= lists.max() < items.count:
        wrong = lists[(lists < -1) | (lists >= items.count)].flat[0]
        raise ValueError(f"embeddings_or_top must hold positions below {items.count}, got {wrong}")
    return lists


def _ready(lists: Ints, items: Items, k: int) -> Iterator[_Lists]:
    relevant, searched = items.relevant_counts(), items.searched_counts()
    step = max(1, _CHUNK // (4 * max(1, lists.shape[1]) + items.count))
    for start in range(0, items.count, step):
        queries = np.arange(start, min(items.count, start + step))
        found = lists[queries]
        twice = np.diff(np.sort(found, axis=1), axis=1) == 0
        twice &= np.sort(found, axis=1)[:, 1:] >= 0
        if twice.any():
            names = items.told(queries[twice.any(axis=1)])
            raise ValueError(f"embeddings_or_top must name every item once, got one twice for {names}")
        own = queries[:, None] if items.groups is None else items.groups[queries, None]
        of_found = found if items.groups is None else items.groups[found]
        kept = (found >= 0) & (of_found != own)
        order = np.argsort(~kept, axis=1, kind="stable")
        positions = np.take_along_axis(np.where(kept, found, -1), order, axis=1)
        ended = (found < 0).any(axis=1)
        left = kept.sum(axis=1)
        short = ~ended & (left < np.minimum(k, searched[queries]))
        if short.any():
            raise ValueError(
                f"embeddings_or_top must hold k = {k} items beside the query and its group, got "
                f"{left[short][0]} for {items.told(queries[short])}; fill lists that end with -1"
            )
        complete = ended | (left >= relevant[queries])
        yield _Lists(queries, positions, bool(complete.all()))


# --- values of queries and their means ------------------------------------------------------------


def _measure(tops: Iterator[_Lists], items: Items, k: int, denominator: str) -> dict[str, Floats]:
    """float64 `[N]` of every query, by the metric's name."""
    relevant = items.relevant_counts()
    names = ("map", "precision", "recall", "r_precision", "map_at_r")
    values = {name: np.zeros(items.count) for name in names}
    complete = True
    for lists in tops:
        queries, complete = lists.queries, complete and lists.is_complete
        wanted = relevant[queries]
        same = items.classes[lists.positions] == items.classes[queries, None]
        flags = same & (lists.positions >= 0)
        gains = precisions_at_hits(flags)
        hits = flags[:, :k].sum(axis=1)
        by = divisors(denominator, wanted, k, hits)
        values["map"][queries] = divided(gains[:, :k].sum(axis=1), by)
        values["precision"][queries] = hits / k
        values["recall"][queries] = divided(hits, wanted)
        in_r = np.arange(flags.shape[1]) < wanted[:, None]
        values["r_precision"][queries] = divided((flags & in_r).sum(axis=1), wanted)
        values["map_at_r"][queries] = divided(np.where(in_r, gains, 0).sum(axis=1), wanted)
    if not complete:
        del values["r_precision"], values["map_at_r"]
    return values


def _summary(
    values: dict[str, Floats], items: Items, k: int, denominator: str, replicates: int, seed: int
) -> RetrievalMetrics:
    asked = items.relevant_counts() > 0
    if not asked.any():
        raise ValueError("labels leave no query with a relevant item outside of its group")
    chosen = {name: of_queries[asked] for name, of_queries in values.items()}
    means = {name: float(of_queries.mean()) for name, of_queries in chosen.items()}
    classes = items.classes[asked]
    precision = np.where(asked, values["map"], np.nan)
    return RetrievalMetrics(
        map=means["map"],
        macro_map=float(macro_weights(classes) @ chosen["map"]),
        precision=means["precision"],
        recall=means["recall"],
        r_precision=means.get("r_precision"),
        map_at_r=means.get("map_at_r"),
        skipped=int((~asked).sum()),
        intervals=_intervals(chosen, classes, items.units(np.flatnonzero(asked)), replicates, seed)
        if replicates
        else {},
        average_precision=precision,
        k=k,
        denominator=denominator,
    )


def macro_weights(classes: Ints) -> Floats:
    """Factors `[Q]` that make a sum over queries the mean over classes of their means."""
    _, numbers, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(sizes) * sizes[numbers]))


def _intervals(
    values: dict[str, Floats], classes: Ints, units: Ints, replicates: int, seed: int
) -> dict[str, Interval]:
    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    table = np.stack(list(values.values()), axis=1)
    means, macro = [], []
    for drawn in draws(units, replicates, seed):
        means.append(drawn @ table / drawn.sum(axis=1, keepdims=True))
        sizes = np.add.reduceat(drawn[:, order], starts, axis=1)
        sums = np.add.reduceat(drawn[:, order] * values["map"][order], starts, axis=1)
        macro.append((sums / np.maximum(sizes, 1)).sum(axis=1) / (sizes > 0).sum(axis=1))
    found = {
        name: interval(column, 0.95) for name, column in zip(values, np.concatenate(means).T, strict=True)
    }
    return found | {"macro_map": interval(np.concatenate(macro), 0.95)}


def draws(units: Ints, replicates: int, seed: int) -> Iterator[Floats]:
    """[r, queries]: how often each query is drawn, some replicates at a time. Units are drawn with
    replacement, as many as there are; all queries of a unit come with it.
    """
    rng = np.random.default_rng(seed)
    everything = np.ones(int(units.max()) + 1, np.bool_)
    step = max(1, _REPLICATES // len(units))
    for start in range(0, replicates, step):
        yield multiplicities(everything, min(step, replicates - start), rng)[:, units]
