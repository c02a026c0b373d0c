"""Labelled embeddings and result lists of the retrieval tests, and of tools/record_retrieval.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]

DEPTH, DEEP = 8, 45  # k of the recorded metrics
FUSED = 60  # k of the recorded reciprocal rank fusion


def labelled(count: int = 60, dims: int = 6, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, D] and int64 [N]: classes of 1 to 19 items, so that R is below k, above it, and 0."""
    rng = np.random.default_rng(seed)
    labels = np.sort(np.minimum(rng.geometric(0.2, count), 9)) - 1
    labels[-1] = 20
    centres = rng.standard_normal((21, dims))
    noise = rng.standard_normal((count, dims))
    return (centres[labels] + 1.2 * noise).astype(np.float32), labels.astype(np.int64)


def cosines(embeddings: np.ndarray) -> Float64:
    rows = embeddings.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows @ rows.T)


def ranked_lists() -> list[tuple[list[str], list[float]]]:
    """Three lists of names and descending scores, of one query."""
    return [
        (["a", "b", "c", "d"], [9.0, 4.0, 3.0, 1.0]),
        (["c", "e", "a"], [0.9, 0.8, 0.1]),
        (["f", "a"], [-2.0, -5.0]),
    ]


def average_precisions(
    similarities: Float64,
    labels: Sequence[Any],
    k: int,
    denominator: str,
    groups: Sequence[Any] | None = None,
) -> list[float]:
    """AP@k of every query by the definition; NaN without a relevant item."""
    found = []
    for q in range(len(labels)):
        others = [n for n in range(len(labels)) if (n != q if groups is None else groups[n] != groups[q])]
        others.sort(key=lambda n: (-similarities[q, n], n))
        relevant = [labels[n] == labels[q] for n in others]
        total, hits = 0.0, 0
        for rank, is_relevant in enumerate(relevant[:k], start=1):
            hits += is_relevant
            total += is_relevant * hits / rank
        by = {"min": min(sum(relevant), k), "relevant": sum(relevant), "retrieved": max(hits, 1)}[denominator]
        found.append(total / by if sum(relevant) else float("nan"))
    return found
