"""Statistics of normal images: the yardstick for thresholds and for fusing detectors of different scales."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.calibration.regions import region_tops
from ensemblead.calibration.thresholds import conformal_threshold, estimated_threshold
from ensemblead.common.errors import NotFittedError
from ensemblead.common.objects import DEFAULT_FALSE_REGIONS, checked_rate
from ensemblead.common.validation import finite_number
from ensemblead.common.warnings import warn

# Where statistics come from, the weakest first: no images ("given": the threshold comes from elsewhere, or
# there is none), images that a method has trained on, training images that it has not trained on, training
# images scored without themselves, or fresh images given to `calibrate`.
Origin = Literal["given", "trained_on", "held_out", "leave_one_out", "calibrated"]
ThresholdOrigin = Literal[Origin, "user"]
DEFAULT_RATE = 0.01
# With fewer scores, the median of their deviations says too little of how much they spread.
_FEWEST_TO_COMPARE = 10
# Of the distance from the median to the threshold: one image decides it if it moves it by more, and two
# images if they move it by more. Among fewer scores, that is what every set does.
_DECIDING_SHARES, _FEWEST_TO_DECIDE = (0.4, 0.6), 20
# A standard deviation is taken for at least this share of the mean.
LEAST_SHARE = 1e-3
# Scores and maps are float32.
_LARGEST = float(np.finfo(np.float32).max)
# Pixels kept of a map, as a lattice of this side: positions relative to the frame, so that maps of two sizes
# match.
LATTICE = 32


@dataclass(frozen=True)
class Calibration:
    """Statistics of normal images, in the units of the detector's scores and maps.

    Attributes:
        scores: float32 `[n]`, one per image.
        pixels: float32 `[n, P]`, a lattice out of every map.
        map_mean, map_std: over all pixels.
        requested_rate: the false-alarm rate asked for.
        origin: "leave_one_out", "held_out", "calibrated", "trained_on": then the scores are those of images
            that the method knows by heart, and the threshold is too low; or "given": there are no
            statistics, n = 0.
        images_sha256: identifies the images, so that detectors calibrated on the same ones can be told.
        rounding: how far rounding moves scores like these. Differences up to it mean nothing: a score within
            it of the threshold is not anomalous, and nothing is divided by it.
        positions: where the images of `scores` stood among those given to `fit`; empty where that is not
            known, and of images that came otherwise.
        deciding: which of `scores` are of images that decide the threshold, see `deciding_images`.
        deciding_names: those images' paths, or places, as they were given to `fit`.
        given: a threshold that does not come from the scores: that of the origin "given", or one that a user
            has set. None: it comes from them; of the origin "given" there is none, and no score is anomalous.
        peaks: float32 `[n, P]`, the largest value in each cell of a lattice of every map, for
            `pixel_threshold`; None where they were not kept.
        map_rounding: how far rounding moves values of maps like these; None: as far as scores.
    """

    scores: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.float32]
    map_mean: float
    map_std: float
    requested_rate: float
    origin: Origin
    images_sha256: str
    rounding: float = 0.0
    positions: tuple[int, ...] = ()
    deciding: tuple[int, ...] = ()
    deciding_names: tuple[str, ...] = ()
    given: float | None = None
    peaks: npt.NDArray[np.float32] | None = None
    map_rounding: float | None = None

    def __post_init__(self) -> None:
        for name in ("map_mean", "map_std", "rounding", "map_rounding"):
            value = getattr(self, name)
            if name == "map_rounding" and value is None:
                continue
            if type(value) not in (int, float) or not abs(value) <= _LARGEST:
                raise ValueError(f"{name} must be a finite number, got {value!r}")
            if name != "map_mean" and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
            object.__setattr__(self, name, float(value))
        if not (isinstance(self.requested_rate, float) and 0 < self.requested_rate < 1):
            raise ValueError(f"requested_rate must be between 0 and 1, got {self.requested_rate!r}")
        if self.origin not in get_args(Origin):
            raise ValueError(f"origin must be one of {', '.join(get_args(Origin))}, got {self.origin!r}")
        if not isinstance(self.images_sha256, str):
            raise TypeError(f"images_sha256 must be a str, got {self.images_sha256!r}")
        n, is_given = len(self.scores), self.origin == "given"
        if self.given is not None:
            object.__setattr__(self, "given", finite_number("given", self.given))
        if is_given and n:
            raise ValueError(f"scores must be empty with the origin 'given', got {n}")
        for name, rank, shape in (("scores", 1, "[n]"), ("pixels", 2, "[n, P]"), ("peaks", 2, "[n, P]")):
            array = getattr(self, name)
            if name == "peaks" and array is None:
                continue
            fits = array.dtype == np.float32 and array.ndim == rank and len(array) == n
            fits = fits and (array.size > 0 or is_given)
            if not (fits and np.isfinite(array).all()):
                raise ValueError(
                    f"{name} must be finite float32 {shape} of at least one image, got {array.dtype} "
                    f"{array.shape}"
                )
        places = self.positions
        if places and (
            len(places) != n or len(set(places)) < n or any(type(i) is not int or i < 0 for i in places)
        ):
            raise ValueError(f"positions must be {n} different indices, or none, got {len(places)}")
        which, names = self.deciding, self.deciding_names
        known = all(type(index) is int and 0 <= index < n for index in which)
        if not known or (which and len(set(which)) >= n):
            raise ValueError(f"deciding must be indices of some of {n} scores, got {which}")
        if len(names) != len(which) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"deciding_names must be one str per deciding score, got {names}")

    @classmethod
    def without_images(cls, threshold: float | None = None, rounding: float = 0.0) -> Calibration:
        """No statistics; a threshold that comes from elsewhere, or none."""
        empty = np.empty(0, dtype=np.float32)
        pixels = np.empty((0, LATTICE**2), dtype=np.float32)
        return cls(empty, pixels, 0.0, 0.0, DEFAULT_RATE, "given", "", rounding, given=threshold)

    def __repr__(self) -> str:
        if not self.has_statistics:
            return f"Calibration(threshold {self.threshold:.4g}, given)"
        kind = "at most" if self.is_guaranteed else "more than" if self.origin == "trained_on" else "about"
        by = " set by the user, statistics" if self.threshold_origin == "user" else ""
        return (
            f"Calibration(threshold {self.threshold:.4g}{by} by {len(self.scores)} images, {self.origin}, "
            f"false alarms {kind} {self.false_alarm_rate:.2g})"
        )

    @property
    def is_guaranteed(self) -> bool:
        """Whether `false_alarm_rate` is a guarantee: the images were fresh, and the threshold is theirs."""
        return self.threshold_origin == "calibrated"

    @property
    def threshold_origin(self) -> ThresholdOrigin:
        """Where the threshold comes from: as `origin`, or "user" where one was set beside the statistics."""
        return self.origin if self.given is None or not self.has_statistics else "user"

    @property
    def has_statistics(self) -> bool:
        """Whether there are images behind it."""
        return self.origin != "given"

    @property
    def rounding_of_maps(self) -> float:
        """`map_rounding`, or `rounding` where it is None."""
        return self.rounding if self.map_rounding is None else self.map_rounding

    def require_statistics(self, purpose: str) -> None:
        """Raise NotFittedError where there are none."""
        if not self.has_statistics:
            raise NotFittedError(
                f"{purpose} needs statistics of normal images, and this detector has none; call calibrate"
            )

    @property
    def threshold(self) -> float:
        """A score above it is anomalous; infinity where there is none."""
        return self._threshold_and_rate[0]

    @property
    def threshold_without(self) -> float:
        """The threshold by the scores other than the `deciding` ones."""
        if not self.deciding or self.given is not None:
            return self.threshold
        return estimated_threshold(np.delete(self.scores, self.deciding), self.requested_rate)[0]

    def describe_deciding(self) -> str:
        """A sentence on the images that decide the threshold; empty where there are none."""
        if not self.deciding_names or self.given is not None:
            return ""
        count, names = len(self.deciding_names), " and ".join(self.deciding_names)
        return (
            f"{count} of {len(self.scores)} images decide{'s' * (count == 1)} the threshold: it is "
            f"{self.threshold:.4g} with {names}, and {self.threshold_without:.4g} without"
        )

    def describe_rate(self) -> str:
        """A sentence on what so few images say of false alarms; empty where they are enough for the rate
        asked for, or the threshold does not come from them.
        """
        n, rate = len(self.scores), self.requested_rate
        needed = images_for(rate)
        if not self.has_statistics or self.given is not None:
            return ""
        if self.origin == "trained_on":
            return (
                "the threshold is that of images which were learned themselves, so that nothing is known of "
                "false alarms: give more images, or call calibrate"
            )
        if n >= needed:
            return ""
        if self.is_guaranteed:
            return f"{n} fresh images guarantee a rate of 1 in {n + 1} at best, {needed} guarantee {rate:g}"
        return (
            f"an estimate by {n} images shows no false-alarm rate below 1 in {n + 1}, and guarantees none: "
            f"calibrate with {needed} fresh ones guarantees {rate:g}"
        )

    def is_anomalous(self, scores: torch.Tensor) -> torch.Tensor:
        """Whether scores `[B]` lie above the threshold by more than rounding: bool `[B]`. NaN does."""
        return ~(scores <= self.threshold + self.rounding)

    @property
    def false_alarm_rate(self) -> float:
        """The share of normal images that `threshold` takes for anomalous: a guarantee where the origin is
        "calibrated", too low where it is "trained_on", NaN where there are no statistics, else an
        estimate. At a threshold that a user has set it is `(k + 1)/(n + 1)`, for k of n scores above it.
        """
        return self._threshold_and_rate[1]

    @property
    def knows_regions(self) -> bool:
        """Whether `pixel_threshold` can be given: not of models that were saved before it was known, nor of
        ensembles whose members were calibrated apart.
        """
        return self.peaks is not None and len(self.peaks) > 0

    def pixel_threshold(self, false_regions: float = DEFAULT_FALSE_REGIONS) -> float:
        """The value of the maps above which a normal image is expected to have `false_regions` regions.

        Regions are 8-connected. With the origin "calibrated", a fresh normal image has one or more with at
        most that probability (split conformal prediction), given `1/false_regions - 1` images; else it is an
        estimate, by the tail of the values (see `estimated_threshold`). `false_region_rate` is the rate that
        it comes to.

        Args:
            false_regions: per normal image, above 0 and at most 0.5.

        Raises NotFittedError where `knows_regions` is False, ValueError for another rate.
        """
        return self._regions_threshold(false_regions)[0] + self.rounding_of_maps

    def false_region_rate(self, false_regions: float = DEFAULT_FALSE_REGIONS) -> float:
        """False regions per normal image at `pixel_threshold(false_regions)`: the rate asked for, or
        `(k + 1)/(n + 1)` for the k regions of n images above it, if that is more.
        """
        return self._regions_threshold(false_regions)[1]

    def _regions_threshold(self, false_regions: float) -> tuple[float, float]:
        rate = checked_rate(false_regions)
        if rate in self._region_thresholds:
            return self._region_thresholds[rate]
        if not self.knows_regions:
            raise NotFittedError(
                "a pixel threshold needs statistics of the regions of normal images, which this detector "
                "lacks: it was saved before they were kept, or its members were calibrated apart; call "
                "calibrate"
            )
        tops, maxima = self._tops
        if self.origin == "calibrated":
            found = conformal_threshold(tops, rate)
        else:
            found = estimated_threshold(tops, rate, bulk=maxima)
        self._region_thresholds[rate] = found
        return found

    @cached_property
    def _region_thresholds(self) -> dict[float, tuple[float, float]]:
        """Those that were asked for, by rate: each `predict` asks."""
        return {}

    @cached_property
    def _tops(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """The values that stand for regions, and the maps' maxima."""
        assert self.peaks is not None
        return region_tops(self.peaks), self.peaks.max(axis=1)

    @cached_property
    def _threshold_and_rate(self) -> tuple[float, float]:
        if not self.has_statistics:
            return math.inf if self.given is None else self.given, math.nan
        if self.given is not None:
            above = int((self.scores > self.given + self.rounding).sum())
            return self.given, (above + 1) / (len(self.scores) + 1)
        rule = conformal_threshold if self.is_guaranteed else estimated_threshold
        return rule(self.scores, self.requested_rate)

    @property
    def score_mean(self) -> float:
        self.require_statistics("the mean of normal images' scores")
        return float(self.scores.mean(dtype=np.float64))

    @property
    def score_std(self) -> float:
        return float(self.scores.std(dtype=np.float64))

    @property
    def score_scale(self) -> float:
        """`score_std`, fit to be divided by: see `floored`."""
        return floored(self.score_std, self.score_mean, self.rounding)

    @property
    def map_scale(self) -> float:
        """`map_std`, fit to be divided by: see `floored`."""
        self.require_statistics("the scale of normal images' maps")
        return floored(self.map_std, self.map_mean, self.rounding_of_maps)

    def standardize_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """`(scores - mean) / std` with the statistics of normal images' scores."""
        return (scores - self.score_mean) / self.score_scale

    def standardize_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """`(maps - mean) / std` with the statistics of normal images' pixels."""
        return (maps - self.map_mean) / self.map_scale

    def merged(self, other: Calibration) -> Calibration:
        """The statistics of both sets of images together. A threshold that was given stays."""
        if not self.has_statistics:
            return other if self.given is None else self
        if self.origin == "trained_on" and other.origin != "trained_on":  # those scores said nothing
            return replace(other, requested_rate=self.requested_rate, given=self.given, positions=())
        n, m = len(self.scores), len(other.scores)
        mean = (n * self.map_mean + m * other.map_mean) / (n + m)
        second = n * (self.map_std**2 + self.map_mean**2) + m * (other.map_std**2 + other.map_mean**2)
        both = f"{self.images_sha256}+{other.images_sha256}"
        return Calibration(
            scores=np.concatenate([self.scores, other.scores]),
            pixels=np.concatenate([self.pixels, other.pixels]),
            map_mean=mean,
            map_std=math.sqrt(max(0.0, second / (n + m) - mean**2)),
            requested_rate=self.requested_rate,
            origin=other.origin if self.origin == "calibrated" else self.origin,
            images_sha256=hashlib.sha256(both.encode()).hexdigest(),
            rounding=max(self.rounding, other.rounding),
            map_rounding=max(self.rounding_of_maps, other.rounding_of_maps),
            given=self.given,
            peaks=None
            if self.peaks is None or other.peaks is None
            else np.concatenate([self.peaks, other.peaks]),
        )


