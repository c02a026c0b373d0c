"""A bank of known defects: what the patches of 0, 1, 5 and 10 defective images gain, with and without masks.

    python -m pytest benchmarks/bench_defects.py --data FOLDER --weights FOLDER [--cache FOLDER]

Photographs, network and cache are those of bench_robust.py. A set is drawn of a category's good photographs;
ten of its defective ones are set aside, of which the first 1, 5 or 10 are known. All cells of a draw are
tested on the same rest, at most 60 of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_robust import BATCH, SIDE, Pool, calibration_of, detector_of, pool_of, scored
from record import FiguresOf
from torch.nn.functional import adaptive_avg_pool2d

import ensemblead as ead
from ensemblead.detectors.parts import Fitted, Run, Seen
from ensemblead.detectors.patchcore.accumulator import BankAccumulator
from ensemblead.detectors.patchcore.defects import DefectLook

# Good photographs of a set.
COUNTS = {"aws_cookies": 30, "mvtec_bottle": 75, "magnetic_tile": 100}
KNOWN, DRAWS, TESTED, STREAM = (0, 1, 5, 10), 3, 60, 19
COLUMNS = ("image AUROC", "AUPRO", "misses", "false alarms")


def looks_at(pool: Pool, which: Sequence[int], with_masks: bool) -> list[DefectLook]:
    looks = []
    for i in which:
        rows = pool.bad[i].float()
        grid = (int(rows.shape[0]), int(rows.shape[1]))
        shares = adaptive_avg_pool2d(torch.from_numpy(pool.masks[i]).float()[None], grid).flatten()
        looks.append(
            DefectLook(
                f"defect {i}", 10**6 + i, i, rows.flatten(0, 1), grid, None, shares if with_masks else None
            )
        )
    return looks


def learned(detector: ead.PatchCore, rows: torch.Tensor, looks: list[DefectLook]) -> Fitted:
    numbers = tuple(range(len(rows)))
    learning = BankAccumulator(
        detector._scoring,
        detector.new_bank(),
        BATCH,
        detector._relative_noise,
        defects=(lambda seen: looks) if looks else None,
    )
    for start in range(0, len(rows), BATCH):
        own = numbers[start : start + BATCH]
        values = (rows[start : start + BATCH].float(),)
        learning.add(Seen(values, (SIDE, SIDE), own, (True,) * len(own), own, kind="embeddings"))
    return learning.finish(Run(lambda stage, done, total: None, len(rows), frozenset(numbers)))


def measured(detector: ead.PatchCore, pool: Pool, count: int, draw: int) -> dict[str, list[float]]:
    """By setting the image AUROC, AUPRO, misses, false alarms, and the rows of known defects."""
    generator = np.random.default_rng([draw, count, STREAM])
    good, bad = (generator.permutation(len(rows)) for rows in (pool.good, pool.bad))
    known, tested = bad[: max(KNOWN)], bad[max(KNOWN) :][:TESTED]
    train, fresh = good[:count], good[count:][:TESTED]
    labels = np.repeat([0, 1], [len(fresh), len(tested)])
    masks = np.concatenate([np.zeros((len(fresh), SIDE, SIDE), dtype=bool), pool.masks[tested]])
    found: dict[str, list[float]] = {}
    for number in KNOWN:
        for with_masks in (True, False) if number else (True,):
            looks = looks_at(pool, known[:number].tolist(), with_masks)
            fitted = learned(detector, pool.good[torch.from_numpy(train)], looks)
            threshold = calibration_of(fitted).threshold
            normal, flat = scored(detector, fitted, pool.good[torch.from_numpy(fresh)])
            odd, maps = scored(detector, fitted, pool.bad[torch.from_numpy(tested)])
            name = f"{number} known" + (", masks" if with_masks else ", no masks") * bool(number)
            found[name] = [
                ead.auroc(np.concatenate([normal, odd]), labels),
                ead.aupro(np.concatenate([flat, maps]), masks),
                float((odd <= threshold).mean()),
                float((normal > threshold).mean()),
                0 if fitted.state.defects_ is None else len(fitted.state.defects_),
            ]
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_known_defects(
    material: tuple[Path, Path], figures: FiguresOf, request: pytest.FixtureRequest, name: str
) -> None:
    data, weights = material
    pool = pool_of(data / name, weights, request.config.getoption("--cache"))
    detector = detector_of(weights)
    draws = [measured(detector, pool, COUNTS[name], draw) for draw in range(DRAWS)]
    for setting in draws[0]:
        each = np.array([one[setting] for one in draws])
        mean = each.mean(0)
        texts = [f"{mean[0]:.3f}", f"{mean[1]:.3f}", f"{mean[2]:.1%}", f"{mean[3]:.1%}"]
        by_draw = ["; ".join(f"{value:.3f}" for value in each[:, column]) for column in (0, 1)]
        figures.add(
            f"{name}, {COUNTS[name]} images: {setting}",
            float(mean[0]),
            columns={
                **dict(zip(COLUMNS, texts, strict=True)),
                "rows": f"{mean[4]:.0f}",
                "AUROC by draw": by_draw[0],
                "AUPRO by draw": by_draw[1],
            },
        )
