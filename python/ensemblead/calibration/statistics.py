"""What normal images score: the yardstick for thresholds and for fusing detectors of different scales."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.warnings import warn
from ensemblead.kernels.maps import render_maps

# Images whose statistics are taken at fit time, spread evenly over the training set. A hundred suffice for a
# mean and a standard deviation, and are what a false-alarm rate of 1 % needs; the cost of fitting stays
# linear.
MAX_IMAGES = 100
DEFAULT_RATE = 0.01
# With fewer scores, the median of their deviations says too little of how much they spread.
_FEWEST_TO_COMPARE = 10
# A standard deviation is taken for at least this share of the mean.
LEAST_SHARE = 1e-3
# Squared distances between equal embeddings come out as up to 1e-13, and their roots accordingly.
ROUNDING = 1e-12
ROOT_ROUNDING = 1e-6
# Pixels kept of a map, as a lattice of this side: positions relative to the frame, so that maps of two sizes
# match.
_LATTICE = 32


def calibration_positions(num_images: int) -> frozenset[int]:
    """Which of `num_images` training images are scored for the statistics: at most `MAX_IMAGES`, evenly
    spread.
    """
    count = min(num_images, MAX_IMAGES)
    return frozenset(np.linspace(0, num_images - 1, count).round().astype(int).tolist())


def conformal_threshold(scores: npt.NDArray[Any], rate: float) -> tuple[float, float]:
    """The `ceil((n + 1)(1 - rate))`-th smallest of n scores, and the rate that it guarantees.

    A fresh normal image scores above it with probability at most that rate (split conformal prediction). If
    `n < 1/rate - 1` no such rank exists: then it is the largest score, with the rate `1/(n + 1)`.
    """
    if not 0 < rate < 1:
        raise ValueError(f"false_alarm_rate must be between 0 and 1, got {rate}")
    n = len(scores)
    if n == 0:
        raise ValueError("scores must not be empty")
    # 1e-9: (n + 1)(1 - rate) is often a whole number that floating point misses by a hair.
    rank = math.ceil((n + 1) * (1.0 - rate) - 1e-9)
    if rank > n:
        return float(np.max(scores)), 1.0 / (n + 1)
    return float(np.partition(scores, rank - 1)[rank - 1]), rate


def estimated_threshold(scores: npt.NDArray[Any], rate: float) -> tuple[float, float]:
    """The threshold by scores of the training images themselves, and the rate that is to be expected at it.

    As `conformal_threshold` where there are enough images for that. With fewer, that rule would take the
    largest score, and one odd image among the training set would decide. Then it is the lower of the largest
    score and the one-sided prediction bound of a normal distribution, `mean + t * std * sqrt(1 + 1/n)` with
    Student's t of n - 1 degrees of freedom. The rate is `(k + 1)/(n + 1)` for the k scores above the
    threshold: an estimate, for neither is the distribution known nor are the scores those of fresh images.
    """
    largest, stated = conformal_threshold(scores, rate)
    n = len(scores)
    if stated == rate or n < 2:
        return largest, stated
    from scipy.special import stdtrit

    values = np.asarray(scores, dtype=np.float64)
    spread = float(values.std(ddof=1)) * math.sqrt(1.0 + 1.0 / n)
    threshold = min(largest, float(values.mean()) + float(stdtrit(n - 1, 1.0 - rate)) * spread)
    return threshold, max(rate, (int((values > threshold).sum()) + 1) / (n + 1))


def odd_images(
    calibration: Calibration, num_images: int, skipped: Collection[int] = (), most: int = 5
) -> list[tuple[int, float]]:
    """The training images least like the others: their positions and scores, the oddest first.

    Odd is a score above the median by more than three robust deviations (1.4826 times the median absolute
    deviation, which for a normal distribution is the standard deviation). A photograph of something else, or
    of a defect, is told here; rare but good images are, too.

    Args:
        calibration: as `fit` on `num_images` images left it, before `calibrate` or `extend`.
        skipped: the positions of those that could not be read.
        most: how many to give at most.

    Only what is scored can be told: `calibration_positions`. Nothing is where those are fewer than
    `_FEWEST_TO_COMPARE`, or where some of them have no score (a shared tiled ensemble may sample fewer).
    """
    positions = [index for index in sorted(calibration_positions(num_images)) if index not in skipped]
    scores = calibration.scores.astype(np.float64)
    if calibration.fresh or len(positions) != len(scores) or len(scores) < _FEWEST_TO_COMPARE:
        return []
    median = float(np.median(scores))
    deviation = 1.4826 * float(np.median(np.abs(scores - median)))
    deviation = max(deviation, LEAST_SHARE * abs(median), calibration.rounding)
    order = np.argsort(-scores, kind="stable")[:most]
    return [(positions[i], float(scores[i])) for i in order if scores[i] > median + 3.0 * deviation]


class NormalSample:
    """Scores and maps of normal images, taken in one by one; `calibration` sums them up. `rounding` as
    `Calibration` has it.
    """

    def __init__(self, rounding: float = ROUNDING) -> None:
        self._rounding = rounding
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._count = 0
        self._results: list[tuple[torch.Tensor, torch.Tensor, tuple[int, int], bool]] = []

    def __len__(self) -> int:
        return self._count

    def add(self, scores: torch.Tensor, maps: torch.Tensor) -> None:
        """Scores `[B]` and maps `[B, H, W]` of B images; what is kept of them stays on their device."""
        rows = (torch.arange(_LATTICE, device=maps.device) * 2 + 1) * maps.shape[1] // (2 * _LATTICE)
        columns = (torch.arange(_LATTICE, device=maps.device) * 2 + 1) * maps.shape[2] // (2 * _LATTICE)
        lattice = maps[:, rows][:, :, columns].reshape(len(maps), -1)
        flat = maps.reshape(len(maps), -1).double()
        moments = torch.stack([flat.mean(1), flat.var(1, correction=0)], 1)
        # A copy: the scores may be a view of something larger.
        self._parts.append((scores.clone(), lattice, moments))
        self._count += len(scores)

    def add_grids(
        self, scores: torch.Tensor, grids: torch.Tensor, size: tuple[int, int], *, counted: bool = True
    ) -> None:
        """As `add`, with the maps that `render_maps` makes of grids `[B, h, w]`; `result` gives them again.

        `counted=False` leaves these images out of the statistics (their scores are not fair), but not out of
        the results.
        """
        if counted:
            self.add(scores, render_maps(grids, size))
        for score, grid in zip(scores, grids, strict=True):
            self._results.append((score.clone(), grid.clone(), size, counted))

    @property
    def num_results(self) -> int:
        """Images given to `add_grids`."""
        return len(self._results)

    def result(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Score `[1]` and map `[1, H, W]` of the image that came as number `index` to `add_grids`. Kept as
        grids, they take a hundredth of the maps' memory.
        """
        score, grid, size, _ = self._results[index]
        return score[None], render_maps(grid[None], size)

    def is_counted(self, index: int) -> bool:
        """Whether `add_grids` counted image `index`."""
        return self._results[index][3]

    def standardized(
        self, score_mean: float, score_std: float, map_mean: float, map_std: float
    ) -> NormalSample:
        """The sample of scores and maps less their mean and divided by their deviation; without results."""
        other = NormalSample(self._rounding)
        other._count = self._count
        for scores, pixels, moments in self._parts:
            means, variances = moments.unbind(1)
            standard = torch.stack([(means - map_mean) / map_std, variances / map_std**2], 1)
            other._parts.append(((scores - score_mean) / score_std, (pixels - map_mean) / map_std, standard))
        return other

    def calibration(self, rate: float, fresh: bool, images: str) -> Calibration:
        """The statistics of what was added; the arguments as `Calibration` describes them."""
        if not self._parts:
            raise ValueError("no normal images to take statistics from")
        # One copy of each to the host, whatever number of batches there was.
        scores, pixels, moments = (torch.cat(parts).cpu().numpy() for parts in zip(*self._parts, strict=True))
        means, variances = moments.T
        return Calibration(
            scores=scores.astype(np.float32),
            pixels=pixels.astype(np.float32),
            map_mean=float(means.mean()),
            map_std=float(np.sqrt((variances + (means - means.mean()) ** 2).mean())),
            requested_rate=rate,
            fresh=fresh,
            images=images,
            rounding=self._rounding,
        )


