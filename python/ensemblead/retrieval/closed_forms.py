"""Joining without an optimiser: whitening by principal components, and linear discriminant analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.extras import require
from ensemblead.retrieval.joining import Doubles, row_slices

Floats = npt.NDArray[np.float32]
# Principal components that discriminants are sought among: more than most sets have classes, and few enough
# for a covariance within classes.
LDA_COMPONENTS = 128
# A component of less than this share of the first one's variance is rounding.
_RANK = 1e-10


def principal_components(vectors: Floats) -> tuple[Doubles, Doubles, Doubles]:
    """Mean `[D]`, variances `[R]` in descending order and directions `[R, D]` of vectors `[N, D]`, R their
    rank. Each direction's largest value is positive, so that equal vectors give equal signs.
    """
    count, dims = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64)
    if count > dims:
        covariance = np.zeros((dims, dims))
        for rows in row_slices(count):
            centred = vectors[rows] - mean
            covariance += centred.T @ centred
        values, turned = np.linalg.eigh(covariance / (count - 1))
        directions = turned.T
    else:
        # As many equations as vectors, not as dimensions: the same components.
        centred = vectors - mean
        values, turned = np.linalg.eigh(centred @ centred.T / (count - 1))
        directions = turned.T @ centred
    kept = np.flatnonzero(values > _RANK * values[-1])[::-1]
    directions = directions[kept] / np.linalg.norm(directions[kept], axis=1, keepdims=True)
    return mean, values[kept], _signed(directions)


def whitening(vectors: Floats, dim: int) -> tuple[Doubles, Doubles]:
    """Map `[dim, D]` and offset `[dim]` after which vectors `[N, D]` have mean 0 and covariance 1.

    Raises ValueError for a `dim` above the vectors' rank.
    """
    mean, variances, directions = principal_components(vectors)
    if dim > len(variances):
        raise ValueError(
            f"dim must be at most {len(variances)}, the rank of these {len(vectors)} embeddings, got {dim}"
        )
    matrix = directions[:dim] / np.sqrt(variances[:dim, None])
    return matrix, -matrix @ mean


def discriminants(vectors: Floats, labels: npt.NDArray[np.int64], dim: int | None) -> tuple[Doubles, Doubles]:
    """Map `[dim, D]` and offset `[dim]` of linear discriminant analysis; None: classes - 1 dimensions.

    Among up to 128 principal components those directions are found whose variance between classes is
    largest against that within them. The covariance within is shrunk (Ledoit and Wolf, 2004); the mapped
    vectors have it as their unit.

    Raises ValueError for a `dim` above classes - 1 or the vectors' rank, and where no class varies.
    """
    counts = np.bincount(labels)
    mean, _, directions = principal_components(vectors)
    directions = directions[:LDA_COMPONENTS]
    most = min(len(counts) - 1, len(directions))
    dim = most if dim is None else dim
    if dim > most:
        raise ValueError(f"dim must be at most {most} with {len(counts)} classes and mode 'lda', got {dim}")
    reduced = np.concatenate([(vectors[rows] - mean) @ directions.T for rows in row_slices(len(vectors))])
    sums = np.zeros((len(counts), reduced.shape[1]))
    np.add.at(sums, labels, reduced)
    means = sums / counts[:, None]
    residuals = reduced - means[labels]
    if not np.abs(residuals).max() > _RANK * np.abs(means).max():
        raise ValueError("labels: mode 'lda' needs a class of two different images, but no class varies")
    covariance: Any = require("sklearn", "mode 'lda'") and _ledoit_wolf(residuals)
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    between = (means.T * counts) @ means / len(labels)
    _, turned = np.linalg.eigh(inverse @ between @ inverse.T)
    matrix = _signed(turned.T[::-1][:dim] @ inverse) @ directions
    return matrix, -matrix @ mean


def _ledoit_wolf(residuals: Doubles) -> Doubles:
    from sklearn.covariance import ledoit_wolf

    covariance: Doubles = ledoit_wolf(residuals, assume_centered=True)[0]
    return covariance


def _signed(rows: Doubles) -> Doubles:
    """Rows whose largest value is positive."""
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    return rows * np.sign(largest)
