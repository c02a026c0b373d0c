"""Record what ranx, torchmetrics and pytorch-metric-learning compute, for tests/retrieval/.

    pip install ranx==0.3.21 torchmetrics==1.9.0 pytorch-metric-learning==2.9.0  # apart from this project
    PYTHONPATH=tests python tools/record_retrieval.py

Embeddings follow from a seed (tests/support/retrieval.py), so only numbers are recorded. Every item is the
query once, and is left out of its own list.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ranx
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from support.retrieval import DEEP, DEPTH, FUSED, cosines, labelled, ranked_lists
from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision, RetrievalRecall

OUT = Path(__file__).resolve().parent.parent / "tests" / "retrieval" / "recorded.json"


def by_ranx(similarities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    names = [f"item{n}" for n in range(len(labels))]
    truth, run = {}, {}
    for q in range(len(labels)):
        relevant = [n for n in np.flatnonzero(labels == labels[q]) if n != q]
        if not relevant:
            continue
        truth[names[q]] = {names[n]: 1 for n in relevant}
        run[names[q]] = {names[n]: float(similarities[q, n]) for n in range(len(labels)) if n != q}
    metrics = [f"map@{DEPTH}", f"precision@{DEPTH}", f"recall@{DEPTH}", "r-precision"]
    found = ranx.evaluate(ranx.Qrels(truth), ranx.Run(run), metrics)
    return {name: float(value) for name, value in found.items()}


def by_torchmetrics(similarities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """To two depths, and with similarities that are all above 0, of which it drops none."""
    found = {}
    off = ~np.eye(len(labels), dtype=bool)
    queries = np.nonzero(off)[0]
    target = torch.from_numpy((labels[:, None] == labels)[off])
    for name, shift, depth in (("at k", 0.0, DEPTH), ("deep", 0.0, DEEP), ("deep, above 0", 2.0, DEEP)):
        scores = torch.from_numpy(similarities[off] + shift)
        for metric in (RetrievalMAP, RetrievalPrecision, RetrievalRecall):
            measure = metric(top_k=depth, empty_target_action="skip")
            value = measure(scores, target, indexes=torch.from_numpy(queries))
            found[f"{metric.__name__}, {name}"] = float(value)
    return found


def by_metric_learning(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    found = {}
    for wanted, depth in (
        (("mean_average_precision",), DEPTH),
        (("mean_average_precision_at_r", "r_precision"), len(labels) - 1),
    ):
        calculator = AccuracyCalculator(
            include=wanted, k=depth, knn_func=CustomKNN(CosineSimilarity()), device=torch.device("cpu")
        )
        values = calculator.get_accuracy(torch.from_numpy(embeddings), torch.from_numpy(labels))
        found |= {metric: float(values[metric]) for metric in wanted}
    return found


def fused() -> dict[str, Any]:
    """Reciprocal rank fusion, and the sum of min-max normalised scores."""
    runs = [ranx.Run({"q": dict(zip(names, scores, strict=True))}) for names, scores in ranked_lists()]
    rrf = ranx.fuse(runs, method="rrf", params={"k": FUSED})
    score = ranx.fuse(runs, norm="min-max", method="sum")
    return {"rrf": dict(rrf.run["q"]), "score": dict(score.run["q"])}


def main() -> None:
    embeddings, labels = labelled()
    similarities = cosines(embeddings)
    packages = ("ranx", "torchmetrics", "pytorch-metric-learning")
    recorded = {
        "versions": {name: version(name) for name in packages},
        "ranx": by_ranx(similarities, labels),
        "torchmetrics": by_torchmetrics(similarities, labels),
        "pytorch-metric-learning": by_metric_learning(embeddings, labels),
        "fused": fused(),
    }
    OUT.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
