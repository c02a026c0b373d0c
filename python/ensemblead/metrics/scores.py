"""Metrics of one score per image: area under the ROC curve, average precision, best F1."""

from __future__ import annotations

from typing import Any

from ensemblead.metrics.curve import Ranking, rank
from ensemblead.metrics.inputs import scores_and_labels


def rank_scores(scores: Any, labels: Any) -> Ranking:
    """The `Ranking` of scores against labels; for errors see `auroc`."""
    values, truth = scores_and_labels(scores, labels)
    return rank(values[truth], values[~truth])


def auroc(scores: Any, labels: Any) -> float:
    """Area under the receiver operating characteristic: how surely an anomalous item outscores a normal one.

    Equal scores count half. Equals `sklearn.metrics.roc_auc_score`.

    Args:
        scores: Any shape; larger means more anomalous. NumPy, torch or CuPy array, or a sequence.
        labels: The same shape; 0 or False is normal, 1 or True is anomalous.

    Raises:
        ValueError: The shapes differ, a score is not finite, a label is neither 0 nor 1, or only one class is
            there (the area is not defined then).
        TypeError: `scores` or `labels` do not hold numbers.

    Example:
        >>> import ensemblead as ead
        >>> ead.auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    return float(rank_scores(scores, labels).area())


def average_precision(scores: Any, labels: Any) -> float:
    """Sum over the distinct scores of (rise in recall) * precision.

    Equals `sklearn.metrics.average_precision_score`.
    Arguments and errors as for `auroc`.
    """
    return float(rank_scores(scores, labels).average_precision())


def f1_max(scores: Any, labels: Any) -> tuple[float, float]:
    """The best F1 score over all thresholds, and the highest threshold that has it.

    An item is called anomalous where score >= threshold. The threshold is chosen by the labels: it shows how
    well scores *can* be separated, not how well a detector's own threshold does.
    Arguments and errors as for `auroc`.
    """
    return rank_scores(scores, labels).f1_max()
