"""Trained detectors here beside anomalib's: an update, a fit of 200 of them, and a prediction.

    OMP_NUM_THREADS=2 python -m pytest benchmarks/bench_training.py --data FOLDER --weights FOLDER \\
        --anomalib PYTHON [-k FastFlow]

`--data` and `--weights` are those of bench_detection.py; the bottles are used. `--anomalib` is a Python of
another environment, in which anomalib 2.7 is installed (anomalib_training.py).

Run it on a quiet machine. On a busy one threads that wait actively take the cores from each other, anomalib's
many short loops most of all: OMP_WAIT_POLICY=passive is fairer there.

An update here is one of `fit`, which is stopped at the end of each for one of anomalib's, in a process of its
own: so both take turns, with the same images, architecture, batch, weights of the frozen network and number
of threads. Both have their images decoded and resized. Ours computes the feature maps of all images once:
what that takes, with all else before the first update, is a part of the fit. Theirs runs the frozen network
in every update. The first update of both is left out.

Then both predict a decoded photograph at a time, in turns.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from answering import Answering, answering
from common import SETTLE
from PIL import Image
from record import FiguresOf

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.images import read_image

SIDE, NETWORK = 256, "resnet18"
# Updates of a fit, of which it is told how long they take.
UPDATES = 200
PHOTOGRAPHS, CALLS, TURNS = 4, 3, 5
# By the clock, and of the process.
Seconds = tuple[float, float]


@dataclass(frozen=True)
class Setup:
    """A method in one architecture.

    Attributes:
        options: of ours. other: what anomalib's needs to have the same.
        batch: images per update. rounds: updates of each that are measured.
        faster: a target in float32, how many times as fast as anomalib's a fit is.
        caches: whether feature maps are computed once.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    rounds: int = 5
    faster: float | None = None
    caches: bool = True

    def detector(self, weights: Path, precision: str) -> Any:
        options: dict[str, Any] = {"device": "cpu", "precision": precision, "batch_size": self.batch}
        options |= {"steps": self.rounds + 1, **self.options}
        if self.caches:
            options |= {"backbone": NETWORK, "weights": weights / f"{NETWORK}.safetensors"}
        return getattr(ead, self.method)(**options)


def flows(only_3x3: bool) -> Setup:
    options = {"conv3x3_only": only_3x3}
    return Setup("FastFlow", options, options, faster=2.0)


SETUPS = {
    "ReverseDistillation": Setup("ReverseDistillation", faster=1.5),
    "FastFlow, every second step 1x1": flows(False),
    "FastFlow, 3x3 only": flows(True),
    # The teacher is anomalib's, untrained on both sides, whose speed is that of a trained one.
    "EfficientAD": Setup("EfficientAD", {"backbone": "pdn_small", "weights": None}, batch=1, caches=False),
    # Of the paper's width, which is the only one of anomalib.
    "DRAEM": Setup("DRAEM", batch=1, rounds=3, caches=False),
}
PRECISIONS = ("float32", "bfloat16")


class Turns:
    """The progress of a fit, which is held up after every update for one of anomalib's."""

    def __init__(self, other: Answering) -> None:
        self._other = other
        self._last = self._begin = _now()
        self.before: Seconds = (0.0, 0.0)  # the first update
        self.ours: list[Seconds] = []
        self.theirs: list[Seconds] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = _now()
        if stage == "embed" and not self.ours:
            self.before = _since(self._begin, now)
        if stage != "train":
            self._last = now
            return
        self.ours.append(_since(self._last, now))
        time.sleep(SETTLE)
        self.theirs += (tuple(one) for one in self._other.ask(["update", 1]))
        time.sleep(SETTLE)
        self._last = _now()


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


def _since(begin: Seconds, end: Seconds) -> Seconds:
    return end[0] - begin[0], end[1] - begin[1]


