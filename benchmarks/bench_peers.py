"""PatchCore here beside anomalib and patchcore-inspection: one machine, one run, the same photographs.

    python -m pytest benchmarks/bench_peers.py --data FOLDER --weights FOLDER --anomalib PYTHON \\
        --patchcore-inspection CHECKOUT [-k "resnet18 and not long"]

`--data` and `--weights` are those of bench_detection.py. `--anomalib` is a Python of another environment, in
which anomalib 2 is installed. `--patchcore-inspection` is a checkout of amazon-science/patchcore-inspection,
which needs the packages of this environment. Rows of a tool that is not given are skipped.

Every cell is measured in a process of its own, and tools take turns. All have the same weights, and as many
threads: OMP_NUM_THREADS, or 2. Each tool says by its own means what an image's score and map are. Metrics
are computed here, of all tools alike, on maps of the whole image at 256 x 256. Outside of a tool's crop is
the smallest value of all its maps, since nobody looked there.

Cells with `long` in their names take some tools ten minutes to hours: a coreset of 10 %, or anomalib on the
most images. Every cell is kept in results/peers.json at once, with its commit: a run can be stopped, and
goes on with what is missing; `--again` measures anew what is known. `--images N` is a trial with N images of
each kind, which keeps nothing; give `--results FOLDER` with it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from bench_detection import NETWORKS as LAYERS
from bench_detection import Replay
from bench_trained import CATEGORIES
from kept import Kept, keep
from peers_cell import Task
from record import Figure, FiguresOf

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Category
from ensemblead.evaluation import evaluate
from ensemblead.images import upright_size
from ensemblead.images.geometry import Geometry

HERE = Path(__file__).resolve().parent
# Those whose weights are at hand and that all tools take.
NETWORKS = ("resnet18", "densenet169")
# The frame of all metrics.
SIDE = 256
WHOLE = Geometry((SIDE, SIDE), None)
# Images whose latency is taken.
TIMED = 60
SCRIPTS = {
    "ensemblead": "peers_ours.py",
    "anomalib": "peers_anomalib.py",
    "patchcore-inspection": "peers_inspection.py",
}
METRICS = ("image_auroc", "pixel_auroc", "aupro")
# What the other tools compute, in the words of PatchCore's parameters here.
AS_INSPECTION = {"resize": 256, "image_size": 224, "pretrain_dim": 1024, "score": "max"}
AS_ANOMALIB = {
    "resize": (256, 256),
    "aggregation": "concat",
    "score": "reweighted",
    "reweight_neighbors": 9,
    "map_kind": "nearest",
}


@dataclass(frozen=True)
class Setting:
    """A tool, with options of its script."""

    key: str
    tool: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def is_long(self, category: str) -> bool:
        """Whether it takes hours, or nearly so; of the few cookies nothing does."""
        if category == "cookies":
            return False
        return self.is_large or (self.tool == "anomalib" and category == "magnetic tile")

    @property
    def is_large(self) -> bool:
        return self.key.endswith("10pct")


def settings() -> list[Setting]:
    """All settings, each tool beside its like."""

    def pair(percent: int) -> list[Setting]:
        share = percent / 100
        ours = [{**options, "coreset_fraction": share} for options in (AS_INSPECTION, AS_ANOMALIB)]
        theirs = {"model": "PatchCore", "coreset_sampling_ratio": share}
        return [
            Setting(f"inspection-{percent}pct", "patchcore-inspection", f"{percent} %", {"share": share}),
            Setting(
                f"as-inspection-{percent}pct", "ensemblead", f"as patchcore-inspection, {percent} %", ours[0]
            ),
            Setting(f"anomalib-{percent}pct", "anomalib", f"PatchCore, {percent} %", theirs),
            Setting(f"as-anomalib-{percent}pct", "ensemblead", f"as anomalib, {percent} %", ours[1]),
        ]

    openvino = {"engine": "openvino"}
    return [
        Setting("defaults", "ensemblead", "defaults"),
        Setting("mh", "anomalib", "MH-PatchCore", {"model": "MH-PatchCore", "crop": 224}),
        Setting("openvino", "ensemblead", "defaults, OpenVINO", openvino),
        *pair(1),
        Setting(
            "anomalib-openvino",
            "anomalib",
            "PatchCore, 1 %, exported to OpenVINO",
            {"model": "PatchCore", "coreset_sampling_ratio": 0.01, "openvino": True},
        ),
        Setting("int8", "ensemblead", "defaults, OpenVINO int8", {**openvino, "int8": True}),
        *pair(10),
    ]


# --- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the tools and their material are."""

    data: Path
    weights: Path
    anomalib: str | None
    checkout: Path | None

    def python(self, tool: str) -> str | None:
        """The Python that runs a tool; None where it is not given."""
        if tool == "anomalib":
            return self.anomalib
        return None if tool == "patchcore-inspection" and self.checkout is None else sys.executable


