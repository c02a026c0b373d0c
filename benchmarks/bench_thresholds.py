"""Rules for the threshold from leave-one-out scores: false alarms and misses over many random training sets.

    python -m pytest benchmarks/bench_thresholds.py --data FOLDER --weights FOLDER [--scores FILE]

All good photographs of a category, of its training and its test folder, form a pool. A training set is drawn
from it; the rest of the pool are fresh good images. ResNet18 at 160 x 160 pixels, PatchCore with as many bank
rows as 1 % has at 224 x 224, PaDiM at 96 x 96. For every rule and rate: the share of fresh good images above
the threshold, and the share of defects below it, beside the share below the true point of that rate, which is
the quantile of the fresh good images themselves. The scores take about ten minutes on one core; `--scores
FILE.npz` keeps them, and reads them again when the file is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from record import FiguresOf
from threshold_rules import REFITTED, RULES, Rule

import ensemblead as ead
from ensemblead.detectors.parts import Run, Seen
from ensemblead.kernels.maps import render_maps
from ensemblead.memory import MemoryBank

Array = npt.NDArray[Any]
RATES = (0.01, 0.05)
CATEGORIES = ("mvtec_bottle", "magnetic_tile", "aws_cookies")
# Sizes of training sets whose figures are averaged.
GROUPS = {"10": (10, 10), "20 and 30": (20, 30), "50": (50, 50), "100": (100, 100), "172 to 400": (150, 400)}
# Images of a training set, and how many sets of that size are drawn.
SETS = {10: 12, 20: 12, 30: 12, 50: 10, 100: 8, 200: 5, 400: 3}
# So many good images at least are kept for the false alarms.
FRESH = 15
# So many of them are scored, and so many defective ones.
SCORED = 130
# Refits on four fifths of the images: for small sets only, as they cost five selections.
FOLDS, LARGEST_REFITTED = 5, 30
PADIM_SETS = 5
BANK_SHARE = 0.0196  # of 400 patches as many as 1 % of 784
TOP = 4


@dataclass(frozen=True)
class Scored:
    """Scores of one training set: left out, by refits (empty where there were none), fresh, defective."""

    key: str
    left_out: Array
    refitted: Array
    fresh: Array
    defects: Array


# --- scores -------------------------------------------------------------------------------------------------


def photographs(folder: Path) -> tuple[list[Path], list[Path]]:
    """Good ones and defective ones, at most `SCORED`, evenly spread."""
    good = sorted([*(folder / "train/good").iterdir(), *(folder / "test/good").iterdir()])
    bad = sorted(path for path in folder.glob("test/*/*") if path.parent.name != "good")
    return good, bad[:: max(1, -(-len(bad) // SCORED))]


def embeddings(detector: Any, paths: list[Path], side: int) -> torch.Tensor:
    """Half precision `[N, h, w, D]`."""
    extractor, parts = detector.network_, []
    for start in range(0, len(paths), 16):
        some = [Image.open(path).convert("RGB").resize((side, side)) for path in paths[start : start + 16]]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in some])).permute(0, 3, 1, 2)
        with torch.no_grad():
            parts.append(detector.embed(extractor(extractor.normalize(pixels))).half())
    return torch.cat(parts)


def subsets(num_good: int, seed: int) -> Iterator[tuple[int, int, Array]]:
    """Size, number and members of every training set; sizes that leave too few fresh images are cut."""
    largest = num_good - max(FRESH, num_good // 4)
    sizes = sorted({min(size, largest) for size in SETS})
    for size in sizes:
        count = SETS.get(size) or SETS[max(known for known in SETS if known <= size)]
        for number in range(count):
            yield size, number, np.random.default_rng([seed, size, number]).permutation(num_good)[:size]


def others(num_good: int, members: Array) -> Array:
    """Fresh images for a training set, at most `SCORED`."""
    fresh = np.setdiff1d(np.arange(num_good), members)
    return fresh[np.linspace(0, len(fresh) - 1, min(len(fresh), SCORED)).round().astype(int)]


def bank_scores(bank: MemoryBank, rows: torch.Tensor, left_out: Array | None = None) -> Array:
    """`[2, N]`: the largest squared distance of every image, and the mean of its largest hundredth."""
    found = []
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16].float().flatten(1, 2)
        own = None if left_out is None else left_out[start : start + 16].repeat(some.shape[1])
        distances = bank.search(some.flatten(0, 1), 1, exclude_image=own)[0].view(len(some), -1)
        largest = distances.topk(TOP, dim=1).values
        found.append(torch.stack([largest[:, 0], largest.mean(1)]))
    return torch.cat(found, 1).numpy()


def bank_of(rows: torch.Tensor, seed: int) -> MemoryBank:
    bank = MemoryBank(BANK_SHARE, seed=seed)
    bank.add(rows.float().flatten(0, 2), np.arange(len(rows)).repeat(rows.shape[1] * rows.shape[2]))
    return bank.fit()


def refits(rows: torch.Tensor, seed: int) -> Array:
    """`[2, N]`: each image scored by a bank of the other four fifths."""
    scores = np.zeros((2, len(rows)), np.float32)
    fold = np.arange(len(rows)) % FOLDS
    for number in range(FOLDS):
        bank = bank_of(rows[fold != number], seed)
        scores[:, fold == number] = bank_scores(bank, rows[fold == number])
    return scores


def patchcore_scores(folder: Path, weights: Path) -> Iterator[Scored]:
    detector = ead.PatchCore("resnet18", weights=weights / "resnet18.safetensors", device="cpu")
    good, bad = (embeddings(detector, paths, 160) for paths in photographs(folder))
    for size, number, members in subsets(len(good), CATEGORIES.index(folder.name)):
        bank, rows = bank_of(good[members], number), good[members]
        left_out = bank_scores(bank, rows, np.arange(size))
        affordable = size <= LARGEST_REFITTED and number < 6
        refitted = refits(rows, number) if affordable else np.zeros((2, 0))
        fresh = others(len(good), members)
        alarms, defects = bank_scores(bank, good[fresh]), bank_scores(bank, bad)
        for row, kind in enumerate(("max", "topk")):
            key = f"{folder.name}/PatchCore {kind}/{size}/{number}"
            yield Scored(key, left_out[row], refitted[row], alarms[row], defects[row])


def padim_scores(folder: Path, weights: Path) -> Iterator[Scored]:
    detector = ead.PaDiM("resnet18", weights=weights / "resnet18.safetensors", device="cpu")
    good, bad = (embeddings(detector, paths, 96) for paths in photographs(folder))
    for size, number, members in subsets(len(good), CATEGORIES.index(folder.name)):
        if number >= PADIM_SETS:
            continue
        learning, numbers = detector.start(), tuple(range(size))
        learning.add(Seen((good[members].float(),), (96, 96), numbers, (True,) * size))
        fitted = learning.finish(Run(lambda stage, done, total: None, size, frozenset(numbers)))
        grids = [Seen((some.float(),), (96, 96)) for some in (good[others(len(good), members)], bad)]
        fresh, defects = (
            render_maps(detector.scores(fitted.state, seen).grids, (96, 96), sigma=detector.map_sigma)
            .flatten(1)
            .amax(1)
            .numpy()
            for seen in grids
        )
        left_out = fitted.sample.calibration(0.01, "leave_one_out", "").scores
        yield Scored(f"{folder.name}/PaDiM/{size}/{number}", left_out, np.zeros(0), fresh, defects)


def all_scores(data: Path, weights: Path, kept: Path | None) -> list[Scored]:
    fields = ("left_out", "refitted", "fresh", "defects")
    if kept is not None and kept.exists():
        with np.load(kept) as arrays:
            keys = sorted({name.rpartition("|")[0] for name in arrays})
            return [Scored(key, *(arrays[f"{key}|{name}"] for name in fields)) for key in keys]
    scored = [
        one
        for name in CATEGORIES
        for method in (patchcore_scores, padim_scores)
        for one in method(data / name, weights)
    ]
    if kept is not None:
        np.savez(kept, **{f"{one.key}|{name}": getattr(one, name) for one in scored for name in fields})
    return scored


# --- rules --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Means over the training sets of one size, method and category.

    Attributes:
        alarms, misses: of fresh good images and of defects.
        spread: the standard deviation of the misses over the sets.
        true_misses: at the true point of the rate.
    """

    alarms: float
    misses: float
    spread: float
    true_misses: float


