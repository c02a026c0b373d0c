"""Which images a detector has learned, and which of them give its statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

# Images whose statistics are taken at fit time; of larger sets, so many evenly spread ones. An image costs
# one search; docs/design/thresholds.md says what share of a fit's time that is.
MAX_IMAGES = 400


def sampled_positions(
    num_images: int, *, most: int = MAX_IMAGES, share: float | None = None
) -> frozenset[int]:
    """Which of `num_images` training images give the statistics, evenly spread: `most` at most.

    With `share` only so many of them, at least one.
    """
    if share is None:
        count = min(num_images, most)
        return frozenset(np.linspace(0, num_images - 1, count).round().astype(int).tolist())
    count = max(1, min(round(num_images * share), most))
    return frozenset(int((i + 0.5) * num_images / count) for i in range(count))


class Originals:
    """For every image the place of the first image that equals it, by size and fingerprint."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], dict[int, int]] = {}  # by size and by fingerprint

    def of(self, position: int, size: tuple[int, int], fingerprint: int) -> int:
        """The place of the first image like the one at `position`: its own if there was none before."""
        return self._first.setdefault(size, {}).setdefault(fingerprint, position)


def set_digest(
    positions: Iterable[int], sizes: Iterable[tuple[int, int]], fingerprints: Iterable[int]
) -> str:
    """SHA-256 that identifies images in their order, wherever they lie and whatever size a network sees
    them in.
    """
    digest = hashlib.sha256()
    for position, size, fingerprint in zip(positions, sizes, fingerprints, strict=True):
        digest.update(f"{position}|{size}|{fingerprint};".encode())
    return digest.hexdigest()


def known_images(fingerprints: Collection[int], learned: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of the images with these fingerprints are among the learned ones: bool `[n]`."""
    return np.isin(np.array(list(fingerprints), dtype=np.uint64), learned)
