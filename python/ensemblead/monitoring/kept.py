"""What a monitor keeps: the calibration, what was observed since, and the bets. It is saved as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.detectors import Detector, Predictions
from ensemblead.images import Geometry
from ensemblead.memory import MemoryBank
from ensemblead.monitoring.embedding import Reference
from ensemblead.monitoring.martingales import Bets
from ensemblead.monitoring.watching import Watched
from ensemblead.networks.placement import resolve_device, resolve_precision

Floats = npt.NDArray[np.float32]
_SEPARATOR = "\0"
# Of a tensor of a model that does not know its images, so many values tell it from others.
_SAMPLED = 4096


@dataclass(frozen=True)
class Calibrated:
    """What is known of images of before.

    Attributes:
        score: float32 `[m]`.
        embedding: float32 `[m / 2]`, distances of the features of every other image; None if not watched.
        regions: float32 `[m, cells]`, the largest value of the map in each cell; None if not watched.
        reference: of the features, by the other half of the images; None without them.
        fingerprints: int64, `[m]` at most: of images known by their pixels.
        stated: the detector's false-alarm rate; `threshold`: its threshold. None where it has none.
        can_extend: whether the detector can learn more images.
    """

    score: Floats
    embedding: Floats | None
    regions: Floats | None
    reference: Reference | None
    fingerprints: npt.NDArray[np.int64]
    stated: float | None
    threshold: float | None
    can_extend: bool

    @classmethod
    def of(cls, detector: Detector, values: Sequence[Watched], looks: npt.NDArray[np.int64]) -> Calibrated:
        """Of a detector and the values of its fresh images, batch by batch. Without features there is no
        embedding: the detector runs no network.
        """
        features, regions = ([getattr(one, name) for one in values] for name in ("features", "regions"))
        embedding = reference = None
        if features[0] is not None and features[0].shape[1]:
            every = np.concatenate(features)
            reference = Reference.of(every[::2])
            embedding = reference.distances(every[1::2])
        return cls(
            np.concatenate([one.score for one in values]),
            embedding,
            None if regions[0] is None else np.concatenate(regions),
            reference,
            looks,
            _finite(detector.calibration_.false_alarm_rate),
            _finite(detector.calibration_.threshold),
            all(part.passes != "held_out" for part in detector._parts()),
        )


@dataclass(frozen=True)
class Observed:
    """What was seen since, in order; the values as in `Calibrated`.

    Attributes:
        anomalous: bool `[n]`, what the detector said.
        evidence: float64 `[n, 1 + streams]`, log10: of all streams together, and of each.
        fingerprints: int64, of those known by their pixels.
        paths: UTF-8 with NUL between; an image without a file has the empty path.
        repeated: how many images were left out.
        frame: what the latest map shows: `(top, left, bottom, right)` in pixels of the photograph.
    """

    score: Floats
    embedding: Floats | None
    regions: Floats | None
    anomalous: npt.NDArray[np.bool_]
    evidence: npt.NDArray[np.float64]
    fingerprints: npt.NDArray[np.int64]
    paths: bytes
    repeated: int
    frame: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.score)
        for name in ("embedding", "regions", "anomalous", "evidence"):
            array = getattr(self, name)
            if array is not None and len(array) != count:
                raise ValueError(f"{name} must be of {count} images, got {len(array)}")
        if len(self.frame) != 4:
            raise ValueError(f"frame must be four numbers, got {self.frame}")

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        values: Watched,
        known: Calibrated,
        looks: npt.NDArray[np.int64],
        repeated: int,
        geometry: Geometry,
    ) -> Observed:
        """Of new images; their evidence is yet to come. Raises ValueError for features of another kind."""
        embedding = None
        if known.reference is not None and values.features is not None:
            size = len(known.reference.mean)
            if values.features.shape[1] != size:
                raise ValueError(
                    f"images: their features have {values.features.shape[1]} numbers, those of the "
                    f"calibration have {size}"
                )
            embedding = known.reference.distances(values.features)
        height, width = predictions.anomaly_map.shape[1:]
        box = (0.0, 0.0, float(height), float(width))
        if predictions.sizes is not None:
            top, left, bottom, right = geometry.crop_box(*predictions.sizes[-1])
            box = (float(top), float(left), float(bottom), float(right))
        return cls(
            values.score,
            embedding,
            values.regions,
            np.asarray(predictions.is_anomalous, np.bool_),
            np.zeros((len(values.score), 0)),
            looks,
            _SEPARATOR.join(path or "" for path in predictions.paths).encode(errors="surrogateescape"),
            repeated,
            box,
        )

    @classmethod
    def nothing(cls, known: Calibrated, num_streams: int) -> Observed:
        return cls(
            known.score[:0],
            None if known.embedding is None else known.embedding[:0],
            None if known.regions is None else known.regions[:0],
            np.zeros(0, np.bool_),
            np.zeros((0, 1 + num_streams)),
            np.zeros(0, np.int64),
            b"",
            0,
            (0.0, 0.0, 1.0, 1.0),
        )

    def path(self, place: int) -> str | None:
        """Of an image its file."""
        return self.paths.decode(errors="surrogateescape").split(_SEPARATOR)[place] or None

    def joined(self, other: Observed) -> Observed:
        """Both, the other behind; the count and the frame are the other's."""

        def both(name: str) -> Any:
            own = getattr(self, name)
            return None if own is None else np.concatenate([own, getattr(other, name)])

        paths = [one.paths for one in (self, other) if len(one.score)]
        return Observed(
            both("score"),
            both("embedding"),
            both("regions"),
            both("anomalous"),
            both("evidence"),
            both("fingerprints"),
            _SEPARATOR.encode().join(paths),
            other.repeated,
            other.frame,
        )