def resized(path: str) -> Any:
    """uint8 `[SIDE, SIDE, 3]`."""
    return np.asarray(Image.fromarray(read_image(path)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def predictions(detector: Any, other: Answering, photographs: Any) -> dict[str, list[float]]:
    """Seconds of a prediction by the clock, of both: the median of every turn."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(TURNS + 1):
        gc.collect()
        time.sleep(SETTLE)
        seconds = []
        for number in range(CALLS):
            image = photographs[number % len(photographs)][None]
            begin = time.perf_counter()
            detector.predict(image)
            seconds.append(time.perf_counter() - begin)
        time.sleep(SETTLE)
        theirs = other.ask(["predict", CALLS])
        if turn:
            found["ours"].append(statistics.median(seconds))
            found["theirs"].append(statistics.median(clock for clock, _ in theirs))
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SETUPS)
def test_training(
    figures: FiguresOf,
    pytestconfig: pytest.Config,
    material: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    precision: str,
) -> None:
    python, setup, (data, weights) = pytestconfig.getoption("--anomalib"), SETUPS[name], material
    if python is None:
        pytest.skip("give --anomalib PYTHON")
    (category,) = MVTecAD(data / "mvtec_bottle").categories
    images = np.stack([resized(path) for path in category.train])
    photographs = np.stack([read_image(sample.path) for sample in category.test[:PHOTOGRAPHS]])
    task = {
        "method": setup.method,
        "network": NETWORK,
        "weights": str(weights / f"{NETWORK}.safetensors"),
        "batch": setup.batch,
        "threads": torch.get_num_threads(),
        **setup.other,
    }
    for key, values in (("images", images), ("photographs", photographs)):
        task[key] = str(tmp_path / f"{key}.npy")
        np.save(task[key], values)
    with answering(python, "anomalib_training.py", tmp_path) as other, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of thresholds by few images, which no figure rests on
        other.ask(task)
        detector = setup.detector(weights, precision).load_networks()
        turns = Turns(other)
        detector.fit(images, progress=turns)
        report_fit(figures, name, precision, setup, turns)
        report_predictions(figures, name, precision, predictions(detector, other, photographs))


def report_fit(figures: FiguresOf, name: str, precision: str, setup: Setup, turns: Turns) -> None:
    def times(kind: int) -> tuple[float, float, float]:
        """Of fits, of updates, and the seconds before the first."""
        ours, theirs = ([one[kind] for one in own[1:]] for own in (turns.ours, turns.theirs))
        before = turns.before[kind] if setup.caches else 0.0
        pairs = list(zip(theirs, ours, strict=True))
        fits = statistics.median(UPDATES * slow / (before + UPDATES * fast) for slow, fast in pairs)
        return fits, statistics.median(slow / fast for slow, fast in pairs), before

    (fits, updates, before), (fits_cpu, _, _) = times(0), times(1)
    seconds = {"ours": turns.ours, "theirs": turns.theirs, "before": turns.before}
    ours, theirs = (statistics.median(one[0] for one in seconds[key][1:]) for key in ("ours", "theirs"))
    note = f"an update {theirs:.2f} and {ours:.2f} s"
    threads = torch.get_num_threads()
    if not setup.caches:
        what = f"{name}, {precision}: anomalib's update of {setup.batch} / ours"
        figures.add(what, updates, "x", note=note, seconds=seconds, threads=threads)
        return
    note += f", {before:.1f} s before the first; {fits_cpu:.2f} x in CPU seconds"
    what = f"{name}, {precision}: anomalib's {UPDATES} updates of {setup.batch} / our fit"
    target = setup.faster if precision == "float32" else None
    figures.add(what, fits, "x", at_least=target, note=note, seconds=seconds, threads=threads)


def report_predictions(figures: FiguresOf, name: str, precision: str, found: dict[str, list[float]]) -> None:
    ratio = statistics.median(b / a for a, b in zip(found["ours"], found["theirs"], strict=True))
    ours, theirs = (1e3 * statistics.median(found[key]) for key in ("ours", "theirs"))
    figures.add(
        f"{name}, {precision}: anomalib's prediction of a decoded image / ours",
        ratio,
        "x",
        at_least=1.0 if precision == "float32" else None,
        note=f"{theirs:.0f} and {ours:.0f} ms",
        seconds=found,
        threads=torch.get_num_threads(),
    )
