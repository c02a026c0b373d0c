"""Many detectors' scores and maps into one.

All kinds but "minmax" look at one image alone, against statistics of normal images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.calibration import Calibration, Origin, floored, weakest

FUSIONS = ("calibrated", "minmax", "mean", "max", "rank")
# Steps of the empirical distribution that map pixels are ranked in.
_QUANTILES = 513


def check_weights(weights: Sequence[float] | None, members: int, fusion: str) -> tuple[float, ...]:
    """Weights that sum to 1, one per member; equal ones for None."""
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
    if weights is None:
        return (1.0 / members,) * members
    given = tuple(float(weight) for weight in weights)
    if fusion == "max" and len(set(given)) > 1:
        raise ValueError("weights have no meaning with fusion='max'")
    if len(given) != members:
        raise ValueError(f"weights must be one per member ({members}), got {len(given)}")
    if not all(0 <= weight < float("inf") for weight in given) or sum(given) == 0:
        raise ValueError(f"weights must be finite, not negative and not all zero, got {given}")
    # Weights that sum to 1 stay as they are to the last bit.
    total = 1.0 if math.isclose(sum(given), 1.0, rel_tol=1e-12) else sum(given)
    return tuple(weight / total for weight in given)


def fuse_scores(
    fusion: str, scores: Sequence[torch.Tensor], calibrations: Sequence[Calibration], weights: Sequence[float]
) -> torch.Tensor:
    """One score per image `[B]` from each member's `[B]`.

    "calibrated": weighted mean of `(x - mean) / std` over normal images' scores. "mean": of the scores as
    they are. "max": the largest calibrated one. "rank": weighted mean of the places, in (0, 1), that the
    scores take among those of normal images.
    """
    if fusion == "rank":
        _require_statistics(fusion, calibrations)
        ranked = [rank(x, c.scores, c.rounding) for x, c in zip(scores, calibrations, strict=True)]
        return _weighted(ranked, weights)
    if fusion == "mean":
        return _weighted(scores, weights)
    standard = [c.standardize_scores(x) for x, c in zip(scores, calibrations, strict=True)]
    return torch.stack(standard).amax(0) if fusion == "max" else _weighted(standard, weights)


def fuse_maps(
    fusion: str, maps: Sequence[torch.Tensor], calibrations: Sequence[Calibration], weights: Sequence[float]
) -> torch.Tensor:
    """One map from each member's of the same shape; as `fuse_scores`, with the statistics of pixels."""
    if fusion == "rank":
        _require_statistics(fusion, calibrations)
        tables = [np.quantile(c.pixels, np.linspace(0, 1, _QUANTILES)) for c in calibrations]
        ranked = [rank(x, t, c.rounding_of_maps) for x, t, c in zip(maps, tables, calibrations, strict=True)]
        return _weighted(ranked, weights)
    if fusion == "mean":
        return _weighted(maps, weights)
    standard = [c.standardize_maps(x) for x, c in zip(maps, calibrations, strict=True)]
    return torch.stack(standard).amax(0) if fusion == "max" else _weighted(standard, weights)


def fuse_minmax(
    values: Sequence[npt.NDArray[np.float32]], weights: Sequence[float]
) -> npt.NDArray[np.float32]:
    """Weighted mean of `(x - min) / (max - min)`, one pair per member over all its values (0 where they are
    equal): what PatchCore's reference implementation does with scores, and with maps.
    """
    total = np.zeros(values[0].shape, dtype=np.float64)
    for x, weight in zip(values, weights, strict=True):
        low, high = float(x.min()), float(x.max())
        if high > low:
            total += weight * ((x - low) / (high - low))
    return total.astype(np.float32)


def rank(values: torch.Tensor, normal: npt.NDArray[np.floating], rounding: float = 0.0) -> torch.Tensor:
    """Where values stand among n normal ones: their distribution function, with open ends.

    Linear between the i-th smallest normal value, at `i / (n + 1)`, and the next. Beyond the ends it goes on,
    ever flatter, towards 0 and 1, so that two clear defects still differ. Normal values within `rounding` of
    each other count as equal.
    """
    knots, counts = _distinct(np.asarray(normal, dtype=np.float64), rounding)
    # The middle of the ranks that equal values share.
    places = (np.cumsum(counts) - (counts - 1) / 2) / (counts.sum() + 1)
    scale = floored(float(np.std(normal)), float(np.mean(normal)), rounding)
    x = values.double()
    # Small enough to go with the queue: a GPU is not waited for.
    xs = torch.from_numpy(knots).to(x.device, non_blocking=True)
    ys = torch.from_numpy(places).to(x.device, non_blocking=True)
    if len(knots) > 1:
        right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
        part = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
        inside = ys[right - 1] + part * (ys[right] - ys[right - 1])
    else:
        inside = ys.expand_as(x)
    # By the logarithm, so that float32 still tells scores apart that lie a thousand deviations out.
    above = 1.0 - (1.0 - ys[-1]) / (1.0 + torch.log1p((x - xs[-1]).clamp_min(0) / scale))
    below = ys[0] / (1.0 + torch.log1p((xs[0] - x).clamp_min(0) / scale))
    return torch.where(x > xs[-1], above, torch.where(x < xs[0], below, inside)).float()


