"""Vectors that follow from the names of images, so that whoever reads an index knows what must be in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def vector_of(name: str, dim: int = 8, version: int = 0) -> np.ndarray:
    """A random direction, float64 `[dim]`."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{version}".encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dim)
    return vector / np.linalg.norm(vector)


def vectors_of(names: Iterable[str], dim: int = 8, version: int = 0) -> np.ndarray:
    """One for each name, `[N, dim]`."""
    return np.stack([vector_of(name, dim, version) for name in names])


def clustered(count: int, dim: int, seed: int = 0, clusters: int = 40) -> np.ndarray:
    """Rows of length 1 around random centres, float32 `[count, dim]`."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim))
    rows = centres[rng.integers(clusters, size=count)] + 0.5 * rng.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