@dataclass(frozen=True)
class Calibration:
    """Statistics of normal images, in the units of the detector's scores and maps.

    `scores` float32 `[n]`, one per image; `pixels` float32 `[n, 1024]`, a lattice out of every map;
    `map_mean` and `map_std` over all pixels. `fresh`: from `calibrate` on images that were not fitted;
    otherwise leave-one-out. `images` identifies the images, so that detectors calibrated on the same ones can
    be told. `rounding`: the most that scores and maps of images without any difference come to; it follows
    from the detector and is not saved.
    """

    scores: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.float32]
    map_mean: float
    map_std: float
    requested_rate: float
    fresh: bool
    images: str
    rounding: float = ROUNDING

    @property
    def threshold(self) -> float:
        """A score above it is anomalous."""
        return self._threshold_and_rate()[0]

    @property
    def false_alarm_rate(self) -> float:
        """The share of normal images that `threshold` takes for anomalous: a guarantee if `fresh`, else an
        estimate.
        """
        return self._threshold_and_rate()[1]

    def _threshold_and_rate(self) -> tuple[float, float]:
        rule = conformal_threshold if self.fresh else estimated_threshold
        return rule(self.scores, self.requested_rate)

    @property
    def score_mean(self) -> float:
        return float(self.scores.mean(dtype=np.float64))

    @property
    def score_std(self) -> float:
        return float(self.scores.std(dtype=np.float64))

    def standardize_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """`(scores - mean) / std` with the statistics of normal images' scores."""
        return (scores - self.score_mean) / floored(self.score_std, self.score_mean, self.rounding)

    def standardize_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """`(maps - mean) / std` with the statistics of normal images' pixels."""
        return (maps - self.map_mean) / floored(self.map_std, self.map_mean, self.rounding)

    def merged(self, other: Calibration) -> Calibration:
        """The statistics of both sets of images together."""
        n, m = len(self.scores), len(other.scores)
        mean = (n * self.map_mean + m * other.map_mean) / (n + m)
        second = n * (self.map_std**2 + self.map_mean**2) + m * (other.map_std**2 + other.map_mean**2)
        return Calibration(
            scores=np.concatenate([self.scores, other.scores]),
            pixels=np.concatenate([self.pixels, other.pixels]),
            map_mean=mean,
            map_std=math.sqrt(max(0.0, second / (n + m) - mean**2)),
            requested_rate=self.requested_rate,
            fresh=self.fresh and other.fresh,
            images=hashlib.sha256(f"{self.images}+{other.images}".encode()).hexdigest(),
            rounding=max(self.rounding, other.rounding),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
        """Plain values and arrays for `from_state`."""
        values = {
            name: getattr(self, name) for name in ("map_mean", "map_std", "requested_rate", "fresh", "images")
        }
        # For the reader of the file; computed again from the scores on loading.
        told = {
            name: getattr(self, name) for name in ("threshold", "false_alarm_rate", "score_mean", "score_std")
        }
        return {**values, "summary": told}, {"scores": self.scores, "pixels": self.pixels}

    @classmethod
    def from_state(
        cls, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], rounding: float = ROUNDING
    ) -> Calibration:
        """What `state` gave. Raises TypeError or ValueError for what it never gives."""
        kept = {name: value for name, value in values.items() if name != "summary"}
        told = cls(scores=arrays["scores"], pixels=arrays["pixels"], **kept, rounding=rounding)
        told._check()
        return told

    def _check(self) -> None:
        for name, kinds in (
            ("map_mean", (int, float)),
            ("map_std", (int, float)),
            ("requested_rate", (float,)),
            ("fresh", (bool,)),
            ("images", (str,)),
        ):
            if type(value := getattr(self, name)) not in kinds:
                raise TypeError(
                    f"{name} must be {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}"
                )
        if not (math.isfinite(self.map_mean) and 0 <= self.map_std < math.inf):
            raise ValueError(f"map_mean and map_std cannot be {self.map_mean} and {self.map_std}")
        if not 0 < self.requested_rate < 1:
            raise ValueError(f"requested_rate must be between 0 and 1, got {self.requested_rate}")
        n = len(self.scores)
        for name, shape in (("scores", (n,)), ("pixels", (n, _LATTICE**2))):
            array = getattr(self, name)
            if n == 0 or array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(
                    f"{name} must be finite float32 {shape} of at least one image, got {array.dtype} "
                    f"{array.shape}"
                )


