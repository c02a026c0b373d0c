"""Vectors of several networks joined to one: what was learned for it, and how it is applied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.retrieval.checks import Matrix, check_nonzero

Doubles = npt.NDArray[np.float64]
# Rows that are joined at a time, in float64.
_ROWS = 4096
# A dimension whose deviation is below this share of its largest value is constant but for float32's rounding.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of every dimension of one network's vectors.

    Attributes:
        mean, std: float64 `[D_k]`. Where nothing varies `std` is 1.
    """

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(f"mean and std must be [D], got {self.mean.shape} and {self.std.shape}")
        if self.mean.dtype != np.float64 or self.std.dtype != np.float64 or not (self.std > 0).all():
            raise ValueError("mean and std must be float64, and std positive")

    @classmethod
    def of(cls, vectors: Matrix) -> Scaler:
        """The statistics of vectors `[N, D_k]`."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for rows in row_slices(len(vectors)):  # np.std would hold a copy of all in float64
            squares += np.square(vectors[rows] - mean).sum(axis=0)
        std = np.sqrt(squares / len(vectors))
        largest = np.abs(vectors).max(axis=0).astype(np.float64)
        return cls(mean, np.where(std > _CONSTANT * largest, std, 1.0))

    def apply(self, vectors: Matrix, what: str, start: int = 0) -> Doubles:
        """Standardised per dimension, then of length 1; errors name the vectors as `what`, from `start`."""
        return unit((vectors - self.mean) / self.std, f"{what}, less the mean of those learned,", start)


@dataclass(frozen=True)
class Learned:
    """What a learned mode has learned; `join` applies it.

    Attributes:
        means, stds: of every network's dimensions, float64 `[D_k]` each, see `Scaler`.
        maps: the ratios `[K]`; or one `[dim, D]` over the concatenation, or one `[dim_k, D_k]` per network.
        offset: `[dim]`, added to the mapped vector; None for ratios.
        classes: the labels, in the order of their numbers.
        losses: the mean loss of every epoch; none for closed forms.
        validation_maps: the validation mAP of every epoch; none without a validation part.
        best_epoch: the epoch, from 1, that the maps are of; 0 for closed forms.
    """

    means: tuple[torch.Tensor, ...]
    stds: tuple[torch.Tensor, ...]
    maps: tuple[torch.Tensor, ...]
    offset: torch.Tensor | None
    classes: tuple[str | int, ...] = ()
    losses: tuple[float, ...] = ()
    validation_maps: tuple[float, ...] = ()
    best_epoch: int = 0

    def __post_init__(self) -> None:
        if len(self.means) != len(self.stds) or not self.maps:
            raise ValueError("means and stds must be one per network, and maps must not be empty")
        shapes = [tuple(one.shape) for one in self.maps]
        dims = self.dims
        if self.offset is None:
            right = shapes == [(len(dims),)]
        else:
            inputs = [sum(dims)] if len(shapes) == 1 else dims
            right = [shape[1:] for shape in shapes] == [(one,) for one in inputs]
            right = right and tuple(self.offset.shape) == (sum(shape[0] for shape in shapes),)
        if not right:
            raise ValueError(f"maps of shapes {shapes} do not fit to networks of {dims} dimensions")

    @property
    def dims(self) -> list[int]:
        """The length of each network's vectors."""
        return [len(mean) for mean in self.means]

    @property
    def dim(self) -> int:
        """The length of the joined vectors."""
        return sum(self.dims) if self.offset is None else len(self.offset)

    @property
    def scalers(self) -> list[Scaler]:
        return [Scaler(m.numpy(), s.numpy()) for m, s in zip(self.means, self.stds, strict=True)]

    def join(self, vectors: Sequence[Matrix]) -> npt.NDArray[np.float32]:
        """Vectors `[N, D_k]` of every network -> float32 `[N, dim]`, of length 1.

        Raises ValueError for other dimensions than those that were learned.
        """
        for k, (one, dim) in enumerate(zip(vectors, self.dims, strict=True)):
            if one.shape[1] != dim:
                raise ValueError(
                    f"embeddings[{k}] must have the {dim} dimensions that were learned, got {one.shape[1]}"
                )
        scalers, maps = self.scalers, [one.double().numpy() for one in self.maps]
        joined = np.empty((len(vectors[0]), self.dim), dtype=np.float32)
        for rows in row_slices(len(joined)):
            parts = scaled(scalers, [one[rows] for one in vectors], rows.start)
            joined[rows] = unit(self._mapped(parts, maps), "the joined embedding", rows.start)
        return joined

    def _mapped(self, parts: list[Doubles], maps: list[Doubles]) -> Doubles:
        if self.offset is None:
            return np.concatenate([w * part for w, part in zip(maps[0], parts, strict=True)], axis=1)
        if len(maps) == 1:
            parts = [np.concatenate(parts, axis=1)]
        mapped = [part @ one.T for part, one in zip(parts, maps, strict=True)]
        shifted: Doubles = np.concatenate(mapped, axis=1) + self.offset.double().numpy()
        return shifted


def scaled(scalers: Sequence[Scaler], vectors: Sequence[Matrix], start: int = 0) -> list[Doubles]:
    """Every network's vectors, standardised and of length 1; `start` is the position of the first."""
    pairs = enumerate(zip(scalers, vectors, strict=True))
    return [scaler.apply(one, f"embeddings[{k}]", start) for k, (scaler, one) in pairs]


def standardised(scalers: Sequence[Scaler], vectors: Sequence[Matrix]) -> npt.NDArray[np.float32]:
    """What learned modes learn from: the concatenation of `scaled`, float32 `[N, D]`."""
    joined = np.empty((len(vectors[0]), sum(one.shape[1] for one in vectors)), dtype=np.float32)
    for rows in row_slices(len(joined)):
        parts = scaled(scalers, [one[rows] for one in vectors], rows.start)
        joined[rows] = np.concatenate(parts, axis=1)
    return joined


def concatenated(
    vectors: Sequence[Matrix], weights: Sequence[float], normalize: str
) -> npt.NDArray[np.float32]:
    """Mode "concat": `[N, D_k]` of every network -> float32 `[N, sum D_k]`, of length 1."""
    joined = np.empty((len(vectors[0]), sum(one.shape[1] for one in vectors)), dtype=np.float32)
    for rows in row_slices(len(joined)):
        parts = [one[rows].astype(np.float64) for one in vectors]
        if normalize == "each":
            parts = [unit(part, f"embeddings[{k}]", rows.start) for k, part in enumerate(parts)]
        weighted = np.concatenate([w * part for w, part in zip(weights, parts, strict=True)], axis=1)
        joined[rows] = unit(weighted, "the weighted concatenation", rows.start)
    return joined


def unit(vectors: Doubles, what: str, start: int = 0) -> Doubles:
    """Rows divided by their lengths. Raises ValueError naming rows of zeros, counted from `start`."""
    check_nonzero(what, vectors, start)
    # By the largest value first: squares neither overflow nor vanish.
    vectors = vectors / np.abs(vectors).max(axis=1, keepdims=True)
    normalised: Doubles = vectors / np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return normalised


def row_slices(count: int) -> Iterator[slice]:
    """Rows that are computed with at a time, of `count`."""
    return (slice(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS))