def _distinct(
    values: npt.NDArray[np.float64], rounding: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Values in ascending order, each more than `rounding` above the one before, and how many each stands
    for.
    """
    knots, counts = np.unique(values, return_counts=True)
    starts, last = [], -np.inf
    for i, knot in enumerate(knots):
        if knot - last > rounding:
            starts.append(i)
            last = knot
    totals = np.add.reduceat(counts, starts)
    return np.add.reduceat(knots * counts, starts) / totals, totals


def combine_calibrations(
    fusion: str, members: Sequence[Calibration], weights: Sequence[float]
) -> Calibration:
    """The statistics of the fused detector, in the units of its scores and maps.

    Members calibrated on the same images: those images' fused scores and maps. Members calibrated apart: the
    images of each are ordered by score and fused rank by rank, as if the members agreed on which images are
    the strangest. That is the coupling with the widest tail of sums, so the estimated threshold errs to the
    high side.

    Where a member has no statistics the whole has none, and no threshold.
    """
    if not all(c.has_statistics for c in members):
        return Calibration.without_images()
    together = len({c.images_sha256 for c in members}) == 1 and len({len(c.scores) for c in members}) == 1
    if together:
        scores, pixels = [c.scores for c in members], [c.pixels for c in members]
    else:
        count = min(len(c.scores) for c in members)
        ranks = (np.arange(count) + 0.5) / count
        scores = [np.quantile(c.scores, ranks, method="inverted_cdf") for c in members]
        steps = (np.arange(count * 64) + 0.5) / (count * 64)
        pixels = [np.quantile(c.pixels, steps).reshape(count, -1) for c in members]
    fused_scores = fuse_scores(fusion, [_tensor(s) for s in scores], members, weights).numpy()
    fused_pixels = fuse_maps(fusion, [_tensor(p) for p in pixels], members, weights).numpy()
    # Of values that only rise with each member's, the largest in a cell is at most that of the largest ones.
    peaks = [c.peaks for c in members if c.peaks is not None]
    fused_peaks = None
    if together and len(peaks) == len(members):
        fused_peaks = fuse_maps(fusion, [_tensor(p) for p in peaks], members, weights).numpy()
    count = len(fused_scores)
    # A fit of all members gives all of them the images that decide the fused threshold.
    agreed = together and len({(c.positions, c.deciding, c.deciding_names) for c in members}) == 1
    return Calibration(
        scores=fused_scores,
        pixels=fused_pixels,
        map_mean=float(fused_pixels.mean(dtype=np.float64)),
        map_std=float(fused_pixels.std(dtype=np.float64)),
        requested_rate=max(c.requested_rate for c in members),
        origin=_common_origin(members, together),
        images_sha256=members[0].images_sha256 if together else "+".join(c.images_sha256 for c in members),
        rounding=_fused_rounding(
            fusion, [c.rounding for c in members], [c.score_scale for c in members], weights, count
        ),
        map_rounding=_fused_rounding(
            fusion, [c.rounding_of_maps for c in members], [c.map_scale for c in members], weights, count
        ),
        positions=members[0].positions if agreed else (),
        deciding=members[0].deciding if agreed else (),
        deciding_names=members[0].deciding_names if agreed else (),
        peaks=fused_peaks,
    )


def _require_statistics(fusion: str, members: Sequence[Calibration]) -> None:
    for one in members:
        one.require_statistics(f"fusion={fusion!r}")


def _common_origin(members: Sequence[Calibration], together: bool) -> Origin:
    """The weakest of the members' origins: a guarantee needs all of them, and the same images."""
    origin = weakest(c.origin for c in members)
    return origin if together or origin != "calibrated" else "leave_one_out"


def _fused_rounding(
    fusion: str, roundings: Sequence[float], scales: Sequence[float], weights: Sequence[float], count: int
) -> float:
    """How far rounding moves the fused score of `count` images, or values of its map, by how far it moves
    those of each member and what they are divided by.
    """
    if fusion == "mean":
        return sum(w * one for w, one in zip(weights, roundings, strict=True))
    moved = [one / scale for one, scale in zip(roundings, scales, strict=True)]
    if fusion == "max":
        return max(moved)
    total = sum(w * one for w, one in zip(weights, moved, strict=True))
    # A rank rises by at most 1/(n + 1) over a deviation beyond the largest normal score.
    return total / (count + 1) if fusion == "rank" else total


def _tensor(values: npt.NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _weighted(values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + value * weight
    return total
