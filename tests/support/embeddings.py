"""Embeddings drawn for tests, and float64 references of what joins them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ensemblead import Embedder, EmbeddingEnsemble

Doubles = npt.NDArray[np.float64]


def members(count: int = 2) -> list[Embedder]:
    """Embedders whose networks are never needed, for ensembles of ready embeddings."""
    layers = ("layer1", "layer2", "layer3")
    return [Embedder("gabor", layer=layers[k], device="cpu") for k in range(count)]


def drawn(
    per_class: int = 12, classes: int = 5, dims: Sequence[int] = (14, 19), seed: int = 0, spread: float = 1.5
) -> tuple[list[npt.NDArray[np.float32]], list[str]]:
    """Embeddings `[N, D_k]` and labels, for which weights alone are little use.

    In some directions of every network a class has a place of its own; in others images vary by `spread`,
    whatever their class. A rotation mixes them, so that no single dimension shows the class.
    """
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(classes), per_class)
    order = generator.permutation(len(numbers))
    found = []
    for dim in dims:
        rotation = np.linalg.qr(np.random.default_rng(dim).normal(size=(dim, dim)))[0]
        places = np.random.default_rng(dim + 1).normal(size=(classes, 5))
        own = places[numbers] + 0.25 * generator.normal(size=(len(numbers), 5))
        other = spread * generator.normal(size=(len(numbers), dim - 5))
        found.append((np.concatenate([own, other], axis=1) @ rotation + 3.0)[order].astype(np.float32))
    return found, [f"class {number}" for number in numbers[order]]


def fusion(mode: str, *, count: int = 2, dim: int | None = None, seed: int = 0) -> EmbeddingEnsemble:
    """An unfitted ensemble of a learned mode."""
    return EmbeddingEnsemble(members(count), mode=mode, dim=dim, seed=seed)


def unit(rows: npt.NDArray[np.floating]) -> Doubles:
    rows = rows.astype(np.float64)
    return rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))


def standardised(vectors: Sequence[npt.NDArray[np.floating]]) -> Doubles:
    """Per dimension to mean 0 and deviation 1, of length 1 per network, concatenated."""
    doubles = [one.astype(np.float64) for one in vectors]
    return np.concatenate([unit((one - one.mean(0)) / one.std(0)) for one in doubles], axis=1)


def mean_average_precision(vectors: npt.NDArray[np.floating], labels: Sequence[object], k: int = 50) -> float:
    """mAP at k of every image against all others, by its definition."""
    similar, found = vectors.astype(np.float64) @ vectors.T, []
    for q, label in enumerate(labels):
        order = [int(i) for i in np.argsort(-similar[q], kind="stable") if i != q]
        hits = [labels[i] == label for i in order]
        total = sum(sum(hits[: i + 1]) / (i + 1) for i in range(min(k, len(hits))) if hits[i])
        found.append(total / min(sum(hits), k))
    return float(np.mean(found))