def floored(std: float, mean: float, rounding: float = 0.0) -> float:
    """A standard deviation that can be divided by: at least a thousandth of the mean's magnitude. Where both
    are nothing but rounding, so that no scale is known, it is 1, and values keep the unit they have.
    """
    least = max(std, LEAST_SHARE * abs(mean))
    return least if least > rounding else 1.0


def weakest(origins: Iterable[Origin]) -> Origin:
    """Of the origins of several parts the one that says least of new images."""
    return min(origins, key=get_args(Origin).index)


def odd_images(calibration: Calibration, most: int = 5) -> list[tuple[int, float]]:
    """The training images least like the others: their positions and scores, the oddest first.

    Odd is a score above the median by more than three robust deviations (1.4826 times the median absolute
    deviation, which for a normal distribution is the standard deviation). A photograph of something else, or
    of a defect, is told here; rare but good images are, too.

    `most` at most are given. Only images whose `positions` are known can be told, and only among
    `_FEWEST_TO_COMPARE`.
    """
    positions = calibration.positions
    scores = calibration.scores.astype(np.float64)
    if len(positions) < _FEWEST_TO_COMPARE:
        return []
    median = float(np.median(scores))
    deviation = 1.4826 * float(np.median(np.abs(scores - median)))
    deviation = max(deviation, LEAST_SHARE * abs(median), calibration.rounding)
    order = np.argsort(-scores, kind="stable")[:most]
    return [(positions[i], float(scores[i])) for i in order if scores[i] > median + 3.0 * deviation]


