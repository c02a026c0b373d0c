"""What helps a memory bank where: one layer, two layers joined, or a bank for each; L2 or cosine distance.

    OMP_NUM_THREADS=1 taskset -c 1 python -m pytest benchmarks/bench_banks.py --data FOLDER --weights FOLDER

`--data` and `--weights` are those of bench_detection.py. All settings of a category and network learn from
one pass over the images, as members of an ensemble, so no times are measured. Scores do not depend on that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from common import in_child
from record import FiguresOf

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.evaluation import evaluate

CATEGORIES = {"bottle": "mvtec_bottle", "cookies": "aws_cookies", "magnetic tile": "magnetic_tile"}
NETWORKS = {"resnet18": ("layer2", "layer3"), "efficientnet_lite0": ("blocks.2", "blocks.4")}
METRICS = ("l2", "cosine")


class Replay:
    """Predictions that were made before, as a detector: what `evaluate` asks of one."""

    def __init__(self, geometry: Any, predictions: Any) -> None:
        self.geometry, self._predictions = geometry, predictions

    def predict_batches(self, images: Any) -> Iterator[Any]:
        yield self._predictions


def settings(network: str) -> dict[str, dict[str, Any]]:
    first, second = NETWORKS[network]
    layers: dict[str, dict[str, Any]] = {
        f"{first} alone": {"layers": (first,)},
        f"{second} alone": {"layers": (second,)},
        "joint": {"layers": (first, second)},
        "per_layer": {"layers": (first, second), "banks": "per_layer"},
    }
    return {
        f"{name}, {metric}": {**own, "metric": metric} for metric in METRICS for name, own in layers.items()
    }


def fitted(path: Path, weights: Path, network: str) -> dict[str, ead.PatchCore]:
    """A detector of each setting, fitted together."""
    shared = {"weights": weights / f"{network}.safetensors", "resize": (256, 256), "device": "cpu"}
    members = {name: ead.PatchCore(network, **own, **shared) for name, own in settings(network).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of thresholds, which are not compared here
        ead.BackboneEnsemble(list(members.values())).fit(MVTecAD(path).categories[0].train)
    return members


def measured(path: Path, members: dict[str, ead.PatchCore]) -> dict[str, dict[str, float]]:
    """Metrics by setting; the members share one pass over the test images."""
    category = MVTecAD(path).categories[0]
    images = [sample.path for sample in category.test]
    parts: list[list[Any]] = [[] for _ in members]
    for batch in ead.BackboneEnsemble(list(members.values())).predict_members(images):
        for own, predictions in zip(parts, batch, strict=True):
            own.append(predictions)
    found = {}
    for (name, member), own in zip(members.items(), parts, strict=True):
        joined = type(own[0]).concatenate(own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = evaluate(Replay(member.geometry, joined), category, bootstrap=0).rows[0]
        own.clear()
        found[name] = {
            "image AUROC": row.image_auroc,
            "pixel AUROC": row.pixel_auroc,
            "AUPRO": row.aupro,
            "bank rows": float(member.learned_["bank_rows"]),
        }
    return found


def measure(path: Path, weights: Path, network: str) -> dict[str, dict[str, float]]:
    return measured(path, fitted(path, weights, network))


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_banks(figures: FiguresOf, material: tuple[Path, Path], category: str, network: str) -> None:
    path = material[0] / CATEGORIES[category]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    for setting, columns in in_child(measure, path, material[1], network).items():
        what = f"{category}, {network}: {setting}"
        figures.add(what, columns["image AUROC"], "image AUROC", columns=columns)
