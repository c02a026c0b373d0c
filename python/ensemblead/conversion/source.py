"""What a conversion reads off another tool's files, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.calibration import Calibration
from ensemblead.detectors import Detector
from ensemblead.detectors.parts import Reading

Values = npt.NDArray[np.float64]
# Score and map float64 [H, W] of an image by a tool's definition, of its layers' feature maps [C, h, w] and
# the size of the network's input.
Definition = Callable[[Sequence[Values], tuple[int, int]], tuple[float, Values]]


@dataclass(frozen=True)
class Converted:
    """A detector made of another tool's files, and that tool's definition.

    Attributes:
        detector: fitted, of one network.
        definition: of its scores and maps.
        scale: a distance that is typical of it; differences are judged against the larger of the two.
        is_squared: whether scores are squared distances.
        notes: what was assumed, or is other than in that tool, in sentences.
    """

    detector: Any
    definition: Definition
    scale: float
    is_squared: bool
    notes: tuple[str, ...]


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """A file that must be there, and have at most so many bytes."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if most is not None and (size := path.stat().st_size) > most:
        raise ValueError(f"{path} must have at most {most} bytes, got {size}")
    return path.read_bytes()


def give_state(detector: Any, state: Any, threshold: float | None) -> None:
    """Make a detector a fitted one."""
    nothing = np.empty(0, dtype=np.uint64)
    detector._take([state], Reading((detector.geometry,), nothing))
    detector._accept([Calibration.without_images(threshold)])


def check_normalization(detector: Detector, what: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a network whose input the other tool normalises otherwise than this library does."""
    (network,) = detector._networks()
    own = network.network.extractor
    if not (np.allclose(own.mean, mean) and np.allclose(own.std, std)):
        raise ValueError(
            f"{what} normalises images by mean {tuple(mean)} and std {tuple(std)}, but {own.name} takes mean "
            f"{own.mean} and std {own.std} here: its scores would differ"
        )
