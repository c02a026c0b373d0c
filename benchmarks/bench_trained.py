"""Trained families against PatchCore and PaDiM: how well they detect after how much training, alone,
fused with each other, and in tiles.

    python -m pytest benchmarks/bench_trained.py --data FOLDER --weights FOLDER [-k "bottle and DRAEM"]

`--data` and `--weights` are those of bench_detection.py. The papers' lengths of training are a GPU's work. So
every row names its own: updates x images each. The most telling cells come first. Every cell is measured in
a process of its own and kept in results/trained.json at once, with its commit: a run can be stopped, and goes
on with what is missing; `--again` measures anew what is known.

Times are the process's CPU seconds, which other work on the machine changes least. Run it with
OMP_NUM_THREADS=1, so that they are near the seconds of one core.

`-k costs` measures, beside that, the latency of a single image by engine and precision, and peak memory. That
takes a quiet machine and as many threads as are to be measured.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from common import PeakMemory, in_child, interleaved, peak_memory
from kept import Kept, measure_together
from record import Figure, FiguresOf
from tiled_setups import TILE

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Category
from ensemblead.evaluation import evaluate
from ensemblead.images import read_image

CATEGORIES = {"bottle": "mvtec_bottle", "cookies": "aws_cookies", "magnetic tile": "magnetic_tile"}
# The members of the ensemble of families, then the other yardstick.
FUSED = ("PatchCore", "ReverseDistillation", "FastFlow")
GROUP = (*FUSED, "PaDiM")
FAMILIES = "families"
ENSEMBLE = "PatchCore + ReverseDistillation + FastFlow"
# Side of the image in pixels, stride of its tiles, and whether all tiles share one detector. The names are
# those of Rolih et al., arXiv 2403.04932. At SM128 an update of DRAEM or EfficientAD takes about a quarter.
SETUPS: dict[str, tuple[int, int | None, bool]] = {
    "SM128": (TILE // 2, None, False),
    "SM256": (TILE, None, False),
    "SM512": (2 * TILE, None, False),
    "ST4": (2 * TILE, TILE, True),
    "ST9": (2 * TILE, TILE // 2, True),
    "ENS4": (2 * TILE, TILE, False),
    "ENS9": (2 * TILE, TILE // 2, False),
}
WITHOUT_TRAINING = ("PatchCore", "PaDiM")
DRAEM_WIDTH, DRAEM_RATE = 16, 1e-3
# Single-image calls: before the clock starts, and with it.
WARM_UP, TIMED = 2, 10
# What `-k costs` tries.
PRECISIONS = {
    "torch float32": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
    "OpenVINO float32": ("openvino", "float32"),
    "OpenVINO bfloat16": ("openvino", "bfloat16"),
}
COSTS = (*GROUP, "EfficientAD", "DRAEM")


@dataclass(frozen=True)
class Cell:
    """What is measured at once: a family in a setting, or the group of families with their ensemble."""

    category: str
    family: str
    steps: int
    batch: int
    setting: str = "SM256"
    seed: int = 0

    @property
    def id(self) -> str:
        parts = (self.category, self.family, self.setting, f"{self.steps}x{self.batch}", f"seed{self.seed}")
        return "-".join(parts)

    def row(self, family: str) -> str:
        """The name of a row: all but the seed; a length only where there is training."""
        name = f"{self.category}, {family}"
        if family == "DRAEM":
            name += f" (width {DRAEM_WIDTH})"
        if family not in WITHOUT_TRAINING:
            name += f", {self.steps} x {self.batch}"
        return f"{name}, {self.setting}"

    def rows(self) -> list[str]:
        if self.family != FAMILIES:
            return [self.row(self.family)]
        return [self.row(family) for family in (*GROUP, ENSEMBLE)]


def ordered_cells() -> list[Cell]:
    """All cells, the most telling first."""
    trained = ("ReverseDistillation", "FastFlow")
    slow = (("DRAEM", 400, 4), ("EfficientAD", 400, 1))
    # In tiles, of which a location trains as long; whole images so short stand beside them.
    short = (("DRAEM", 60, 4), ("EfficientAD", 60, 1))

    def tiled(category: str, settings: tuple[str, ...]) -> list[Cell]:
        return [Cell(category, family, 30, 8, setting) for family in trained for setting in settings]

    def groups(seed: int) -> list[Cell]:
        return [Cell(category, FAMILIES, 60, 16, seed=seed) for category in CATEGORIES]

    return [
        *groups(0),
        *(Cell("bottle", *one, "SM128") for one in slow),
        *tiled("bottle", ("SM256", "SM512", "ENS9")),
        *groups(1),
        *groups(2),
        *(Cell(category, *one, "SM128") for category in ("cookies", "magnetic tile") for one in slow),
        *tiled("bottle", ("ST4", "ST9", "ENS4")),
        *(Cell(category, family, 200, 32) for category in CATEGORIES for family in trained),
        *(Cell("bottle", *one) for one in slow),
        *tiled("magnetic tile", ("SM256", "SM512", "ENS9")),
        *(Cell("bottle", *one, setting) for one in short for setting in SETUPS if setting != "SM128"),
        *(Cell(category, *one) for category in ("cookies", "magnetic tile") for one in slow),
    ]


# --- what is measured -----------------------------------------------------------------------------


def member(family: str, weights: Path, cell: Cell, **options: Any) -> Any:
    """A detector of a family; frozen networks are resnet18, trained families run in bfloat16."""
    common: dict[str, Any] = {"device": "cpu", "seed": cell.seed, **options}
    if family != "DRAEM":
        common["weights"] = weights / "resnet18.safetensors"
    if family == "PatchCore":
        return ead.PatchCore("resnet18", **common)
    if family == "PaDiM":
        return ead.PaDiM("resnet18", **common)
    common |= {"steps": cell.steps, "batch_size": cell.batch, "precision": "bfloat16"}
    if family == "EfficientAD":
        return ead.EfficientAD("small", "resnet18", **common)
    if family == "DRAEM":
        return ead.DRAEM(DRAEM_WIDTH, learning_rate=DRAEM_RATE, **common)
    kind = {"ReverseDistillation": ead.ReverseDistillation, "FastFlow": ead.FastFlow}[family]
    return kind("resnet18", **common)


def build(family: str, weights: Path, cell: Cell) -> Any:
    """A family in the setting of the cell; whole images are squashed to a square."""
    side, stride, shared = SETUPS[cell.setting]
    if stride is None:
        return member(family, weights, cell, resize=(side, side), image_size=None)
    return ead.TiledEnsemble(member(family, weights, cell), TILE, stride, image_size=side, shared=shared)


def measure(path: Path, weights: Path, cell: Cell) -> list[dict[str, float]]:
    """The figures of the cell's rows, in their order."""
    category = MVTecAD(path).categories[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how few images a rate rests on
        if cell.family != FAMILIES:
            return [measure_one(build(cell.family, weights, cell), category)]
        members = {family: build(family, weights, cell) for family in GROUP}
        found = [measure_one(one, category) for one in members.values()]
        costs = found[: len(FUSED)]
        fused = measure_quality(ead.BackboneEnsemble([members[family] for family in FUSED]), category)
        fused["fit_cpu"] = sum(cost["fit_cpu"] for cost in costs)
        fused["fit_seconds"] = sum(cost["fit_seconds"] for cost in costs)
        return [*found, fused]


def measure_one(detector: Any, category: Category) -> dict[str, float]:
    """Fit and evaluate. Seconds of the fit have the loading of the network in them; those of an update are
    the median over all but the first.
    """
    ends: list[float] = []

    def look(stage: str, done: int, total: int) -> None:
        if stage == "train":
            ends.append(time.process_time())

    wall, cpu = time.perf_counter(), time.process_time()
    detector.fit(category.train, progress=look)
    found = {
        "fit_cpu": time.process_time() - cpu,
        "fit_seconds": time.perf_counter() - wall,
    }
    if len(ends) > 1:
        found["step_cpu"] = statistics.median(end - start for start, end in itertools.pairwise(ends))
    return found | measure_quality(detector, category)


def measure_quality(detector: Any, category: Category) -> dict[str, float]:
    row = evaluate(detector, category, bootstrap=0).rows[0]
    names = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate", "images_per_second")
    found = {name: float(getattr(row, name)) for name in names}
    return found | {"predict_cpu": predict_cpu(detector, [sample.path for sample in category.test])}


def predict_cpu(detector: Any, paths: list[str]) -> float:
    """CPU seconds for one decoded image at a time: the median of 10 calls after 2."""
    images = [read_image(path)[None] for path in paths[:WARM_UP]]
    seconds = []
    for number in range(WARM_UP + TIMED):
        start = time.process_time()
        detector.predict(images[number % len(images)])
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[WARM_UP:])


