"""Misses of known defects against false alarms, at every threshold, and a threshold that is proposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.validation import finite_number, positive_number, some_of
from ensemblead.common.warnings import warn
from ensemblead.metrics import Interval, rate_interval

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

Scores = NDArray[np.float32]
Thresholds = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class TradeOffPoint:
    """What a threshold does to the images of a `TradeOff`.

    Attributes:
        threshold: Scores above it, by more than rounding, are anomalous.
        false_alarms, misses: How many normal images lie above it, and how many defective ones do not.
        false_alarm_rate, miss_rate: The shares.
        false_alarm_interval, miss_interval: Their Clopper-Pearson intervals.
    """

    threshold: float
    false_alarms: int
    misses: int
    false_alarm_rate: float
    miss_rate: float
    false_alarm_interval: Interval
    miss_interval: Interval


@dataclass(frozen=True, eq=False)
class TradeOff:
    """Scores of normal and of known defective images, and what thresholds would do to them.

    Attributes:
        normal, defective: float32 `[n]` and `[m]`, the scores.
        paths: Of the defective images; None for those without a file.
        threshold: The detector's own.
        rounding: As in `Calibration`: a score within it of a threshold is not above it.
        origin: Where the normal scores come from, as in `Calibration`.
        miss_cost: How many times a missed defect counts, against a false alarm.
        confidence: Of the intervals.
    """

    normal: Scores
    defective: Scores
    paths: tuple[str | None, ...] = ()
    threshold: float = float("inf")
    rounding: float = 0.0
    origin: str = "calibrated"
    miss_cost: float = 1.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("normal", "defective"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite scores [n], at least one, got shape {values.shape}")
            object.__setattr__(self, name, values.astype(np.float32))
        object.__setattr__(self, "miss_cost", positive_number("miss_cost", self.miss_cost))
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, got {self.confidence}")

    def __repr__(self) -> str:
        counts = f"{len(self.normal)} normal, {len(self.defective)} defective"
        return f"TradeOff({counts}, proposed {self.proposal.threshold:.4g})"

    @property
    def thresholds(self) -> Thresholds:
        """float64 `[k]`, ascending: the middle between any two neighbours among all scores, and the largest
        score. No other threshold calls other images anomalous, but one at which all are.
        """
        scores = np.unique(np.concatenate([self.normal, self.defective])).astype(np.float64)
        return np.append((scores[:-1] + scores[1:]) / 2, scores[-1])

    def counts(self, thresholds: Thresholds) -> tuple[Counts, Counts]:
        """False alarms and misses at each of some thresholds: int64 `[k]` both."""
        # As `Calibration.is_anomalous` compares.
        limits = (thresholds + self.rounding).astype(np.float32)
        above = len(self.normal) - np.searchsorted(np.sort(self.normal), limits, side="right")
        return above, np.searchsorted(np.sort(self.defective), limits, side="right")

    def at(self, threshold: float) -> TradeOffPoint:
        """What one threshold does. Raises TypeError or ValueError for what is no finite number."""
        return self.points(np.array([finite_number("threshold", threshold)]))[0]

    def points(self, thresholds: Thresholds | None = None) -> list[TradeOffPoint]:
        """What thresholds do, all of `thresholds` if None."""
        chosen = self.thresholds if thresholds is None else thresholds
        alarms, misses = self.counts(chosen)
        n, m = len(self.normal), len(self.defective)
        first, second = (
            rate_interval(count, total, self.confidence) for count, total in ((alarms, n), (misses, m))
        )
        columns = (chosen, alarms, misses, alarms / n, misses / m, *first, *second)
        return [
            TradeOffPoint(value, a, b, rate, missed, (low, high), (least, most))
            for value, a, b, rate, missed, low, high, least, most in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]

    @property
    def proposal(self) -> TradeOffPoint:
        """The threshold with the least sum of both rates, of which the misses' counts `miss_cost` times.

        With `miss_cost` 1 that is the point of Youden's index (Cancer 3, 1950). Of several it is the middle
        of the widest gap between two neighbours among the scores, and of equal gaps the highest. It was
        chosen on these very images, so others will show somewhat higher rates.
        """
        thresholds = self.thresholds
        alarms, misses = self.counts(thresholds)
        # In whole numbers where `miss_cost` is one, so that equal costs are equal.
        costs = alarms * len(self.defective) + self.miss_cost * (misses * len(self.normal))
        scores = np.unique(np.concatenate([self.normal, self.defective])).astype(np.float64)
        gaps = np.append(np.diff(scores), 0.0)
        best = np.flatnonzero(costs == costs.min())
        widest = best[gaps[best] == gaps[best].max()]
        return self.at(float(thresholds[widest[-1]]))

    def notable(self) -> dict[str, TradeOffPoint]:
        """The points that a reader asks for first, by name; those that exist.

        "model" is the detector's own threshold, "proposed" the `proposal`, "no miss" the middle of the gap
        below the lowest score of a defect, and "no false alarm" the highest score of a normal image.
        """
        thresholds = self.thresholds
        _, misses = self.counts(thresholds)
        found: dict[str, TradeOffPoint] = {}
        if np.isfinite(self.threshold):
            found["model"] = self.at(self.threshold)
        found["proposed"] = self.proposal
        if (misses == 0).any():
            found["no miss"] = self.at(float(thresholds[np.flatnonzero(misses == 0)[-1]]))
        found["no false alarm"] = self.at(float(self.normal.max()))
        return found

    def rule(self) -> str:
        """How the proposal is chosen, in words."""
        times = "" if self.miss_cost == 1 else f", a miss counting {self.miss_cost:g} times"
        return (
            f"the least sum of the rate of false alarms and the rate of misses{times}; of several thresholds "
            "the middle of the widest gap between scores"
        )


def trade_off(
    detector: Detector,
    defects: Any,
    *,
    miss_cost: float = 1.0,
    confidence: float = 0.95,
    errors: Literal["raise", "skip"] = "raise",
    progress: Callable[[str, int, int], None] | None = None,
) -> TradeOff:
    """What thresholds would do to known defects and to normal images, and which one is proposed.

    The normal images are those of the detector's statistics. So `calibrate` it first, by fresh ones; after
    `fit` alone they are training images, left out one by one or held out. The detector stays as it is: to
    take a threshold, set `detector.threshold_`.

    Args:
        detector: A fitted detector.
        defects: Images of known defects, in any form that `predict` takes.
        miss_cost: How many times a missed defect counts against a false alarm, in `TradeOff.proposal`.
        confidence: Of the intervals.
        errors, progress: As for `predict`.

    Raises NotFittedError for a detector without statistics of normal images. Raises ValueError for statistics
    of images that were trained on, and for defects that the detector has learned as normal.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (36, 64, 64, 3), dtype=np.uint8)
        >>> images[32:, 20:40, 20:40] = 200
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.1, device="cpu"
        ... ).fit(images[:12])
        >>> found = ead.evaluation.trade_off(detector.calibrate(images[12:32], 0.1), images[32:])
        >>> found.proposal.misses, found.proposal.false_alarms
        (0, 0)
        >>> detector.threshold_ = found.proposal.threshold
    """
    known = detector.calibration_
    known.require_statistics("the trade-off of a threshold")
    if known.origin == "trained_on":
        raise ValueError(
            "detector: its statistics are of images that it was trained on, which score too low to be "
            "compared with defects; call calibrate with fresh normal images"
        )
    scores: list[float] = []
    paths: list[str | None] = []
    for batch in detector.predict_batches(defects, errors=errors, progress=progress):
        scores += batch.anomaly_score.tolist()
        paths += batch.paths
    if detector.known_:
        raise ValueError(
            f"defects: the detector has learned {len(detector.known_)} of them as normal"
            f"{_named(paths, detector.known_)}"
        )
    found = TradeOff(
        known.scores,
        np.array(scores, np.float32),
        tuple(paths),
        float(detector.threshold_),
        known.rounding,
        known.origin,
        miss_cost,
        confidence,
    )
    if np.median(found.defective) <= np.median(found.normal):
        warn(
            "defects: half of them score no higher than the median normal image; are they images of defects, "
            "and of this product?"
        )
    return found


def _named(paths: Sequence[str | None], places: Sequence[int]) -> str:
    names = [str(paths[place]) for place in places if place < len(paths) and paths[place] is not None]
    return f" ({some_of(names, 3)})" if names else ""
