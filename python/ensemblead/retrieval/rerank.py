"""Merging the result lists of one query."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np

from ensemblead.common.validation import one_of, some_of, whole_number

Method: TypeAlias = Literal["rrf", "score", "second_stage"]
Ranked: TypeAlias = list[tuple[Hashable, float]]

_METHODS = ("rrf", "score", "second_stage")


def rerank(
    lists: Sequence[Any], *, method: Method = "rrf", k: int = 60, weights: Sequence[float] | None = None
) -> Ranked:
    """Merges the result lists of one query to one.

    - "rrf", reciprocal rank fusion (Cormack et al., SIGIR 2009): an item scores `sum_l w_l / (k + rank_l)`
      over the lists that hold it, ranks from 1. Lists need no scores.
    - "score", CombSUM of min-max normalised scores (Fox and Shaw, TREC-2): an item scores
      `sum_l w_l * (s_l - min_l) / (max_l - min_l)`. A list that lacks it adds 0, a list of equal scores w_l.
    - "second_stage", retrieve and rerank: the first list holds the candidates of a fast search, the second
      scores some of them by a better model. The first `k` candidates are put in the order of their second
      scores. All other candidates follow in the order of the first list. Nothing is added to them.

    Args:
        lists: For each list the ids, the most similar first, or `(id, score)` pairs in that order, or a
            mapping from id to score, which is sorted. Scores grow with similarity. An id is anything that a
            dict takes as a key, but no pair, and neither None nor a negative number, which fill lists
            elsewhere. Hits of an `ImageIndex`: `[(hit.path, hit.similarity) for hit in hits[0]]`.
        method: "rrf", "score" or "second_stage".
        k: The constant of "rrf", at least 0. For "second_stage" the number of candidates that are reranked,
            at least 1. "score" does not use it.
        weights: One for each list, at least 0, not all 0; None: ones. Not for "second_stage".

    Returns:
        `(id, score)` pairs, the best first. Among equal scores that id comes first which the earlier list
        holds, there at the better rank. "second_stage" gives those that it does not rerank minus infinity.

    Raises:
        ValueError: No list, an unknown method, scores that are missing or not finite, an id twice in a list,
            a weight or k out of range, or for "second_stage" another number of lists than two.
        TypeError: A list or a number of another kind.

    Example:
        >>> import ensemblead as ead
        >>> by_colour, by_shape = ["a", "b", "c"], ["b", "d", "a"]
        >>> [name for name, score in ead.rerank([by_colour, by_shape])]
        ['b', 'a', 'd', 'c']
        >>> ead.rerank([by_colour, {"b": 0.2, "c": 0.9}], method="second_stage")
        [('c', 0.9), ('b', 0.2), ('a', -inf)]
    """
    one_of("method", method, _METHODS)
    constant = whole_number("k", k, 1 if method == "second_stage" else 0)
    if not isinstance(lists, (list, tuple)) or not lists:
        raise ValueError(f"lists must hold at least one result list, got {lists!r}")
    parsed = [_parsed(one, f"lists[{index}]") for index, one in enumerate(lists)]
    if method == "second_stage":
        return _second_stage(parsed, constant, weights)
    factors = _weights(weights, len(parsed))
    terms: dict[Hashable, list[float]] = {}
    for index, (one, factor) in enumerate(zip(parsed, factors, strict=True)):
        if method == "rrf":
            values = {name: 1.0 / (constant + rank) for rank, name in enumerate(one, start=1)}
        else:
            values = _min_max(_scores(one, f"lists[{index}]"))
        for name, value in values.items():
            terms.setdefault(name, []).append(factor * value)
    # Rounded once: equal terms make equal scores, in whatever order the lists have them.
    merged = [(name, math.fsum(values)) for name, values in terms.items()]
    return sorted(merged, key=lambda pair: -pair[1])  # stable: by list, then by rank


def _parsed(one: Any, argument: str) -> dict[Hashable, float | None]:
    """Ids in their order, and their scores, if there are any."""
    if isinstance(one, Mapping):
        pairs: list[Any] = list(one.items())
    else:
        listed = one.tolist() if isinstance(one, np.ndarray) or hasattr(one, "detach") else one
        if not isinstance(listed, (list, tuple)):
            raise TypeError(f"{argument} must be a list of ids or of (id, score) pairs, got {one!r}")
        pairs = [entry if isinstance(entry, (tuple, list)) else (entry, None) for entry in listed]
    found: dict[Hashable, float | None] = {}
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"{argument} must hold ids or (id, score) pairs, got {pair!r}")
        name, score = pair
        if name is None or (isinstance(name, (int, np.integer)) and name < 0):
            raise ValueError(f"{argument} must hold ids, and end before what fills it, got {name!r}")
        if name in found:
            raise ValueError(f"{argument} holds {name!r} twice")
        if score is not None and (isinstance(score, bool) or not isinstance(score, Real)):
            raise TypeError(f"{argument} must have numbers as scores, got {score!r} for {name!r}")
        if score is not None and not np.isfinite(float(score)):
            raise ValueError(f"{argument} must have finite scores, got {score} for {name!r}")
        found[name] = None if score is None else float(score)
    if isinstance(one, Mapping):
        scores = _scores(found, argument)
        return {name: scores[name] for name in sorted(scores, key=lambda name: -scores[name])}
    return found


def _scores(one: dict[Hashable, float | None], argument: str) -> dict[Hashable, float]:
    missing = [repr(name) for name, score in one.items() if score is None]
    if missing:
        raise ValueError(f"{argument} must have a score for every id, got none for {some_of(missing)}")
    return {name: score for name, score in one.items() if score is not None}


def _min_max(scores: dict[Hashable, float]) -> dict[Hashable, float]:
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if high == low:
        return dict.fromkeys(scores, 1.0)
    return {name: (score - low) / (high - low) for name, score in scores.items()}


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    factors = [float(weight) for weight in weights]
    if len(factors) != count:
        raise ValueError(f"weights must be one for each of the {count} lists, got {len(factors)}")
    if not all(np.isfinite(factor) and factor >= 0 for factor in factors) or not any(factors):
        raise ValueError(f"weights must be at least 0, finite and not all 0, got {factors}")
    return factors


def _second_stage(
    parsed: list[dict[Hashable, float | None]], depth: int, weights: Sequence[float] | None
) -> Ranked:
    if len(parsed) != 2 or weights is not None:
        got = f"{len(parsed)} lists" if len(parsed) != 2 else "weights"
        raise ValueError(f'method="second_stage" takes two lists and no weights, got {got}')
    candidates = list(parsed[0])
    scores = _scores(parsed[1], "lists[1]")
    scored = [(name, scores[name]) for name in candidates[:depth] if name in scores]
    scored.sort(key=lambda pair: -pair[1])
    chosen = {name for name, _ in scored}
    return scored + [(name, -np.inf) for name in candidates if name not in chosen]
