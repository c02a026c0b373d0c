"""One to eight images: PatchCore on so few, with and without changed copies of them (`augment`).

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_few_shot.py --data FOLDER --weights FOLDER

`--data` and `--weights` are those of bench_detection.py. A draw takes so many of the good training images at
random, by its number; five draws make a row. All choices of `augment` learn from the same draw, and see the
test images in one pass; "auto" has the figures of what it chooses, and `rotated` says how often it turned.
Banks have the same size for all of them, so that they predict equally fast. Every draw is kept in
results/few_shot.json as soon as it is measured, and a run goes on where it was stopped; `--again` measures
anew what is known.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from common import in_child
from kept import Kept, measure_together
from record import Figure, FiguresOf

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.evaluation import evaluate

CATEGORIES = {"bottle": "mvtec_bottle", "cookies": "aws_cookies", "magnetic tile": "magnetic_tile"}
NETWORKS = ("resnet18", "efficientnet_lite0")
SHOTS = (1, 2, 4, 8)
AUGMENT = {"none": None, "rotations": "rotations", "brightness": "brightness", "auto": "auto"}
DRAWS = 5
BANK_ROWS = 2000
METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "aupro"}
VERDICTS = {"false alarms": "false_alarm_rate", "misses": "miss_rate"}


class Replay:
    """Predictions that were made before, as a detector: what `evaluate` asks of one."""

    def __init__(self, detector: Any, predictions: Any) -> None:
        self.geometry, self.calibration_, self._predictions = (
            detector.geometry,
            detector.calibration_,
            predictions,
        )

    def predict_batches(self, images: Any) -> Iterator[Any]:
        yield self._predictions


def drawn(images: list[str], shots: int, draw: int) -> list[str]:
    """So many of the images, by the number of the draw."""
    which = np.random.default_rng([draw, shots]).choice(len(images), shots, replace=False)
    return [images[i] for i in sorted(which.tolist())]


def detector_of(weights: Path, network: str, augment: Any) -> ead.PatchCore:
    return ead.PatchCore(
        network,
        weights=weights / f"{network}.safetensors",
        resize=(256, 256),
        coreset_size=BANK_ROWS,
        augment=augment,
        device="cpu",
    )


def measure(path: Path, weights: Path, network: str, shots: int, draw: int) -> list[dict[str, Any]]:
    """What each choice of `augment` comes to, in their order."""
    category = MVTecAD(path).categories[0]
    train = drawn([str(image) for image in category.train], shots, draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how little so few images say
        *detectors, auto = (detector_of(weights, network, augment).fit(train) for augment in AUGMENT.values())
        parts: list[list[Any]] = [[] for _ in detectors]
        for batch in ead.BackboneEnsemble(detectors).predict_members([one.path for one in category.test]):
            for own, predictions in zip(parts, batch, strict=True):
                own.append(predictions)
        found = []
        for detector, own in zip(detectors, parts, strict=True):
            predictions = type(own[0]).concatenate(own)
            own.clear()
            row = evaluate(Replay(detector, predictions), category, bootstrap=0).rows[0]
            cell = {name: float(getattr(row, name)) for name in (*METRICS.values(), *VERDICTS.values())}
            found.append({**cell, "rotated": detector.augment == "rotations"})
    # "auto" gives the bank of its choice to the bit, as tests/detectors/test_augment.py shows.
    return [*found, found[list(AUGMENT).index("rotations" if auto.augment_ else "none")]]


class Shots(Kept):
    """A choice of `augment` on so many images of a category: means and standard deviations over draws."""

    def figure(self) -> Figure:
        columns = {title: self.spread(name) for title, name in {**METRICS, **VERDICTS}.items()}
        columns["rotated"] = f"{sum(bool(cell['rotated']) for cell in self._cells.values())}"
        columns["draws"] = str(len(self._cells))
        mean = float(np.mean(self.values("image_auroc")))
        details = {"columns": columns, "cells": self._cells}
        return Figure(self.benchmark, self._what, mean, "image AUROC", details=details)


@pytest.mark.parametrize("shots", SHOTS, ids=lambda shots: f"{shots}shots")
@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("draw", range(DRAWS), ids=lambda draw: f"draw{draw}")
def test_shots(
    request: pytest.FixtureRequest,
    figures: FiguresOf,
    material: tuple[Path, Path],
    category: str,
    network: str,
    shots: int,
    draw: int,
) -> None:
    path = material[0] / CATEGORIES[category]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    again = bool(request.config.getoption("--again"))
    images = f"{shots} image{'s' * (shots > 1)}"
    rows = [Shots(figures, f"{category}, {network}, {images}: {name}", again) for name in AUGMENT]
    if measure_together(rows, str(draw), partial(in_child, measure, path, material[1], network, shots, draw)):
        for row in rows:
            row.report()
