"""How well and how fast defects are found: real images, real ImageNet weights, and the settings compared.

    python -m pytest benchmarks/bench_detection.py --data FOLDER --weights FOLDER [-k "bottle and resnet18"]

`--data` holds categories in MVTec layout (`mvtec_bottle`, `aws_cookies`, `magnetic_tile`), `--weights`
`<name>.safetensors`. Published settings, and other networks, for whoever has their weights:

    python -m pytest benchmarks/bench_detection.py --data FOLDER --weights FOLDER -k given \\
        --preset anomaly_dino            # or --backbone vit_small_patch14_dinov2, with default settings

The whole image is looked at, resized to 256 x 256: the tiles differ in size, and a
centre crop cuts off defects at the border. Every cell runs once, in a process of its own: its scores do not
depend on the run, its times do, and are those of one run.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from common import PeakMemory, in_child
from record import FiguresOf

import ensemblead as ead
from ensemblead.config.presets import preset_description
from ensemblead.config.registry import create
from ensemblead.config.settings import leaf_nodes
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Category
from ensemblead.ensembles.fusion import fuse_maps, fuse_minmax, fuse_scores
from ensemblead.evaluation import evaluate
from ensemblead.evaluation.results import Row

CATEGORIES = {"bottle": "mvtec_bottle", "cookies": "aws_cookies", "magnetic tile": "magnetic_tile"}
NETWORKS = {
    "resnet18": ("layer2", "layer3"),
    "densenet169": ("features.denseblock2", "features.denseblock3"),
    "squeezenet1_1": ("features.7", "features.12"),
}
ENSEMBLE = "ensemble"
WHOLE = {"resize": (256, 256), "image_size": None}
SCORES: tuple[Literal["max", "reweighted", "topk"], ...] = ("max", "reweighted", "topk")
AGGREGATIONS: dict[str, dict[str, Any]] = {
    "adaptive, auto": {"pretrain_dim": "auto"},
    "adaptive, 1024": {"pretrain_dim": 1024},
    "concat": {"aggregation": "concat"},
}
# One thing each that differs from the defaults: the bank, the neighbourhood, what of the image is looked at.
OTHERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "10 % coreset": {"coreset_fraction": 0.1},
    "3 neighbours": {"num_neighbors": 3},
    "9 neighbours": {"num_neighbors": 9},
    "patch_size 1": {"patch_size": 1},
    "patch_size 5": {"patch_size": 5},
    "resize 256, crop 224": {"resize": 256, "image_size": 224},
}
FUSIONS = ("calibrated", "mean", "max", "rank", "minmax")
BOTTLE_TARGETS = {"image": 0.995, "pixel": 0.980}
categories = pytest.mark.parametrize("category", CATEGORIES)


def patchcore(weights: Path, network: str, **options: Any) -> ead.PatchCore:
    path = weights / f"{network}.safetensors"
    return ead.PatchCore(network, NETWORKS[network], weights=path, device="cpu", **{**WHOLE, **options})


def build(weights: Path, model: str) -> ead.PatchCore | ead.BackboneEnsemble:
    if model == ENSEMBLE:
        return ead.BackboneEnsemble([patchcore(weights, name, target_dim=384) for name in NETWORKS])
    return patchcore(weights, model)


def folder(material: tuple[Path, Path], category: str) -> Path:
    path = material[0] / CATEGORIES[category]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    return path


@dataclass(frozen=True)
class Measured:
    """The metrics of one evaluation; seconds and bytes of the fit before it."""

    row: Row
    notes: tuple[str, ...]
    fit_seconds: float
    fit_bytes: int
    score: str  # how an image's score is made

    def columns(self) -> dict[str, Any]:
        row = self.row
        return {"image AUROC": row.image_auroc, "pixel AUROC": row.pixel_auroc, "AUPRO": row.aupro}

    def costs(self) -> dict[str, Any]:
        return {
            "fit, s": self.fit_seconds,
            "predict, s": self.row.predict_seconds,
            "predict, images/s": self.row.images_per_second,
            "fit's peak, MB": self.fit_bytes / 1e6,
            "false alarms": self.row.false_alarm_rate,
            "misses": self.row.miss_rate,
        }


def _evaluate(detector: Any, category: Category, seconds: float = 0.0, used: int = 0) -> Measured:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are in the report, and kept with the figures
        report = evaluate(detector, category, bootstrap=0)
    score = str(getattr(getattr(detector, "members", [detector])[0], "score", ""))
    return Measured(report.rows[0], tuple(report.warnings), seconds, used, score)


def _fit(detector: Any, category: Category) -> tuple[float, int]:
    """Seconds and peak bytes; the networks are loaded before."""
    for member in getattr(detector, "members", [detector]):
        member.network_.grid(256)
    memory, start = PeakMemory(), time.perf_counter()
    detector.fit(category.train)
    return time.perf_counter() - start, memory.read()


def measure(path: Path, weights: Path, model: str) -> Measured:
    category, detector = MVTecAD(path).categories[0], build(weights, model)
    seconds, used = _fit(detector, category)
    return _evaluate(detector, category, seconds, used)


def measure_scores(path: Path, weights: Path, options: dict[str, Any]) -> dict[str, Measured]:
    """One fit, whose bank does not depend on `score`, then every score."""
    category, detector = MVTecAD(path).categories[0], patchcore(weights, "resnet18", **options)
    seconds, used = _fit(detector, category)
    found: dict[str, Measured] = {}
    for score in SCORES:
        detector.score = score
        found[score] = _evaluate(detector, category, seconds, used)
    return found


def measure_options(path: Path, weights: Path, options: dict[str, Any]) -> Measured:
    category, detector = MVTecAD(path).categories[0], patchcore(weights, "resnet18", **options)
    return _evaluate(detector, category, *_fit(detector, category))


def measure_given(path: Path, description: dict[str, Any]) -> Measured:
    category, detector = MVTecAD(path).categories[0], create(description)
    memory, start = PeakMemory(), time.perf_counter()
    detector.fit(category.train)
    return _evaluate(detector, category, time.perf_counter() - start, memory.read())


class Replay:
    """Predictions that were made before, as a detector: what `evaluate` asks of one."""

    def __init__(self, geometry: Any, predictions: Any) -> None:
        self.geometry = geometry
        self._predictions = predictions

    def predict_batches(self, images: Any) -> Iterator[Any]:
        yield self._predictions


def measure_fusions(path: Path, weights: Path) -> dict[str, Measured]:
    """Every member predicts once; the fusions are of those predictions, as the ensemble makes them."""
    category, ensemble = MVTecAD(path).categories[0], build(weights, ENSEMBLE)
    assert isinstance(ensemble, ead.BackboneEnsemble)
    _fit(ensemble, category)
    paths = [sample.path for sample in category.test]
    members = [member.predict(paths) for member in ensemble.members]
    calibrations = [member.calibration_ for member in ensemble.members]
    found = {
        f"member {name}": _evaluate(Replay(ensemble.geometry, predictions), category)
        for name, predictions in zip(NETWORKS, members, strict=True)
    }
    for fusion in FUSIONS:
        scores = [p.anomaly_score for p in members]
        maps = [p.anomaly_map for p in members]
        if fusion == "minmax":
            fused = fuse_minmax(scores, ensemble.weights), fuse_minmax(maps, ensemble.weights)
        else:
            fused = (
                _fuse(fuse_scores, fusion, scores, calibrations, ensemble.weights),
                _fuse(fuse_maps, fusion, maps, calibrations, ensemble.weights),
            )
        no_verdict = np.zeros(len(paths), bool)  # the threshold is not compared here
        predictions = type(members[0])(fused[0], fused[1], no_verdict, list(paths))
        found[fusion] = _evaluate(Replay(ensemble.geometry, predictions), category)
        del fused, predictions
    return found


def _fuse(
    function: Callable[..., torch.Tensor],
    fusion: str,
    arrays: Sequence[Any],
    calibrations: Sequence[Any],
    weights: Any,
) -> np.ndarray[Any, Any]:
    parts = [torch.split(torch.from_numpy(array), 32) for array in arrays]
    fused = [function(fusion, list(batch), calibrations, weights) for batch in zip(*parts, strict=True)]
    return np.asarray(torch.cat(fused).numpy())


# --- the cells ------------------------------------------------------------------------------------


@categories
@pytest.mark.parametrize("model", ["resnet18", "densenet169", ENSEMBLE])
def test_detection(figures: FiguresOf, material: tuple[Path, Path], category: str, model: str) -> None:
    found = in_child(measure, folder(material, category), material[1], model)
    known = BOTTLE_TARGETS if (category, model) == ("bottle", "resnet18") else {}
    figures.add(
        f"{category}, {model}",
        found.row.image_auroc,
        "image AUROC",
        at_least=known.get("image"),
        columns={**found.columns(), **found.costs()},
        score=found.score,
        row=found.row.__dict__,
        notes=found.notes,
    )
    if known:
        what = f"{category}, {model}: pixel AUROC"
        figures.add(what, found.row.pixel_auroc, "pixel AUROC", at_least=known["pixel"])


@categories
def test_given(
    request: pytest.FixtureRequest, figures: FiguresOf, material: tuple[Path, Path], category: str
) -> None:
    """The detector of the options `--preset` or `--backbone`."""
    preset, backbone = (request.config.getoption(name) for name in ("--preset", "--backbone"))
    if (preset is None) == (backbone is None):
        pytest.skip("give --preset NAME, or --backbone NAME")
    description = (
        {"type": "PatchCore", "backbone": backbone} if preset is None else preset_description(preset)
    )
    for leaf in leaf_nodes(description):
        leaf["weights"] = str(material[1] / f"{leaf['backbone']}.safetensors")
    found = in_child(measure_given, folder(material, category), description)
    columns = {**found.columns(), **found.costs()}
    what = f"{category}, {preset or backbone}"
    figures.add(what, found.row.image_auroc, "image AUROC", columns=columns, notes=found.notes)


@categories
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_scores(figures: FiguresOf, material: tuple[Path, Path], category: str, aggregation: str) -> None:
    cells = in_child(measure_scores, folder(material, category), material[1], AGGREGATIONS[aggregation])
    for score, found in cells.items():
        what = f"{category}, resnet18: {aggregation}; score {score}"
        figures.add(what, found.row.image_auroc, "image AUROC", columns=found.columns(), notes=found.notes)


@categories
@pytest.mark.parametrize("other", OTHERS)
def test_other_settings(figures: FiguresOf, material: tuple[Path, Path], category: str, other: str) -> None:
    found = in_child(measure_options, folder(material, category), material[1], OTHERS[other])
    columns = {**found.columns(), "fit, s": found.fit_seconds, "predict, s": found.row.predict_seconds}
    what = f"{category}, resnet18: {other}"
    figures.add(what, found.row.image_auroc, "image AUROC", columns=columns, notes=found.notes)


@categories
def test_fusions(figures: FiguresOf, material: tuple[Path, Path], category: str) -> None:
    for fusion, found in in_child(measure_fusions, folder(material, category), material[1]).items():
        what = f"{category}, ensemble: {fusion}"
        figures.add(what, found.row.image_auroc, "image AUROC", columns=found.columns(), notes=found.notes)
