"""Min-max fusion of an ensemble's members over a test set, as the reference does it.

It needs the whole test set before it scores one image, so it exists here only, for comparison with
published tables, and not in the ensembles themselves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ensemblead.metrics.inputs import as_floats


@runtime_checkable
class Ensemble(Protocol):
    """An ensemble as min-max fusion needs it: for every batch, each member's own predictions."""

    def predict_members(self, images: Any) -> Iterable[Sequence[Any]]:
        """Batches in the order of `images`; a batch is one Predictions per member."""


@runtime_checkable
class SetDetector(Protocol):
    """The alternative: an ensemble that fuses a whole set by itself, with all members' maps in memory."""

    def predict_set(self, images: Any) -> Any:
        """Predictions for all images, scaled over them."""


@dataclass(frozen=True)
class FusedBatch:
    """Fused images, shaped like Predictions; nothing is called anomalous, because no threshold fits."""

    anomaly_score: NDArray[np.float32]
    anomaly_map: NDArray[np.float32]
    paths: Sequence[str | None]
    is_anomalous: None = None


class _Range:
    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def scale(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.high == self.low:
            return np.zeros_like(values)
        scaled: NDArray[np.float32] = (values - np.float32(self.low)) / np.float32(self.high - self.low)
        return scaled


def fused_set(detector: SetDetector, images: Sequence[str], **options: Any) -> Iterator[FusedBatch]:
    """All images as one batch; they are predicted when it is asked for, so that this is timed."""
    predict: Callable[..., Any] = detector.predict_set
    found = predict(images, **options)
    yield FusedBatch(found.anomaly_score, found.anomaly_map, found.paths)


def fuse_minmax(
    detector: Ensemble,
    images: Sequence[str],
    weights: Sequence[float] | None,
    memory_limit: int,
    **options: Any,
) -> Iterator[FusedBatch]:
    """Predict all images, then yield them one by one, each member scaled to [0, 1] over all of them.

    `(x - min) / (max - min)` with one pair per member for scores and one per member over all pixels for maps
    (0 where max = min), then the mean, weighted if the ensemble is. The maps wait in memory up to
    `memory_limit` bytes and in a temporary file beyond.
    """
    predict: Callable[..., Iterable[Sequence[Any]]] = detector.predict_members
    score_ranges: list[_Range] = []
    map_ranges: list[_Range] = []
    waiting: list[tuple[str | None, list[float], tuple[int, int]]] = []
    with tempfile.SpooledTemporaryFile(max_size=max(memory_limit, 1)) as store:
        for members in predict(images, **options):
            if not score_ranges:
                score_ranges, map_ranges = [_Range() for _ in members], [_Range() for _ in members]
            for index, path in enumerate(members[0].paths):
                name = path or f"image {len(waiting)}"
                scores = []
                for member, scored, mapped in zip(members, score_ranges, map_ranges, strict=True):
                    score = as_floats(member.anomaly_score[index], f"anomaly_score of {name}")
                    values = as_floats(member.anomaly_map[index], f"anomaly_map of {name}")
                    pixels = np.ascontiguousarray(values, np.float32)
                    scored.add(score.astype(np.float32))
                    mapped.add(pixels)
                    scores.append(float(score))
                    store.write(pixels.tobytes())
                waiting.append((path, scores, (pixels.shape[0], pixels.shape[1])))
        store.seek(0)
        share = np.ones(len(score_ranges)) if weights is None else np.asarray(weights, np.float64)
        share = share / share.sum()
        for path, scores, (height, width) in waiting:
            fused = np.zeros((height, width))
            total = 0.0
            for number, scored, mapped, part in zip(scores, score_ranges, map_ranges, share, strict=True):
                stored = np.frombuffer(store.read(4 * height * width), np.float32).reshape(height, width)
                fused += part * mapped.scale(stored)
                total += part * float(scored.scale(np.array([number], np.float32))[0])
            yield FusedBatch(np.array([total], np.float32), fused.astype(np.float32)[None], [path])