# --- keeping --------------------------------------------------------------------------------------


class Trained(Kept):
    """A family in a setting, by seeds: metrics with mean and standard deviation, costs by their medians."""

    def figure(self) -> Figure:
        columns: dict[str, Any] = {
            "image AUROC": self.spread("image_auroc"),
            "pixel AUROC": self.spread("pixel_auroc"),
            "AUPRO": self.spread("aupro"),
            "fit, CPU s": statistics.median(self.values("fit_cpu")),
            "one image, CPU ms": statistics.median(self.values("predict_cpu")) * 1e3,
            "false alarms": self.spread("false_alarm_rate"),
            "misses": self.spread("miss_rate"),
            "seeds": str(len(self._cells)),
        }
        mean = statistics.fmean(self.values("image_auroc"))
        details = {"columns": columns, "cells": self._cells}
        return Figure(self._figures.benchmark, self._what, mean, "image AUROC", details=details)


@pytest.mark.parametrize("cell", ordered_cells(), ids=lambda cell: cell.id)
def test_cell(
    request: pytest.FixtureRequest, figures: FiguresOf, material: tuple[Path, Path], cell: Cell
) -> None:
    data, weights = material
    path = data / CATEGORIES[cell.category]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    again = bool(request.config.getoption("--again"))
    rows = [Trained(figures, what, again) for what in cell.rows()]
    if measure_together(rows, str(cell.seed), partial(in_child, measure, path, weights, cell)):
        for row in rows:
            row.report()


