"""Engines and precisions of frozen networks on a CPU: how fast they are, and what they do to detection.

    python -m pytest benchmarks/bench_engines.py --data FOLDER --weights FOLDER [-k "speed and resnet18"]

`--data` and `--weights` are those of bench_detection.py; a network without a file there has random weights
(`network_weights`), whose speed is the same. Run it on a quiet machine, with as many threads as are to be
measured.

`test_speed`: a network as far as PatchCore's layers, at 224 pixels, in batches of 1 and of 16. All choices
run in one process, round after round. `test_quality`: PatchCore, fitted by torch in float32, saved, and
loaded with every choice; the bank and the threshold stay. A network that is refused in int8 has lost all.

Every cell is measured in a process of its own and kept in results/engines.json at once, with its commit: a
run can be stopped, and goes on with what is missing; `--again` measures anew what is known. `--images N` is a
trial with N images of each kind and two rounds, which keeps nothing; give `--results FOLDER` with it.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

import numpy as np
import torch
from bench_trained import CATEGORIES
from common import in_child, interleaved, network_weights, ratio
from kept import Kept, keep
from record import Figure, FiguresOf

import ensemblead as ead
from ensemblead.common.errors import EngineError
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Category
from ensemblead.detectors.exporting import score_changes
from ensemblead.evaluation import evaluate
from ensemblead.evaluation.speed import CHOICES

NETWORKS = ("wide_resnet50_2", "resnet18", "densenet169")
SIDE, BATCHES = 224, (1, 16)
# Processes, and rounds in each of them.
RUNS, ROUNDS = 3, 15
# Images that int8 is made with.
QUANTIZED_WITH = 100
# Times as fast as torch in float32, with WideResNet50 at both sizes of batches.
TARGETS = {("openvino", "bfloat16"): 2.0, ("openvino", "int8"): 4.0}
# Of int8: what may be lost of the image AUROC, and of the AUPRO.
MAY_LOSE = {"image_auroc": 0.005, "aupro": 0.01}
METRICS = ("image_auroc", "pixel_auroc", "aupro")


def names(what: str) -> list[str]:
    """The rows of a cell, one per choice."""
    return [f"{what}, {engine} {precision}" for engine, precision in CHOICES]


# --- speed ----------------------------------------------------------------------------------------


def speed(network: str, data: Path, weights: Path, limit: int | None) -> list[dict[str, Any]]:
    """Milliseconds an image of every choice, and how far its features are from those of torch in float32."""
    category = one_category(data, limit)
    with tempfile.TemporaryDirectory() as made_in:
        file = network_weights(network, weights, Path(made_in))
        detectors = [prepared(network, file, choice, category) for choice in CHOICES]
    pixels = pixels_of(detectors[0], category, max(BATCHES))
    inputs = [one._frozen.network.extractor.normalize(pixels) for one in detectors]
    exact: Any = None
    found: list[dict[str, Any]] = []
    for detector, given in zip(detectors, inputs, strict=True):
        features = [maps.float() for maps in detector.network_(given)]
        exact = features if exact is None else exact
        found.append({"error": relative_error(features, exact)})
    for size in BATCHES:
        calls = {
            str(number): partial(
                detector.network_, given[:size].contiguous(memory_format=torch.channels_last)
            )
            for number, (detector, given) in enumerate(zip(detectors, inputs, strict=True))
        }
        timings = interleaved(calls, repeats=ROUNDS if limit is None else 2)
        for number, cell in enumerate(found):
            timing = timings[str(number)]
            cell[f"min{size}"] = 1e3 * min(timing.seconds) / size
            cell[f"median{size}"] = 1e3 * timing.median / size
            cell[f"times{size}"] = ratio(timings["0"], timing)
    return found


def prepared(network: str, weights: Path, choice: tuple[str, str], category: Category) -> Any:
    """A PatchCore whose network is run by a choice; one in int8 is fitted on some images for that."""
    engine, precision = choice
    own = "float32" if precision == "int8" else precision
    options: dict[str, Any] = {"resize": SIDE, "image_size": SIDE, "device": "cpu", "engine": engine}
    options |= {"weights": weights, "precision": own}
    detector = ead.PatchCore(network, **options).load_networks()
    if precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of thresholds by few images; no score is used
            detector.fit(category.train[:QUANTIZED_WITH]).quantize(category.train, max_images=QUANTIZED_WITH)
    return detector


def pixels_of(detector: Any, category: Category, count: int) -> torch.Tensor:
    """`count` training images, again from the first where there are fewer: uint8 `[count, 3, SIDE, SIDE]`."""
    from ensemblead.images import iterate_batches, open_images

    paths = [category.train[number % len(category.train)] for number in range(count)]
    (batch,) = iterate_batches(open_images(paths), [detector.geometry], count)
    pixels: torch.Tensor = batch.images[detector.geometry]
    return pixels


def relative_error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The norm of the error, relative to the norm; of the layer where it is largest."""
    return max(float((one - own).norm() / own.norm()) for one, own in zip(found, exact, strict=True))


class Speed(Kept):
    """An engine and precision: the least of all runs, the medians of their medians and of their ratios."""

    def __init__(self, figures: FiguresOf, what: str, again: bool, at_least: float | None) -> None:
        super().__init__(figures, what, again)
        self._at_least = at_least

    def figure(self) -> Figure:
        columns: dict[str, Any] = {}
        for size in BATCHES:
            median = statistics.median(self.values(f"median{size}"))
            columns[f"ms, batch {size}"] = f"{min(self.values(f'min{size}')):.1f} ({median:.1f})"
            columns[f"times, batch {size}"] = statistics.median(self.values(f"times{size}"))
        columns["error of features"] = max(self.values("error"))
        columns["runs"] = str(len(self._cells))
        least = min(statistics.median(self.values(f"times{size}")) for size in BATCHES)
        details = {"columns": columns, "cells": self._cells}
        return Figure(
            self._figures.benchmark, self._what, least, "x torch float32", self._at_least, details=details
        )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("run", range(RUNS))
