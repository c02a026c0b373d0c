"""Robust fits: real defects mixed into the good training images, and what leaving odd images out gains.

    python -m pytest benchmarks/bench_robust.py --data FOLDER --weights FOLDER [--cache FOLDER]

All good photographs of a category form a pool, and so do its defective ones. A training set is drawn from
both; the rest is the test set, at most 40 of each, so that no defect that was trained on is tested. PatchCore
with ResNet18 at 160 x 160 pixels, with as many bank rows as 1 % has at 224 x 224. `contamination` is None,
the true share, or "auto". The images are embedded once, and `--cache` keeps the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from record import FiguresOf

import ensemblead as ead
from ensemblead.calibration import Calibration
from ensemblead.detectors.parts import Fitted, Run, Seen
from ensemblead.kernels.maps import render_maps

Array = npt.NDArray[Any]
# Images of a training set, and how many sets are drawn.
CATEGORIES = {"aws_cookies": (30, 3), "mvtec_bottle": (75, 2), "magnetic_tile": (100, 2)}
RATES = (0.0, 0.05, 0.1, 0.2, 0.4)
# Sizes of further sets without a defect, and how many of each.
CLEAN = {
    "aws_cookies": (),
    "mvtec_bottle": ((50, 3), (200, 2)),
    "magnetic_tile": ((50, 3), (200, 2), (398, 1)),
}
SIDE, TESTED, BATCH = 160, 40, 16
BANK_SHARE = 0.0196  # of 400 patches as many as 1 % of 784


@dataclass(frozen=True)
class Pool:
    """Embeddings half `[N, h, w, D]` of the good and the defective photographs, and the defects' masks."""

    good: torch.Tensor
    bad: torch.Tensor
    masks: Array


@dataclass(frozen=True)
class Cell:
    """Of one fit: metrics on the test set, defects missed and false alarms at its threshold, and how many
    defects and good images were left out.
    """

    image_auroc: float
    pixel_auroc: float
    aupro: float
    misses: float
    alarms: float
    caught: int
    dropped: int


def detector_of(weights: Path, contamination: Any = None) -> ead.PatchCore:
    return ead.PatchCore(
        "resnet18",
        weights=weights / "resnet18.safetensors",
        coreset_fraction=BANK_SHARE,
        contamination=contamination,
        device="cpu",
        precision="float32",
        engine="torch",
    )


def embedded(detector: ead.PatchCore, paths: Sequence[Path]) -> torch.Tensor:
    extractor, parts = detector.network_, []
    for start in range(0, len(paths), BATCH):
        some = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in paths[start : start + BATCH]]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in some])).permute(0, 3, 1, 2)
        with torch.no_grad():
            parts.append(detector.embed(extractor(extractor.normalize(pixels))).half())
    return torch.cat(parts)