def measure(place: Place, folder: Path, network: str, setting: Setting, limit: int | None) -> dict[str, Any]:
    """The figures of one cell; with a limit those of so many images of each kind."""
    with tempfile.TemporaryDirectory(prefix="ensemblead-") as name:
        scratch = Path(name)
        if limit is not None:
            folder = first_images(folder, limit, scratch / folder.name)
        (category,) = MVTecAD(folder).categories
        task = Task(
            category=str(folder),
            network=network,
            layers=LAYERS[network],
            weights=str(place.weights / f"{network}.safetensors"),
            options=setting.options,
            checkout=str(place.checkout or ""),
            test=tuple(sample.path for sample in category.test),
            labels=tuple(sample.label for sample in category.test),
            timed=TIMED,
            threads=int(os.environ.get("OMP_NUM_THREADS", "2")),
            out=str(scratch / "found"),
        )
        python = place.python(setting.tool)
        assert python is not None
        run_script(python, SCRIPTS[setting.tool], task, scratch)
        found: dict[str, Any] = json.loads(Path(f"{task.out}.json").read_text())
        with np.load(f"{task.out}.npz") as arrays:
            scores, maps = arrays["scores"], arrays["maps"]
        return judged(category, found, scores, maps)


def run_script(python: str, script: str, task: Task, scratch: Path) -> None:
    """Run a tool's script in a process of its own, with the task's number of threads."""
    given = scratch / "task.json"
    given.write_text(json.dumps(asdict(task)))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(task.threads))}
    command = [python, str(HERE / script), str(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def judged(category: Category, found: dict[str, Any], scores: Any, maps: Any) -> dict[str, Any]:
    """What a tool's script found, with metrics and rates by this project's evaluation."""
    sizes = (found["resize"], found["crop"])
    geometry = Geometry(*(tuple(one) if isinstance(one, list) else one for one in sizes))
    paths = [sample.path for sample in category.test]
    verdicts = found.pop("verdicts")
    predictions = ead.Predictions(
        scores.astype(np.float32),
        on_whole_images(maps, [upright_size(path) for path in paths], geometry),
        np.zeros(len(paths), bool) if verdicts is None else np.array(verdicts),
        list(paths),
    )
    replay: Any = Replay(WHOLE, predictions)
    replay.threshold_ = math.inf if verdicts is None else 0.0  # infinity: there is none
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how few images a rate rests on
        row = evaluate(replay, category, bootstrap=0, gallery=0).rows[0]
    found |= {name: float(getattr(row, name)) for name in METRICS}
    if verdicts is not None:
        found["false_alarms"] = sum(
            v for v, one in zip(verdicts, category.test, strict=True) if not one.label
        )
        found["misses"] = sum(not v for v, one in zip(verdicts, category.test, strict=True) if one.label)
    return found | {"normal": row.num_normal, "anomalous": row.num_anomalous, "train": row.num_train}


def on_whole_images(maps: Any, sizes: list[tuple[int, int]], geometry: Geometry) -> np.ndarray[Any, Any]:
    """Maps `[N, h, w]` of what a geometry leaves of photographs of sizes (H, W), on the whole of these:
    float32 `[N, SIDE, SIDE]`.

    Outside of a crop is the smallest value of all maps.
    """
    least = maps.min()
    placed = np.full((len(maps), SIDE, SIDE), least, np.float32)
    for values, (height, width), target in zip(maps, sizes, placed, strict=True):
        top, left, bottom, right = geometry.crop_box(height, width)
        rows, row_weights = stretched(top / height, bottom / height, values.shape[0])
        columns, column_weights = stretched(left / width, right / width, values.shape[1])
        target[np.ix_(rows, columns)] = row_weights @ values @ column_weights.T
    return placed


def stretched(low: float, high: float, cells: int) -> tuple[Any, Any]:
    """Bilinear interpolation along an axis: cells that lie between the shares `low` and `high` of an image.

    Returns the pixels of the frame that lie there `[P]`, and the weights of the cells `[P, cells]`.
    """
    centres = (np.arange(SIDE) + 0.5) / SIDE
    inside = np.flatnonzero((centres > low) & (centres < high))
    position = np.clip((centres[inside] - low) / (high - low) * cells - 0.5, 0, cells - 1)
    first = np.minimum(position.astype(int), max(cells - 2, 0))
    weights = np.zeros((len(inside), cells), np.float64)
    numbers = np.arange(len(inside))
    weights[numbers, first] = 1.0 - (position - first)
    weights[numbers, np.minimum(first + 1, cells - 1)] += position - first
    return inside, weights


def first_images(folder: Path, limit: int, copy: Path) -> Path:
    """The first images of each kind of a category, as a category of its own."""
    (category,) = MVTecAD(folder).categories
    chosen = list(category.train[:limit])
    for label in (False, True):
        for sample in [sample for sample in category.test if sample.label == label][:limit]:
            chosen += [sample.path, *([sample.mask_path] if sample.mask_path else [])]
    for path in map(Path, chosen):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return copy


# --- the cells ------------------------------------------------------------------------------------


class Peer(Kept):
    """A tool in one setting, on one category."""

    def figure(self) -> Figure:
        (cell,) = self._cells.values()
        rates = [("false_alarms", "normal"), ("misses", "anomalous")]
        alarms, misses = (f"{cell[one]} of {cell[all_]}" if one in cell else "-" for one, all_ in rates)
        columns: dict[str, Any] = {
            "fit, s": cell["fit_seconds"],
            "decoded image, ms": cell["from_pixels"] * 1e3,
            "file, ms": cell["from_file"] * 1e3,
            "fit's peak, MB": cell["fit_peak"] / 1e6,
            "process, MB": cell["peak"] / 1e6,
            "image AUROC": cell["image_auroc"],
            "pixel AUROC": cell["pixel_auroc"],
            "AUPRO": cell["aupro"],
            "false alarms": alarms,
            "misses": misses,
        }
        details = {"columns": columns, "cells": self._cells}
        value = cell["image_auroc"]
        return Figure(self._figures.benchmark, self._what, value, "image AUROC", details=details)


def cells() -> list[Any]:
    """All cells, the quick ones first."""
    found = []
    for network in NETWORKS:
        for category in ("cookies", "bottle", "magnetic tile"):
            for setting in settings():
                is_long = setting.is_long(category)
                name = f"{network}-{category.replace(' ', '_')}-{setting.key}{'-long' * is_long}"
                order = (NETWORKS.index(network), is_long, setting.is_large)
                found.append((order, pytest.param(network, category, setting, id=name)))
    return [cell for _, cell in sorted(found, key=lambda one: one[0])]


@pytest.mark.parametrize(("network", "category", "setting"), cells())
def test_peer(
    request: pytest.FixtureRequest,
    figures: FiguresOf,
    material: tuple[Path, Path],
    network: str,
    category: str,
    setting: Setting,
) -> None:
    option = request.config.getoption
    checkout = option("--patchcore-inspection")
    place = Place(*material, option("--anomalib"), None if checkout is None else checkout.resolve())
    folder = place.data / CATEGORIES[category]
    if not folder.is_dir():
        pytest.skip(f"--data has no {folder.name}")
    if not (place.weights / f"{network}.safetensors").is_file():
        pytest.skip(f"--weights has no {network}.safetensors")
    if place.python(setting.tool) is None:
        pytest.skip(f"give --{setting.tool}")
    limit = option("--images")
    row = Peer(figures, f"{category}, {network}, {setting.tool}: {setting.name}", bool(option("--again")))
    keep([row], "0", lambda: [measure(place, folder, network, setting, limit)], limit)
