"""Drift: how often `DriftMonitor` alarms without a change, and how soon after one.

    python -m pytest benchmarks/bench_drift.py --data FOLDER --weights FOLDER [-k "bottle and split1"]

`--data` and `--weights` are those of bench_detection.py. Good images of a category are split at random: some
fit the detector (PatchCore, resnet18, at 224 pixels), 60 calibrate the monitor, 59 are the stream, which is
drawn anew many times. A change is made of the same images, at 224 pixels, from the first of the stream on.
There are 45 cookies: of each four quarter turns are taken, and all turns of a photograph serve one purpose.

A cell is a category in one split; each is measured in a process of its own and kept in results/drift.json at
once: a run can be stopped, and goes on with what is missing. `--rows N` draws N streams for a quick trial.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

from common import in_child
from kept import Kept, measure_together
from record import Figure, FiguresOf
from scipy import ndimage

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.images import Geometry, read_image
from ensemblead.monitoring.watching import largest_by_cell

Images = npt.NDArray[np.uint8]
# Of each category its folder, how many photographs are fitted on, and how many turns there are of each.
CATEGORIES = {
    "bottle": ("mvtec_bottle", 110, 1),
    "magnetic tile": ("magnetic_tile", 110, 1),
    "cookies": ("aws_cookies", 15, 4),
}
SPLITS = (1, 2)
SIDE, CELLS = 224, 4
CALIBRATION, STREAM = 60, 59
# Streams drawn: without a change, and of each change.
UNCHANGED, CHANGED = 400, 60
DEFECTIVE = (0.05, 0.1)


def _blurred(sigma: float) -> Callable[[Images], Images]:
    return lambda images: _whole(ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)))


def _scaled(*factors: float) -> Callable[[Images], Images]:
    return lambda images: _whole(images.astype(np.float32) * np.array(factors, np.float32))


def _shifted(pixels: int) -> Callable[[Images], Images]:
    edges = ((0, 0), (pixels, 0), (pixels, 0), (0, 0))
    return lambda images: np.pad(images, edges, mode="edge")[:, :-pixels, :-pixels]


def _noisy(sigma: float) -> Callable[[Images], Images]:
    def change(images: Images) -> Images:
        return _whole(images + np.random.default_rng(0).normal(0, sigma, images.shape))

    return change


def _whole(values: npt.NDArray[Any]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# What a change does, and whether it must be seen within 15 images (True) or be passed over (False).
CHANGES: dict[str, tuple[Callable[[Images], Images], bool | None]] = {
    "brightness +2 %": (_scaled(1.02), False),
    "blur 0.5 px": (_blurred(0.5), False),
    "blur 0.8 px": (_blurred(0.8), True),
    "shift 4 px": (_shifted(4), True),
    "tint 3 %": (_scaled(1.03, 1.0, 0.97), True),
    "noise 2": (_noisy(2.0), True),
    "brightness -5 %": (_scaled(0.95), True),
    "brightness +5 %": (_scaled(1.05), None),
    "brightness +10 %": (_scaled(1.1), None),
    "blur 1.2 px": (_blurred(1.2), None),
    "shift 8 px": (_shifted(8), None),
    "tint 6 %": (_scaled(1.06, 1.0, 0.94), None),
    "noise 4": (_noisy(4.0), None),
}
NONE = "no change"
WHATS = (NONE, *CHANGES, *(f"{share:.0%} of real defects" for share in DEFECTIVE))


# --- what is measured -----------------------------------------------------------------------------


def measure(path: Path, weights: Path, category: str, split: int, draws: int | None) -> list[dict[str, Any]]:
    """The figures of `WHATS`, in their order."""
    _, count, turns = CATEGORIES[category]
    found = MVTecAD(path).categories[0]
    good = [*found.train, *(sample.path for sample in found.test if not sample.label)]
    order = np.random.default_rng(split).permutation(len(good))
    fitted, fresh = (turned([good[i] for i in part], turns) for part in np.split(order, [count]))
    defects = turned([sample.path for sample in found.test if sample.label], turns)
    detector = ead.PatchCore(
        "resnet18",
        weights=weights / "resnet18.safetensors",
        resize=None,
        image_size=None,
        device="cpu",
        seed=split,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how few images a rate rests on
        detector.fit(fitted)
    fresh = fresh[: CALIBRATION + STREAM]
    normal = predicted(detector, fresh)
    rows = []
    for what in WHATS:
        changed = normal
        if what in CHANGES:
            changed = predicted(detector, CHANGES[what][0](fresh))
        mixed = None
        if "defects" in what:
            mixed = predicted(detector, defects), DEFECTIVE[WHATS.index(what) - 1 - len(CHANGES)]
        streams = draws or (UNCHANGED if what == NONE else CHANGED)
        rows.append(drawn(detector, normal, changed, mixed, streams))
    return rows


def turned(paths: Sequence[str], turns: int) -> Images:
    """Photographs as a detector resizes them."""
    geometry = Geometry((SIDE, SIDE), None)
    images = [geometry.apply(read_image(path)) for path in paths]
    return np.stack([np.rot90(one, turn) for one in images for turn in range(turns)])


def predicted(detector: ead.PatchCore, images: Images) -> ead.Predictions:
    """With maps of as many pixels as the monitor has cells, which is all that it reads of them."""
    found = detector.predict(images, features=True)
    cells = largest_by_cell(found.anomaly_map, CELLS).reshape(-1, CELLS, CELLS)
    return replace(found, anomaly_map=cells, fingerprints=None)


def drawn(
    detector: ead.PatchCore,
    normal: ead.Predictions,
    changed: ead.Predictions,
    mixed: tuple[ead.Predictions, float] | None,
    streams: int,
) -> dict[str, Any]:
    """Streams of images in random order: when each alarmed, and what was said then."""
    alarms, since, seconds, advice, moved = [], [], [], dict[str, int](), np.zeros(CELLS**2)
    for stream in range(streams):
        rng = np.random.default_rng([stream, 7])
        order = rng.permutation(len(normal))
        monitor = ead.DriftMonitor(detector, regions=CELLS, seed=stream)
        monitor.calibrate(normal.take(order[:CALIBRATION]))
        batch = changed.take(order[CALIBRATION:])
        if mixed is not None:
            batch = spoiled(batch, *mixed, rng)
        start = time.process_time()
        state = monitor.observe(batch)
        seconds.append((time.process_time() - start) / len(batch))
        alarms.append(STREAM + 1 if state.alarm_at is None else state.alarm_at + 1)
        advice[state.advice] = advice.get(state.advice, 0) + 1
        if state.alarm and state.since is not None:
            since.append(state.since)
            assert state.regions is not None
            moved += state.regions.ravel() >= state.level
    ratio = float(np.median(changed.anomaly_score) / np.median(normal.anomaly_score))
    return {
        "alarmed": float(np.mean(np.array(alarms) <= STREAM)),
        "median_images": float(np.median(alarms)),
        "since": float(np.median(since)) if since else None,
        "milliseconds": 1e3 * statistics.median(seconds),
        "score_ratio": ratio,
        "streams": streams,
        "advice": advice,
        "moved": (moved / max(1, len(since))).round(2).tolist(),
    }


def spoiled(
    batch: ead.Predictions, defects: ead.Predictions, share: float, rng: np.random.Generator
) -> ead.Predictions:
    both = ead.Predictions.concatenate([batch, defects])
    places = np.arange(len(batch))
    chosen = rng.random(len(batch)) < share
    places[chosen] = len(batch) + rng.integers(len(defects), size=int(chosen.sum()))
    return both.take(places)


# --- keeping --------------------------------------------------------------------------------------


class Drift(Kept):
    """A category under one change, by splits."""

    def __init__(self, figures: FiguresOf, category: str, what: str, again: bool) -> None:
        super().__init__(figures, f"{category}, {what}", again)
        self._change = what

    def figure(self) -> Figure:
        alarmed = statistics.fmean(self.values("alarmed"))
        images = statistics.fmean(self.values("median_images"))
        columns = {
            "alarms": f"{alarmed:.4f}",
            "median images to the alarm": "-" if images > STREAM else f"{images:.1f}",
            "score, times": statistics.fmean(self.values("score_ratio")),
            "observe, ms per image": statistics.fmean(self.values("milliseconds")),
            "splits": str(len(self._cells)),
        }
        details = {"columns": columns, "cells": self._cells}
        note = f"{STREAM + 1}: none within {STREAM}" if images > STREAM else ""
        make: Callable[..., Figure] = partial(Figure, self._figures.benchmark, self._what, details=details)
        must_see = CHANGES[self._change][1] if self._change in CHANGES else False
        if must_see:
            return make(images, "images to the alarm", at_most=15.0, note=note)
        if must_see is None:
            return make(images, "images to the alarm", note=note)
        return make(alarmed, "of streams alarm", at_most=_MOST.get(self._change, 0.1))


# The largest share of streams that may alarm: of harmless changes a tenth, of many defects any.
_MOST: Mapping[str, float | None] = {NONE: 0.01, WHATS[-2]: 0.05, WHATS[-1]: None}


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: f"split{split}")
@pytest.mark.parametrize("category", CATEGORIES)
def test_cell(
    request: pytest.FixtureRequest, figures: FiguresOf, material: tuple[Path, Path], category: str, split: int
) -> None:
    data, weights = material
    path = data / CATEGORIES[category][0]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    again = bool(request.config.getoption("--again"))
    rows = [Drift(figures, category, what, again) for what in WHATS]
    draws = request.config.getoption("--rows")
    measured = partial(in_child, measure, path, weights, category, split, draws)
    if measure_together(rows, str(split), measured):
        for row in rows:
            row.report()
