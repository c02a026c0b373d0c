"""How fast a saved model predicts on this machine by each engine, and what that does to scores."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import EngineError, EnsembleADError
from ensemblead.common.predictions import Predictions
from ensemblead.common.warnings import ThresholdWarning, warn
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.exporting import score_changes
from ensemblead.ensembles.checks.subject import methods
from ensemblead.ensembles.loading import load_detector
from ensemblead.images import ImageSource, open_images

# The first is what the others are compared with.
CHOICES = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
# A choice that gains less than this is not worth a change.
_WORTHWHILE = 1.1


@dataclass(frozen=True)
class Measured:
    """One engine and precision.

    Attributes:
        one, many: milliseconds an image, of images one by one and in batches: the least over the rounds.
        one_median, many_median: the medians.
        median_change, largest_change: of scores, relative to those of torch in float32, see `score_changes`.
        changed_verdicts: how many images are on the other side of the threshold.
        failure: why there is none of this; everything else is then NaN or 0.
    """

    engine: str
    precision: str
    one: float = float("nan")
    one_median: float = float("nan")
    many: float = float("nan")
    many_median: float = float("nan")
    median_change: float = float("nan")
    largest_change: float = float("nan")
    changed_verdicts: int = 0
    failure: str | None = None


class Decoded(ImageSource):
    """Images that are decoded already, so that decoding is not measured."""

    def __init__(self, source: ImageSource) -> None:
        self.paths = list(source.paths)
        self._images = [source.read(index) for index in range(len(source))]

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        return self._images[index]


def measure_engines(
    model: str | os.PathLike[str],
    images: ImageSource,
    *,
    weights: Any = None,
    rounds: int = 5,
    progress: Callable[[str, int, int], object] | None = None,
) -> list[Measured]:
    """Predict the images by every engine and precision, on the CPU, in turn, `rounds` times.

    A model without a network in int8 is quantized by these images; nothing is saved.

    Returns one for each of `CHOICES`, in their order; of those that this machine lacks `failure` says why.
    """
    report = progress or (lambda stage, done, total: None)
    exact = load_detector(model, engine="torch", precision="float32", weights=weights, device="cpu")
    if exact.threshold_ == math.inf:
        warn(
            "the model has no threshold, so that no verdict can change: go by the scores, or calibrate it",
            ThresholdWarning,
        )
    decoded = Decoded(open_images(images, bits=exact.bits_))
    ready: dict[tuple[str, str], Detector] = {}
    failures: dict[tuple[str, str], str] = {}
    first: dict[tuple[str, str], Predictions] = {}
    has_engines = any(hasattr(one, "engine") for one in methods(exact))
    for done, choice in enumerate(CHOICES):
        report("prepare", done, len(CHOICES))
        try:
            detector = _prepared(model, choice, decoded, weights, has_engines)
            first[choice] = detector.predict(decoded)  # compiles for batches
            detector.predict(_single(decoded, 0))
            ready[choice] = detector
        except (EnsembleADError, ValueError) as error:
            if choice == CHOICES[0]:
                raise  # it is not the engine
            failures[choice] = str(error)
    report("prepare", len(CHOICES), len(CHOICES))
    one: dict[tuple[str, str], list[float]] = {choice: [] for choice in ready}
    many: dict[tuple[str, str], list[float]] = {choice: [] for choice in ready}
    for number in range(rounds):
        for choice, detector in ready.items():
            one[choice].append(_milliseconds(detector, _single(decoded, number % len(decoded))))
            many[choice].append(_milliseconds(detector, decoded))
        report("measure", number + 1, rounds)
    found = []
    for choice in CHOICES:
        if choice in failures:
            found.append(Measured(*choice, failure=failures[choice]))
            continue
        own, other = first[choice], first[CHOICES[0]]
        known = exact.calibration_
        change = score_changes(own.anomaly_score, other.anomaly_score, known.threshold, known.rounding)
        differ = int((own.is_anomalous != other.is_anomalous).sum())
        found.append(
            Measured(
                *choice,
                min(one[choice]),
                statistics.median(one[choice]),
                min(many[choice]),
                statistics.median(many[choice]),
                float(np.median(change)),
                float(change.max()),
                differ,
            )
        )
    return found


def recommended(found: Sequence[Measured]) -> Measured:
    """The fastest in batches that changes no verdict; torch in float32, where none gains a tenth on it."""
    usable = [one for one in found if one.failure is None and not one.changed_verdicts]
    best = min(usable, key=lambda one: one.many)
    return best if found[0].many >= _WORTHWHILE * best.many else found[0]


def _prepared(
    model: Any, choice: tuple[str, str], images: ImageSource, weights: Any, has_engines: bool
) -> Detector:
    engine, precision = choice
    options: dict[str, Any] = {"weights": weights, "device": "cpu"}
    if engine == "openvino" and not has_engines:
        raise EngineError("the model has no network that OpenVINO could run")
    if precision != "int8":
        return load_detector(model, engine=engine, precision=precision, **options)
    detector = load_detector(model, engine=engine, precision="float32", **options)
    if not detector._networks():
        raise EngineError("the model has no frozen network, and int8 is for those")
    if all(network.network.quantized is not None for network in detector._networks()):
        return load_detector(model, engine=engine, precision="int8", **options)
    return detector.quantize(images)


def _single(images: Decoded, index: int) -> npt.NDArray[np.uint8]:
    return images.read(index)[None]


def _milliseconds(detector: Detector, images: Any) -> float:
    start = time.perf_counter()
    detector.predict(images)
    return 1000.0 * (time.perf_counter() - start) / len(images)
