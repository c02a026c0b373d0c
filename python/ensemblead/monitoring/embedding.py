"""How far an image's features lie from those of normal images, in one number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# Directions of the reference that are looked at by themselves; the others are pooled.
COMPONENTS = 8
# A standard deviation is taken for at least this share of the largest, and of the values' size.
_LEAST = 1e-6


@dataclass(frozen=True)
class Reference:
    """Features of normal images: what they vary in, and how much.

    Attributes:
        mean, scale: float64 `[D]`, of every feature.
        directions: float64 `[k, D]`, orthonormal: the first principal components of standardised features.
        spread: float64 `[k]`, the standard deviation along each.
    """

    mean: Array
    scale: Array
    directions: Array
    spread: Array

    def __post_init__(self) -> None:
        count, size = self.directions.shape
        if self.mean.shape != (size,) or self.scale.shape != (size,) or self.spread.shape != (count,):
            raise ValueError(
                f"mean and scale must be [{size}] and spread [{count}], got {self.mean.shape}, "
                f"{self.scale.shape}, {self.spread.shape}"
            )
        if not (self.scale.min() > 0 and self.spread.min() > 0):
            raise ValueError("scale and spread must be positive")

    @classmethod
    def of(cls, features: npt.NDArray[np.float32]) -> Reference:
        """Of normal images' features `[n, D]`, n > `COMPONENTS`."""
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        scale = values.std(axis=0, ddof=1)
        scale = np.maximum(scale, _LEAST * max(1.0, float(np.abs(mean).max()), float(scale.max())))
        _, singular, rows = np.linalg.svd((values - mean) / scale, full_matrices=False)
        spread = singular[:COMPONENTS] / np.sqrt(len(values) - 1)
        spread = np.maximum(spread, max(_LEAST * float(spread.max()), _LEAST))
        return cls(mean, scale, rows[:COMPONENTS], spread)

    def distances(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 `[n]` of features `[n, D]`: the root mean square along the whitened components, plus that
        of what lies outside of them.
        """
        values = (features.astype(np.float64) - self.mean) / self.scale
        along = values @ self.directions.T
        rest = values - along @ self.directions
        inside = np.sqrt(np.square(along / self.spread).mean(axis=1))
        outside = np.sqrt(np.square(rest).mean(axis=1))
        found: npt.NDArray[np.float32] = (inside + outside).astype(np.float32)
        return found
