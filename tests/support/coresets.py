"""Features of many kinds, and selections of coresets by the core itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from support import reference

from ensemblead import _core

Array = np.ndarray[Any, Any]


TOLERANCE = 1e-4


def core_picks(
    features: Array,
    size: int,
    *,
    start: str = "mean",
    start_rows: Sequence[int] | Array = (0,),
    bank: Array | None = None,
    radius: float = -1.0,
    num_threads: int = 0,
    plain: bool = False,
    num_candidates: int = 0,
) -> Array:
    """The core's own selection, which can be told how to work."""
    picks = np.full(size, -1, np.int64)
    count, _ = _core.select_coreset(
        features,
        picks,
        start=start,
        start_rows=np.asarray(start_rows, np.int64),
        bank=bank,
        radius=radius,
        num_threads=num_threads,
        plain=plain,
        progress=None,
        num_candidates=num_candidates,
    )
    return picks[:count]


def integers(rows: int, dims: int, *, spread: int, distinct: int | None = None, seed: int = 0) -> Array:
    """[rows, dims] of -spread..spread; at most `distinct` different rows."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(-spread, spread + 1, (distinct or rows, dims)).astype(np.float32)
    return kinds if distinct is None else kinds[rng.integers(0, distinct, rows)]


LARGE = {
    "whole": dict(rows=3000, dims=3, spread=9, size=3000),  # several blocks of picks
    "whole and distinct": dict(rows=2500, dims=40, spread=5, size=2500),
    "equal values fill the candidates": dict(rows=20000, dims=2, spread=3, size=60),
    "one dimension": dict(rows=9000, dims=1, spread=2000, size=500),
    "duplicates run out": dict(rows=9000, dims=6, spread=1, distinct=300, size=700),
    "beyond the first-level cache": dict(rows=5000, dims=260, spread=2, size=200),
}


def cluttered(rows: int, dims: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, dims), dtype=np.float32)


def clustered(rows: int, dims: int, *, apart: float = 5.0, width: float = 0.1, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    centres = apart * rng.standard_normal((25, dims))
    noise = width * rng.standard_normal((rows, dims))
    return (centres[rng.integers(0, 25, rows)] + noise).astype(np.float32)


def low_rank(rows: int, dims: int, *, rank: int = 10, noise: float = 0.05, seed: int = 0) -> Array:
    """As features of networks are: a few directions hold most of the variance."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((rank, dims)) / np.arange(1, rank + 1)[:, None]
    rest = noise * rng.standard_normal((rows, dims))
    return (rng.standard_normal((rows, rank)) @ directions + rest).astype(np.float32)


def with_outliers(rows: int, dims: int) -> Array:
    features = cluttered(rows, dims)
    features[::997] *= np.float32(1e4)
    return features


KINDS: dict[str, Callable[[int, int], Array]] = {
    "noise": cluttered,
    "clusters": clustered,
    "tight clusters far apart": functools.partial(clustered, apart=1000.0, width=1e-3),
    "low rank": low_rank,
    "outliers": with_outliers,
    "offset 100": lambda rows, dims: cluttered(rows, dims) + np.float32(100),
    "offset 10000": lambda rows, dims: cluttered(rows, dims) + np.float32(10000),
    "clusters, offset 100": lambda rows, dims: clustered(rows, dims) + np.float32(100),
    "clusters, offset 10000": lambda rows, dims: clustered(rows, dims) + np.float32(10000),
    "scaled by 1e-25": lambda rows, dims: clustered(rows, dims) * np.float32(1e-25),
    "scaled by 1e+25": lambda rows, dims: clustered(rows, dims) * np.float32(1e25),
    "denormal": lambda rows, dims: cluttered(rows, dims) * np.float32(1e-41),
    "almost the largest": lambda rows, dims: np.clip(cluttered(rows, dims), -3, 3) * np.float32(1.1e38),
}

STARTS = ("mean", "row", "bank")


def start_options(features: Array, start: str, seed: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    if start == "bank":
        near = features[rng.integers(0, len(features), 150)]
        return {"bank": near + np.float32(0.01) * np.abs(near).max() * cluttered(*near.shape, seed=seed)}
    count = min(10 if start == "mean" else 1, len(features))
    return {"start": start, "start_rows": rng.choice(len(features), count, replace=False)}


def initial_values(features: Array, options: dict[str, Any]) -> Array | None:
    if options.get("start") == "row":
        return None
    return reference.coreset_start_values(
        features, start_rows=options.get("start_rows"), bank=options.get("bank")
    )


def shortfall_by_products(features: Array, picks: Array, values: Array | None) -> float:
    """`reference.coreset_shortfall` for many picks, by float64 products; not for tight clusters far apart."""
    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    norms = (x**2).sum(axis=1)
    before = np.full(len(x), np.inf) if values is None else values
    worst = 0.0
    for first in range(0, len(picks), 128):
        block = picks[first : first + 128]
        squared = norms[:, None] - 2 * x @ x[block].T + norms[block]
        distances = np.sqrt(np.maximum(squared, 0))
        turns = np.minimum.accumulate(np.column_stack([before, distances]), axis=1)
        largest = turns[:, :-1].max(axis=0)
        finite = np.isfinite(largest) & (largest > 0)
        shares = turns[block, np.arange(len(block))][finite] / largest[finite]
        worst = max(worst, 1.0 - float(shares.min(initial=1.0)))
        before = turns[:, -1]
    return worst


def features_of(rows: int, dims: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, dims), dtype=np.float32)


def core_select(features: Any, picks: Any, **options: Any) -> tuple[int, dict[str, int]]:
    defaults: dict[str, Any] = {
        "start": "mean",
        "start_rows": np.zeros(1, np.int64),
        "bank": None,
        "radius": -1.0,
        "num_threads": 0,
        "plain": False,
        "progress": None,
    }
    return _core.select_coreset(features, picks, **{**defaults, **options})
