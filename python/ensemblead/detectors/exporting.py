"""What an exported graph is compared by: image by image, with what the detector says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.predictions import Predictions

# Rows of the table that a failure shows.
_SHOWN = 10


@dataclass(frozen=True)
class ComparedImage:
    """One image, by the detector and by its exported graph.

    Attributes:
        image: its path, or its place.
        score, exported_score: of both.
        score_change: their difference, relative to the score or, if that is larger, the threshold. Without
            one, the mean of all scores stands for it.
        map_change: the largest difference of a pixel, relative to the largest of any map.
        is_anomalous, exported_is_anomalous: the verdicts.
    """

    image: str
    score: float
    exported_score: float
    score_change: float
    map_change: float
    is_anomalous: bool
    exported_is_anomalous: bool

    @property
    def changes_verdict(self) -> bool:
        return self.is_anomalous != self.exported_is_anomalous


@dataclass(frozen=True)
class ExportReport:
    """How far an exported graph is from its detector, on the images that it was verified with.

    Attributes:
        images: one row per image.
        tolerance: the most that `score_change` and `map_change` may be.
        allow_flag_changes: the most verdicts that may change.
    """

    images: tuple[ComparedImage, ...]
    tolerance: float
    allow_flag_changes: int

    @property
    def largest_score_change(self) -> float:
        return _largest(row.score_change for row in self.images)

    @property
    def largest_map_change(self) -> float:
        return _largest(row.map_change for row in self.images)

    @property
    def changed_verdicts(self) -> int:
        return sum(row.changes_verdict for row in self.images)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of the scores; NaN where all of one kind are equal."""
        ours = _ranks([row.score for row in self.images])
        theirs = _ranks([row.exported_score for row in self.images])
        if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
            return float("nan")
        return float(np.corrcoef(ours, theirs)[0, 1])

    @property
    def worst(self) -> ComparedImage:
        """The image whose score or map moves most, and NaN counts as most; where none moves too far, of those
        whose verdict changes.
        """
        return self._worst_first()[0]

    @property
    def passed(self) -> bool:
        return self._moves_little and self.changed_verdicts <= self.allow_flag_changes

    @property
    def _moves_little(self) -> bool:
        # A comparison with NaN is false.
        return self.largest_score_change <= self.tolerance and self.largest_map_change <= self.tolerance

    def _worst_first(self) -> list[ComparedImage]:
        by_verdict = self._moves_little

        def badness(row: ComparedImage) -> tuple[bool, float]:
            return by_verdict and row.changes_verdict, _largest((row.score_change, row.map_change))

        return sorted(self.images, key=badness, reverse=True)

    def summary(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "images": len(self.images),
            "tolerance": self.tolerance,
            "allow_flag_changes": self.allow_flag_changes,
            "largest_score_change": self.largest_score_change,
            "largest_map_change": self.largest_map_change,
            "changed_verdicts": self.changed_verdicts,
            "rank_correlation": None if np.isnan(self.rank_correlation) else self.rank_correlation,
            "table": [asdict(row) for row in self.images],
        }

    def __repr__(self) -> str:
        outcome = "passed" if self.passed else "failed"
        return (
            f"ExportReport({outcome}: {len(self.images)} images, scores move by "
            f"{self.largest_score_change:.2g}, maps by {self.largest_map_change:.2g}, "
            f"{self.changed_verdicts} verdicts change)"
        )

    def __str__(self) -> str:
        """The worst rows, as a table."""
        rows = self._worst_first()
        lines = [f"{'score':>12} {'exported':>12} {'change':>9} {'map':>9}  image"]
        for row in rows[:_SHOWN]:
            verdict = "  (verdict changes)" if row.changes_verdict else ""
            lines.append(
                f"{row.score:12.6g} {row.exported_score:12.6g} {row.score_change:9.2g} "
                f"{row.map_change:9.2g}  {row.image}{verdict}"
            )
        if len(rows) > _SHOWN:
            lines.append(f"and {len(rows) - _SHOWN} more")
        return "\n".join(lines)

    def failure(self) -> str:
        """A sentence on what moves too far, the worst image, and the table."""
        worst = self.worst
        return (
            f"the exported graph does not compute what the detector does: {self.changed_verdicts} of "
            f"{len(self.images)} verdicts change, where {self.allow_flag_changes} may; scores move by up to "
            f"{self.largest_score_change:.2g} and maps by up to {self.largest_map_change:.2g} of themselves, "
            f"where {self.tolerance:g} is allowed; the worst is {worst.image}, {worst.score:.6g} by the "
            f"detector and {worst.exported_score:.6g} by the graph\n{self}"
        )


def compared(
    expected: Iterable[tuple[Predictions, Predictions]],
    names: list[str],
    threshold: float,
    tolerance: float,
    allow_flag_changes: int,
    rounding: float = 0.0,
) -> ExportReport:
    """A report of pairs of predictions, the detector's first, of one image after the other.

    `threshold` and `rounding` are those of `Calibration`.
    """
    rows: list[tuple[Any, ...]] = []
    scale = max(rounding, 1e-30)
    for ours, theirs in expected:
        score, exported = float(ours.anomaly_score[0]), float(theirs.anomaly_score[0])
        moved = _map_difference(ours.anomaly_map, theirs.anomaly_map)
        scale = max(scale, float(np.abs(ours.anomaly_map).max()))
        verdicts = bool(ours.is_anomalous[0]), bool(theirs.is_anomalous[0])
        rows.append((score, exported, moved, *verdicts))
    exact, found = (np.array([row[place] for row in rows], dtype=np.float64) for place in (0, 1))
    changes = score_changes(found, exact, threshold, rounding).tolist()
    images = tuple(
        ComparedImage(name, score, exported, change, moved / scale, *verdicts)
        for name, change, (score, exported, moved, *verdicts) in zip(names, changes, rows, strict=True)
    )
    return ExportReport(images, tolerance, allow_flag_changes)


def score_changes(
    found: npt.NDArray[Any], exact: npt.NDArray[Any], threshold: float, rounding: float
) -> npt.NDArray[np.float64]:
    """How far scores `[N]` are from the exact ones, relatively.

    Scores may be around zero, those of ensembles and of an image that the memory bank holds. So none counts
    as smaller than the threshold, or, where there is none, than the mean of all, or than their rounding.
    """
    wanted = np.abs(exact.astype(np.float64))
    usual = abs(threshold) if np.isfinite(threshold) else float(wanted.mean())
    change: npt.NDArray[np.float64] = np.abs(found.astype(np.float64) - exact)
    return change / np.maximum(wanted, max(usual, rounding, 1e-30))


def _map_difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """The largest; NaN where shapes differ."""
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("nan")


def _largest(values: Iterable[float]) -> float:
    """The largest of values; infinity where one is NaN."""
    return max(float("inf") if np.isnan(value) else value for value in values)


def _ranks(values: list[float]) -> npt.NDArray[np.float64]:
    """Places in ascending order; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