def floored(std: float, mean: float, rounding: float = ROUNDING) -> float:
    """A standard deviation that can be divided by: at least a thousandth of the mean's magnitude. Where both
    are nothing but rounding, so that no scale is known, it is 1, and values keep the unit they have.
    """
    least = max(std, LEAST_SHARE * abs(mean))
    return least if least > rounding else 1.0


class ImageDigest:
    """Identifies a set of images by their order, their sizes and a look at their pixels: wherever they lie,
    and whatever size a network sees them in.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, index: int, size: tuple[int, int], fingerprint: int) -> None:
        """One image, as `ImageBatch` describes it."""
        self._hash.update(f"{index}|{size}|{fingerprint};".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def extended(known: Sequence[Calibration], new: Sequence[Calibration], falling: bool) -> list[Calibration]:
    """Statistics, one per leaf, of a detector that has learned more images, from those it had and those of
    the new images. `falling`: no image can score higher than before, so that fresh ones hold on; else they
    become estimates, with a warning.
    """
    if not falling and any(old.fresh for old in known):
        warn(
            "what calibrate guaranteed does not hold after extend, since scores may have risen: the "
            "threshold is an estimate now; call calibrate again"
        )
    pairs = zip(known, new, strict=True)
    return [old if old.fresh and falling else old.merged(own) for old, own in pairs]


def warn_if_too_few(calibrations: Iterable[Calibration]) -> None:
    """Warn where there were too few images for the rate asked for."""
    for calibration in calibrations:
        n, asked, stated = len(calibration.scores), calibration.requested_rate, calibration.false_alarm_rate
        if stated > asked:
            warn(
                f"{n} images cannot guarantee a false-alarm rate of {asked:g} "
                f"({math.ceil(1 / asked - 1e-9) - 1} are needed): the threshold is their largest "
                f"score, with a rate of {stated:.3g}"
            )