@dataclass(frozen=True)
class Kept:
    """All of it. `model`, `precision`: of the detector, see `identity` and `precision_of`. Bets are None of
    streams that are not watched.
    """

    model: str
    precision: str
    calibrated: Calibrated
    observed: Observed
    score: Bets | None
    embedding: Bets | None
    regions: Bets | None


def identity(detector: Detector) -> str:
    """SHA-256 of what a detector has learned and of its statistics. It is the same after saving and loading,
    on any device; `extend`, `calibrate` and another fit change it.
    """
    digest = hashlib.sha256(type(detector).__name__.encode())
    digest.update(np.sort(detector._fingerprints).tobytes())
    for one in (detector.calibration_, *(part.calibration_ for part in detector._parts())):
        digest.update(np.ascontiguousarray(one.scores).tobytes())
        digest.update(np.array([one.map_mean, one.map_std, one.threshold], np.float64).tobytes())
    if not len(detector._fingerprints):
        # A model of another tool does not know its images.
        for part in detector._parts():
            _add_state(digest, getattr(part, "_state", None))
    return digest.hexdigest()


def precision_of(detector: Detector) -> str:
    """What the networks compute in, each kind once: scores of other precisions are others."""
    kinds = {
        network.precision
        if network.precision == "int8"
        else str(resolve_precision(network.precision, resolve_device(network.device))).removeprefix("torch.")
        for network in detector._networks()
    }
    return ", ".join(sorted(kinds))


def _add_state(digest: Any, state: Any) -> None:
    """A part of each tensor: a memory bank may be large. In float16, to which a saved bank may be rounded."""
    if isinstance(state, MemoryBank):
        state = state.state()
    if is_dataclass(state):
        for field in fields(state):
            _add_state(digest, getattr(state, field.name))
    elif isinstance(state, torch.Tensor):
        values = state.detach().reshape(-1)
        values = values[:: max(1, len(values) // _SAMPLED)].cpu()
        digest.update(str(tuple(state.shape)).encode())
        digest.update((values.half() if values.is_floating_point() else values).numpy().tobytes())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