def deciding_images(calibration: Calibration) -> tuple[list[tuple[int, float]], float]:
    """The one or two training images that decide the threshold: positions and scores, and the threshold
    without them.

    An image decides it if the threshold without it is nearer to the median of the scores by more than two
    fifths of its distance; two images decide it if it is by more than three fifths. Where none does, or
    no `positions` are known, the list is empty and the threshold as it is.
    """
    positions = () if calibration.given is not None else calibration.positions
    threshold, scores = calibration.threshold, calibration.scores.astype(np.float64)
    if len(positions) >= _FEWEST_TO_DECIDE:
        distance = threshold - float(np.median(scores))
        order = np.argsort(-scores, kind="stable")
        for count, share in enumerate(_DECIDING_SHARES, 1):
            others = calibration.scores[order[count:]]
            without, _ = estimated_threshold(others, calibration.requested_rate)
            if threshold - without > max(share * distance, calibration.rounding):
                return [(positions[i], float(scores[i])) for i in order[:count]], without
    return [], threshold


def extended(known: Sequence[Calibration], new: Sequence[Calibration], falling: bool) -> list[Calibration]:
    """Statistics, one per leaf, of a detector that has learned more images, from those it had and those of
    the new images. `falling`: no image can score higher than before, so that calibrated ones hold on; else
    they become estimates, with a warning.
    """
    if not falling and any(old.is_guaranteed for old in known):
        warn(
            "the guarantee of calibrate does not hold after extend, since scores may have risen: the "
            "threshold is an estimate now; call calibrate again"
        )
    pairs = zip(known, new, strict=True)
    return [old if old.origin == "calibrated" and falling else old.merged(own) for old, own in pairs]


def images_for(rate: float) -> int:
    """How many fresh images guarantee a false-alarm rate.

    >>> images_for(0.01)
    99
    """
    return math.ceil(1 / rate - 1e-9) - 1


def warn_if_too_few(calibrations: Iterable[Calibration]) -> None:
    """Warn where there were too few images for the rate asked for."""
    for calibration in calibrations:
        n, asked, stated = len(calibration.scores), calibration.requested_rate, calibration.false_alarm_rate
        if stated > asked:
            warn(
                f"{n} images cannot guarantee a false-alarm rate of {asked:g} "
                f"({images_for(asked)} are needed): the threshold is their largest "
                f"score, with a rate of {stated:.3g}"
            )
