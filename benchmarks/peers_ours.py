"""ensemblead's side of bench_peers.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers_cell import Found, Task, run

import ensemblead as ead

# Images that int8 is made with, and that its graph is read from.
QUANTIZED_WITH = 100


class Ours:
    """PatchCore; the option `int8` quantizes it as a part of the fit."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        options = dict(task.options)
        self._int8 = options.pop("int8", False)
        self._train = Path(task.category) / "train" / "good"
        self._detector = ead.PatchCore(
            task.network, task.layers, weights=task.weights, device="cpu", **options
        ).load_networks()

    def fit(self) -> None:
        self._detector.fit(self._train)
        if self._int8:
            self._detector.quantize(self._train, max_images=QUANTIZED_WITH)

    def predict_file(self, path: str) -> Found:
        return _only(self._detector.predict([path]))

    def predict_pixels(self, pixels: np.ndarray[Any, Any]) -> Found:
        return _only(self._detector.predict(pixels[None]))

    def verdicts(self, scores: np.ndarray[Any, Any], labels: Sequence[bool]) -> list[bool]:
        """By the threshold of `fit`, which knows no label."""
        calibration = self._detector.calibration_
        assert calibration is not None
        return [bool(one) for one in calibration.is_anomalous(torch.from_numpy(scores.astype(np.float32)))]

    def facts(self) -> dict[str, Any]:
        geometry = self._detector.geometry
        return {"version": ead.__version__, "resize": geometry.resize, "crop": geometry.crop}


def _only(predictions: ead.Predictions) -> Found:
    return float(predictions.anomaly_score[0]), predictions.anomaly_map[0]


if __name__ == "__main__":
    run(Ours)