# --- costs of one image, and memory ---------------------------------------------------------------


def measure_costs(path: Path, weights: Path, family: str) -> dict[str, float]:
    """Milliseconds of a decoded image, each choice in its turn, and bytes of fit and first prediction. None
    depends on the length of a training, so there are three updates of 16 images (EfficientAD: 1).
    """
    category = MVTecAD(path).categories[0]
    detector = build(family, weights, Cell("bottle", family, 3, 1 if family == "EfficientAD" else 16))
    first = category.test[0].path
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = PeakMemory()
        detector.fit(category.train)
        found = {"fit_peak": float(memory.read())}
        model = Path(folder) / "model"
        detector.save(model)
        del detector
        found["predict_peak"] = float(peak_memory(partial(decoded, first), partial(first_prediction, model)))
        image = decoded(first)
        calls = {}
        for name, (engine, precision) in PRECISIONS.items():
            loaded = ead.load(model, engine=engine, precision=precision)
            calls[name] = partial(loaded.predict, image)
        gc.collect()
        timings = interleaved(calls, repeats=TIMED)
    return found | {name: 1e3 * timing.median for name, timing in timings.items()}


def decoded(path: str) -> Any:
    return read_image(path)[None]


def first_prediction(model: Path, image: Any) -> Any:
    """By a model that is loaded for it. It is measured in a process of its own: what another call has left
    would be used again, and the peak seem smaller.
    """
    return ead.load(model, engine="torch", precision="float32").predict(image)


class Costs(Kept):
    """What an image costs by a family."""

    def figure(self) -> Figure:
        (cell,) = self._cells.values()
        columns: dict[str, Any] = {f"{name}, ms": cell.get(name, "") for name in PRECISIONS}
        columns |= {
            f"{call}'s peak, MB": cell[f"{call}_peak"] / 1e6 if f"{call}_peak" in cell else ""
            for call in ("fit", "predict")
        }
        details = {"columns": columns, "cells": self._cells}
        return Figure(self._figures.benchmark, self._what, cell["torch float32"], "ms", details=details)


@pytest.mark.parametrize("family", COSTS)
def test_costs(
    request: pytest.FixtureRequest, figures: FiguresOf, material: tuple[Path, Path], family: str
) -> None:
    """One image of 256 x 256 pixels, and the memory of a fit of the bottles and of a first prediction."""
    data, weights = material
    row = Costs(figures, f"{family}, one image, SM256", bool(request.config.getoption("--again")))
    row.measure("bottle", measure_costs, data / CATEGORIES["bottle"], weights, family)
    row.report()