def measured(rule: Rule, sets: Sequence[Scored], rate: float, *, refitted: bool = False) -> Cell:
    rows = []
    for one in sets:
        threshold = rule(one.refitted if refitted else one.left_out, rate)
        true = np.quantile(one.fresh, 1 - rate)
        rows.append(
            [(one.fresh > threshold).mean(), (one.defects <= threshold).mean(), (one.defects <= true).mean()]
        )
    alarms, misses, true_misses = np.mean(rows, 0)
    return Cell(float(alarms), float(misses), float(np.std(rows, 0)[1]), float(true_misses))


def by_size(scored: Sequence[Scored]) -> dict[str, dict[str, list[Scored]]]:
    """Sets of one category and method, under the sizes' group."""
    groups: dict[str, dict[str, list[Scored]]] = {name: {} for name in GROUPS}
    for one in scored:
        cell, _, _ = one.key.rpartition("/")
        size = int(cell.rpartition("/")[2])
        for name, (low, high) in GROUPS.items():
            if low <= size <= high:
                groups[name].setdefault(cell, []).append(one)
    return groups


def add_rows(figures: FiguresOf, what: str, cells: Sequence[Cell], *, judged: bool) -> None:
    """Means over categories and methods; `judged` beside their targets."""
    alarms, misses, spread, true = np.mean(
        [[one.alarms, one.misses, one.spread, one.true_misses] for one in cells], 0
    )
    ratio = misses / true if true else float("nan")
    columns = {
        "false alarms": f"{alarms:.1%}",
        "misses": f"{misses:.1%}",
        "their deviation over sets": f"{spread:.1%}",
        "misses at the true point": f"{true:.1%}",
        "ratio": f"{ratio:.2f}",
    }
    figures.add(what, 100 * alarms, "%", at_most=2.0 if judged else None, columns=columns)
    if judged:
        figures.add(f"{what}: misses / those at the true point", ratio, "x", at_most=1.5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("method", ["PatchCore", "PaDiM"])
def test_rules(
    material: tuple[Path, Path], figures: FiguresOf, request: pytest.FixtureRequest, method: str, rate: float
) -> None:
    data, weights = material
    scored = all_scores(data, weights, request.config.getoption("--scores"))
    for group, cells in by_size([one for one in scored if f"/{method}" in one.key]).items():
        for name, rule in RULES.items():
            found = [measured(rule, sets, rate) for sets in cells.values()]
            judged = rate == RATES[0] and "(chosen)" in name
            add_rows(figures, f"{method}, {group} images, {rate:.0%}: {name}", found, judged=judged)
        for name, rule in REFITTED.items():
            refits = [[one for one in sets if len(one.refitted)] for sets in cells.values()]
            found = [measured(rule, sets, rate, refitted=True) for sets in refits if sets]
            if found:
                add_rows(figures, f"{method}, {group} images, {rate:.0%}: {name}", found, judged=False)