def test_speed(
    request: pytest.FixtureRequest,
    figures: FiguresOf,
    material: tuple[Path, Path],
    network: str,
    run: int,
) -> None:
    data, weights = material
    limit, again = request.config.getoption("--images"), bool(request.config.getoption("--again"))
    wide = network.startswith("wide")
    rows = [
        Speed(figures, what, again, TARGETS.get(choice) if wide else None)
        for what, choice in zip(names(f"{network}, {SIDE} px"), CHOICES, strict=True)
    ]
    keep(rows, str(run), partial(in_child, speed, network, data, weights, limit), limit)


# --- quality --------------------------------------------------------------------------------------


def quality(path: Path, network: str, weights: Path, limit: int | None) -> list[dict[str, Any]]:
    """Metrics of every choice, with how far scores are from those of torch in float32."""
    category = one_category(path, limit)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="ensemblead-") as folder:
        warnings.simplefilter("ignore")  # of how few images a rate rests on
        model = Path(folder) / "model"
        exact = ead.PatchCore(network, weights=weights / f"{network}.safetensors", device="cpu")
        exact.fit(category.train).save(model)
        found: list[dict[str, Any]] = []
        first: Any = None
        for engine, precision in CHOICES:
            own = "float32" if precision == "int8" else precision
            detector = ead.load(model, engine=engine, precision=own)
            if precision == "int8":
                try:
                    detector.quantize(category.train, max_images=QUANTIZED_WITH)
                except EngineError as error:
                    before = {f"{name}_before": float(found[0][name]) for name in METRICS}
                    found.append({"refused": str(error), **before, **dict.fromkeys(METRICS, 0.0)})
                    continue
            results = evaluate(detector, category, bootstrap=0)
            images = results.details[category.name].images
            scores = np.array([one.score for one in images])
            verdicts = np.array([one.is_anomalous for one in images])
            first = (scores, verdicts) if first is None else first
            change = score_changes(scores, first[0], exact.threshold_, exact.calibration_.rounding)
            found.append(
                {name: float(getattr(results.rows[0], name)) for name in METRICS}
                | {f"{name}_before": float(found[0][name]) for name in METRICS if found}
                | {"median_change": float(np.median(change)), "largest_change": float(change.max())}
                | {"changed": int((verdicts != first[1]).sum()), "images": len(images)}
            )
        return found


class Quality(Kept):
    """An engine and precision on one category, against torch in float32."""

    def __init__(self, figures: FiguresOf, what: str, again: bool, limited: bool) -> None:
        super().__init__(figures, what, again)
        self._at_most = 1.0 if limited else None

    def figure(self) -> Figure:
        (cell,) = self._cells.values()
        lost = {name: cell.get(f"{name}_before", cell[name]) - cell[name] for name in METRICS}
        columns: dict[str, Any] = {}
        for name, head in zip(METRICS, ("image AUROC", "pixel AUROC", "AUPRO"), strict=True):
            columns[head] = "refused" if "refused" in cell else f"{cell[name]:.4f} ({-lost[name]:+.4f})"
        columns["change of scores: median, largest"] = columns["verdicts that change"] = ""
        if "refused" not in cell:
            columns |= {
                "change of scores: median, largest": (
                    f"{cell['median_change']:.2%}, {cell['largest_change']:.2%}"
                ),
                "verdicts that change": f"{cell['changed']} of {cell['images']}",
            }
        share = max(0.0, *(lost[name] / allowed for name, allowed in MAY_LOSE.items()))
        details = {"columns": columns, "cells": self._cells}
        unit = "of what int8 may lose"
        return Figure(
            self._figures.benchmark, self._what, share, unit, at_most=self._at_most, details=details
        )


@pytest.mark.parametrize("network", ["resnet18", "densenet169"])
@pytest.mark.parametrize("name", CATEGORIES)
def test_quality(
    request: pytest.FixtureRequest,
    figures: FiguresOf,
    material: tuple[Path, Path],
    name: str,
    network: str,
) -> None:
    data, weights = material
    path = data / CATEGORIES[name]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    if not (weights / f"{network}.safetensors").is_file():
        pytest.skip(f"--weights has no {network}.safetensors")
    limit, again = request.config.getoption("--images"), bool(request.config.getoption("--again"))
    rows = [
        Quality(figures, what, again, precision == "int8")
        for what, (_, precision) in zip(names(f"{name}, PatchCore {network}"), CHOICES, strict=True)
    ]
    keep(rows, "0", partial(in_child, quality, path, network, weights, limit), limit)


# --- both -----------------------------------------------------------------------------------------


def one_category(path: Path, limit: int | None) -> Category:
    """A category, or the first one in a folder of them; of a trial the first images of each kind."""
    places = [path / name for name in CATEGORIES.values() if (path / name).is_dir()]
    (category,) = MVTecAD(places[0] if places else path).categories
    if limit is None:
        return category
    kinds = [[sample for sample in category.test if sample.label == label] for label in (False, True)]
    return Category(
        category.name, category.train[:limit], tuple(one for kind in kinds for one in kind[:limit])
    )