def pool_of(folder: Path, weights: Path, cache: Path) -> Pool:
    kept = cache / f"robust-{folder.name}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return Pool(torch.from_numpy(arrays["good"]), torch.from_numpy(arrays["bad"]), arrays["masks"])
    good = sorted([*(folder / "train/good").iterdir(), *(folder / "test/good").iterdir()])
    bad = sorted(path for path in folder.glob("test/*/*") if path.parent.name != "good")
    masks = []
    for path in bad:
        mask = Image.open(folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png").convert("L")
        masks.append(np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 127)
    detector = detector_of(weights)
    pool = Pool(embedded(detector, good), embedded(detector, bad), np.stack(masks))
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(kept, good=pool.good.numpy(), bad=pool.bad.numpy(), masks=pool.masks)
    return pool


def learned(detector: ead.PatchCore, rows: torch.Tensor) -> Fitted:
    """What the detector learns from embeddings half `[N, h, w, D]`."""
    learning, numbers = detector.start(), tuple(range(len(rows)))
    for start in range(0, len(rows), BATCH):
        own = numbers[start : start + BATCH]
        sampled = (True,) * len(own)
        seen = Seen(
            (rows[start : start + BATCH].float(),), (SIDE, SIDE), own, sampled, own, kind="embeddings"
        )
        learning.add(seen)
    return learning.finish(Run(lambda stage, done, total: None, len(rows), frozenset(numbers)))


def scored(detector: ead.PatchCore, fitted: Fitted, rows: torch.Tensor) -> tuple[Array, Array]:
    """Scores `[N]` and maps `[N, SIDE, SIDE]`."""
    scores, maps = [], []
    for start in range(0, len(rows), BATCH):
        seen = Seen((rows[start : start + BATCH].float(),), (SIDE, SIDE), kind="embeddings")
        found = detector.scores(fitted.state, seen)
        assert found.images is not None
        scores.append(found.images.numpy())
        maps.append(render_maps(found.grids, (SIDE, SIDE)).numpy())
    return np.concatenate(scores), np.concatenate(maps)


def measured(detector: ead.PatchCore, pool: Pool, rate: float, count: int, seed: int) -> Cell:
    defects = round(rate * count)
    generator = np.random.default_rng([seed, count, defects])
    good, bad = (torch.from_numpy(generator.permutation(len(rows))) for rows in (pool.good, pool.bad))
    train = torch.cat([pool.good[good[: count - defects]], pool.bad[bad[:defects]]])
    fresh, tested = good[count - defects :][:TESTED], bad[defects:][:TESTED]
    fitted = learned(detector, train)
    calibration = calibration_of(fitted)
    (normal, flat), (odd, maps) = (
        scored(detector, fitted, rows) for rows in (pool.good[fresh], pool.bad[tested])
    )
    labels = np.repeat([0, 1], [len(normal), len(odd)])
    masks = np.concatenate([np.zeros(flat.shape, dtype=bool), pool.masks[tested.numpy()]])
    both = np.concatenate([flat, maps])
    return Cell(
        ead.auroc(np.concatenate([normal, odd]), labels),
        ead.auroc(both.ravel(), masks.ravel().astype(int)),
        ead.aupro(both, masks),
        float((odd <= calibration.threshold).mean()),
        float((normal > calibration.threshold).mean()),
        sum(number >= count - defects for number in fitted.odd),
        sum(number < count - defects for number in fitted.odd),
    )


def calibration_of(fitted: Fitted) -> Calibration:
    return fitted.sample.calibration(0.01, "leave_one_out", "")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", CATEGORIES)
def test_defects_among_good_images(
    material: tuple[Path, Path], figures: FiguresOf, request: pytest.FixtureRequest, name: str, rate: float
) -> None:
    data, weights = material
    pool = pool_of(data / name, weights, request.config.getoption("--cache"))
    count, sets = CATEGORIES[name]
    for contamination in (None, "auto", rate):
        if contamination == 0.0:
            continue
        detector = detector_of(weights, contamination)
        cells = [measured(detector, pool, rate, count, seed) for seed in range(sets)]
        mean = {key: float(np.mean([getattr(one, key) for one in cells])) for key in vars(cells[0])}
        given = "its share" if contamination == rate else str(contamination)
        figures.add(
            f"{name}, {count} images, {rate:.0%} defective: contamination={given}",
            mean["image_auroc"],
            columns={
                "image AUROC": f"{mean['image_auroc']:.3f}",
                "pixel AUROC": f"{mean['pixel_auroc']:.3f}",
                "AUPRO": f"{mean['aupro']:.3f}",
                "misses": f"{mean['misses']:.1%}",
                "false alarms": f"{mean['alarms']:.1%}",
                "defects left out": f"{sum(one.caught for one in cells)} of {sets * round(rate * count)}",
                "good left out": f"{sum(one.dropped for one in cells)} of "
                f"{sets * (count - round(rate * count))}",
            },
        )


@pytest.mark.parametrize("name", [name for name, sets in CLEAN.items() if sets])
def test_clean_sets(
    material: tuple[Path, Path], figures: FiguresOf, request: pytest.FixtureRequest, name: str
) -> None:
    data, weights = material
    pool = pool_of(data / name, weights, request.config.getoption("--cache"))
    for count, sets in CLEAN[name]:
        dropped = 0
        for seed in range(sets):
            rows = np.random.default_rng([seed, count]).permutation(len(pool.good))[:count]
            dropped += len(learned(detector_of(weights, "auto"), pool.good[torch.from_numpy(rows)]).odd)
        columns = {
            "good left out": f"{dropped} of {sets * count}",
            "share": f"{dropped / (sets * count):.1%}",
        }
        figures.add(
            f"{name}, {count} images, none defective", 100 * dropped / (sets * count), "%", columns=columns
        )
