"""Metrics of anomaly detection in plain NumPy; scipy labels the connected components of masks."""

from ensemblead.metrics.bootstrap import Interval, score_intervals
from ensemblead.metrics.curve import Ranking, curve_points, precision_recall_points
from ensemblead.metrics.pixels import PRO_LIMITS, PixelMetrics, PixelScores, TypeMetrics, aupro
from ensemblead.metrics.rates import rate_interval
from ensemblead.metrics.scores import auroc, average_precision, f1_max, rank_scores

__all__ = [
    "PRO_LIMITS",
    "Interval",
    "PixelMetrics",
    "PixelScores",
    "Ranking",
    "TypeMetrics",
    "aupro",
    "auroc",
    "average_precision",
    "curve_points",
    "f1_max",
    "precision_recall_points",
    "rank_scores",
    "rate_interval",
    "score_intervals",
]
