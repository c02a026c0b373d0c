"""A detector that reads its answers from the images it is given, and a category drawn for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ensemblead.images import Geometry, read_image

HEIGHT, WIDTH = 40, 48
GEOMETRY = Geometry(resize=(20, 24), crop=16)


@dataclass
class FakePredictions:
    anomaly_score: np.ndarray
    anomaly_map: np.ndarray
    is_anomalous: np.ndarray | None
    paths: list[str | None]


class Brightness:
    """A detector whose map is the red channel and whose score is the map's maximum."""

    fusion = "calibrated"

    def __init__(self, *, threshold: float = 150.0, batch_size: int = 3, named: bool = True) -> None:
        self.geometry = GEOMETRY
        self.threshold_ = threshold
        self.batch_size = batch_size
        self.named = named

    def predict_batches(self, images: Sequence[str]) -> Iterator[FakePredictions]:
        for start in range(0, len(images), self.batch_size):
            paths = list(images[start : start + self.batch_size])
            maps = np.stack([self.geometry.apply(read_image(path))[..., 0] for path in paths])
            maps = maps.astype(np.float32)
            scores = maps.max(axis=(1, 2))
            known: list[str | None] = [*paths] if self.named else [None] * len(paths)
            yield FakePredictions(scores, maps, scores > self.threshold_, known)


def draw(path: Path, seed: int, defect: tuple[int, int, int] | None = None, mask: Path | None = None) -> None:
    """Dim noise; a defect (y, x, brightness) is a 10 x 10 patch, and what a mask, if asked for, says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 120, (HEIGHT, WIDTH, 3), np.uint8)
    if defect is not None:
        y, x, value = defect
        pixels[y : y + 10, x : x + 10, 0] = np.maximum(pixels[y : y + 10, x : x + 10, 0], value)
        if mask is not None:
            mask.parent.mkdir(parents=True, exist_ok=True)
            truth = np.zeros((HEIGHT, WIDTH), np.uint8)
            truth[y : y + 10, x : x + 10] = 255
            Image.fromarray(truth).save(mask)
    Image.fromarray(pixels).save(path)


def draw_category(root: Path, seed: int) -> Path:
    for index in range(3):
        draw(root / f"train/good/{index}.png", seed + index)
    for index in range(5):
        draw(root / f"test/good/{index}.png", seed + 10 + index)
    for kind, values in (("dull", (60, 90, 130)), ("shiny", (160, 200, 240))):
        for index, value in enumerate(values):
            place = (12 + 2 * index, 14 + 3 * index, value)
            draw(
                root / f"test/{kind}/{index}.png",
                seed + 20 + index,
                place,
                root / f"ground_truth/{kind}/{index}.png",
            )
    return root


def draw_two_categories(root: Path) -> Path:
    """ "bolt" and "nut", in MVTec layout."""
    for index, name in enumerate(("bolt", "nut")):
        draw_category(root / name, 100 * index)
    return root
