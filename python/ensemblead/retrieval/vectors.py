"""Vectors as an index takes them: checked, and scaled to length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.metrics.inputs import as_numpy
from ensemblead.search.cosine import Floats


def as_vectors(name: str, values: Any, dim: int | None = None) -> Floats:
    """Floats `[N, D]` as they are, integers of a list as floats.

    Raises TypeError for other kinds, ValueError for another shape.
    """
    array = as_numpy(values, name)
    if isinstance(values, (list, tuple)) and array.dtype.kind in "iu":
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be floats, got {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be [N, D] and not empty, got shape {array.shape}")
    if dim is not None and array.shape[1] != dim:
        raise ValueError(f"{name} must have {dim} dimensions, as the index has, got {array.shape[1]}")
    return array


def unit_vectors(name: str, vectors: npt.NDArray[Any], names: Sequence[str]) -> Floats:
    """Vectors scaled to length 1, float32. Raises ValueError for zeros and what is not finite."""
    scaled = np.empty(vectors.shape, dtype=np.float32)
    for i, vector in enumerate(vectors):
        reason, unit = unit_vector(vector)
        if reason:
            raise ValueError(f"{name} {names[i]}: its vector is {reason}")
        scaled[i] = unit
    return scaled


def unit_vector(vector: npt.NDArray[Any]) -> tuple[str, npt.NDArray[np.float64]]:
    """What is wrong with a vector, or nothing; and it at length 1."""
    wide = vector.astype(np.float64)
    largest = float(np.abs(wide).max())
    if not np.isfinite(largest):
        return "not finite", wide
    if largest == 0.0:
        return "zero", wide
    wide /= largest  # squares neither overflow nor vanish
    return "", wide / np.sqrt(np.square(wide).sum())
