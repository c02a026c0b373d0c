"""Rules that `bench_thresholds.py` compares: from scores of normal images and a rate to a threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from ensemblead.calibration import conformal_threshold, estimated_threshold

Scores = npt.NDArray[Any]
Rule = Callable[[Scores, float], float]
# The limit on the images that were scored, before estimated_threshold was an exponential tail.
OLD_LIMIT = 100


def chosen(scores: Scores, rate: float) -> float:
    """The library's rule: an exponential tail whose scale leans on the bulk."""
    return estimated_threshold(scores, rate)[0]


def rank(scores: Scores, rate: float) -> float:
    """The conformal rank; of too few scores the largest."""
    return conformal_threshold(scores, rate)[0]


def normal_bound(scores: Scores, rate: float) -> float:
    """The one-sided prediction bound of a normal distribution."""
    n = len(scores)
    spread = float(scores.std(ddof=1)) * (1 + 1 / n) ** 0.5
    return float(scores.mean()) + float(stdtrit(n - 1, 1 - rate)) * spread


def lower_of_both(scores: Scores, rate: float) -> float:
    return min(rank(scores, rate), normal_bound(scores, rate))


def before(scores: Scores, rate: float) -> float:
    """The lower of both with too few scores for the rank, else the rank, of at most a hundred."""
    if len(scores) > OLD_LIMIT:
        scores = scores[np.linspace(0, len(scores) - 1, OLD_LIMIT).round().astype(int)]
    few = len(scores) < 1 / rate - 1 - 1e-9
    return lower_of_both(scores, rate) if few else rank(scores, rate)


def log_normal(scores: Scores, rate: float) -> float:
    """The normal bound of the logarithms. Fused scores may be negative, and have none."""
    return float(np.exp(normal_bound(np.log(np.maximum(scores, 1e-12)), rate)))


def trimmed(scores: Scores, rate: float, share: float = 0.05) -> float:
    """The normal bound without the largest twentieth (one at least), its moments made good."""
    n = len(scores)
    kept = np.sort(scores)[: n - max(1, round(share * n))]
    part = (len(kept) + 0.5) / (n + 1)
    edge = float(ndtri(part))
    density = float(np.exp(-edge * edge / 2) / np.sqrt(2 * np.pi)) / part
    spread = float(kept.std(ddof=1)) / (1 - edge * density - density**2) ** 0.5
    mean = float(kept.mean()) + density * spread
    return mean + float(stdtrit(len(kept) - 1, 1 - rate)) * spread * (1 + 1 / n) ** 0.5


def deviations(scores: Scores, rate: float) -> float:
    """The median and as many median absolute deviations as a normal distribution needs."""
    median = float(np.median(scores))
    return median + float(ndtri(1 - rate)) * 1.4826 * float(np.median(np.abs(scores - median)))


def peaks(scores: Scores) -> tuple[float, Scores, float]:
    """The level below the highest fifth (five at least), the excesses over it, and their share."""
    n = len(scores)
    count = min(n - 1, max(5, round(0.2 * n)))
    ordered = np.sort(scores)
    level = float(ordered[n - count - 1])
    return level, ordered[n - count :] - level, count / (n + 1)


def exponential(scores: Scores, rate: float) -> float:
    """An exponential tail."""
    level, excess, above = peaks(scores)
    return level + float(excess.mean()) * float(np.log(max(1.0, above / rate)))


def pareto(scores: Scores, rate: float) -> float:
    """A generalised Pareto tail by probability-weighted moments, its shape within -0.5 and 0.5."""
    level, excess, above = peaks(scores)
    count = len(excess)
    first = float(excess.mean())
    second = float((excess * (1 - (np.arange(1, count + 1) - 0.35) / count)).mean())
    if first - 2 * second <= 1e-9 * first:
        return rank(scores, rate)
    shape = float(np.clip(2 - first / (first - 2 * second), -0.5, 0.5))
    ratio = max(1.0, above / rate)
    grown = np.log(ratio) if abs(shape) < 1e-6 else (ratio**shape - 1) / shape
    return level + first * (1 - shape) * float(grown)


RULES: dict[str, Rule] = {
    "exponential tail, leaning on the bulk (chosen)": chosen,
    "lower of rank and normal, at most 100 (before)": before,
    "rank": rank,
    "lower of rank and normal": lower_of_both,
    "normal": normal_bound,
    "trimmed normal": trimmed,
    "log-normal": log_normal,
    "median + k MAD": deviations,
    "exponential tail": exponential,
    "generalised Pareto tail": pareto,
}
# Of the scores by five-fold refits.
REFITTED: dict[str, Rule] = {
    "five-fold refits, rank": rank,
    "five-fold refits, lower of rank and normal": lower_of_both,
}
