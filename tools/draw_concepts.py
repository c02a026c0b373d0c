"""Draws the pictures of docs/concepts.md, from procedural plates and by this library's own functions.

    python tools/draw_concepts.py [FOLDER]

writes patches.svg, coreset.svg, tiles.svg and threshold.svg to the folder, docs/pictures if absent.
Everything random has a fixed seed; last digits of coordinates may differ between machines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

import ensemblead as ead
from ensemblead.cli.parts import draw_part

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
BLUE, ORANGE, GREY, RED = "#1f5fbf", "#e07b00", "#9aa4ae", "#c0392b"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, and it can be searched
    "svg.hashsalt": "ensemblead",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "image.composite_image": False,
    "image.interpolation": "none",  # pixels as they are, each once
}
SIDE = 96  # of plates, in pixels
STRIDE = 8  # of the grid of patches: that of the first of the two layers


@cache
def detector(count: int = 24) -> tuple[ead.PatchCore, np.ndarray]:
    """A detector that is fitted on `count` whole plates, and these plates, uint8 `[count, SIDE, SIDE, 3]`."""
    plates = whole_plates(count, seed=0)
    found = ead.PatchCore("gabor", resize=None, image_size=None, coreset_fraction=0.2, device="cpu")
    return found.fit(plates), plates


def whole_plates(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw_part(SIDE, rng)[0] for _ in range(count)])


def spoiled_plates(kinds: list[str], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([draw_part(SIDE, rng, kind)[0] for kind in kinds])


def bare(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def patch_embeddings(images: np.ndarray) -> np.ndarray:
    """uint8 `[B, H, W, 3]` to embeddings of patches, float32 `[B, h, w, D]`."""
    extractor = ead.FeatureExtractor("gabor", ("layer2", "layer3"))
    maps = extractor(extractor.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return ead.aggregate_patches([layer.numpy() for layer in maps], pretrain_dim=128, target_dim=128)


def draw_patches() -> Any:
    """A plate with a defect and the grid of its patches, their distances, and the map."""
    fitted, plates = detector()
    spoiled = spoiled_plates(["stain"], seed=6)
    known = patch_embeddings(plates).reshape(-1, 128)
    bank = known[ead.select_coreset(known, 0.2)]
    patches = patch_embeddings(spoiled)[0]
    distances = np.linalg.norm(patches[:, :, None] - bank, axis=3).min(2)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.7), layout="constrained")
    bare(left, "photograph and its patches")
    left.imshow(spoiled[0])
    for line in range(STRIDE, SIDE, STRIDE):
        left.axhline(line - 0.5, color="white", linewidth=0.3)
        left.axvline(line - 0.5, color="white", linewidth=0.3)
    bare(middle, "distance of each patch")
    middle.imshow(distances, cmap="magma", vmin=0)
    bare(right, "map over the photograph")
    right.imshow(spoiled[0])
    right.imshow(fitted.predict(spoiled).anomaly_map[0], cmap="magma", alpha=0.6, vmin=0)
    return figure


def draw_coreset() -> Any:
    """The same points with rows that a coreset keeps, and with as many at random."""
    rng = np.random.default_rng(3)
    crowd = rng.normal((0.0, 0.0), 0.55, (220, 2))
    arm = np.stack([np.linspace(1.2, 4.2, 45), np.linspace(0.4, 1.9, 45)], 1) + rng.normal(0, 0.16, (45, 2))
    rare = rng.normal((3.2, -1.7), 0.14, (8, 2))
    points = np.concatenate([crowd, arm, rare]).astype(np.float32)
    kept = 12
    picks = {
        "coreset": ead.select_coreset(points, size=kept, projection_dim=None),
        "random choice": rng.choice(len(points), kept, replace=False),
    }
    figure, both = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained", sharex=True, sharey=True)
    for axes, (name, rows) in zip(both, picks.items(), strict=True):
        distances = np.linalg.norm(points[:, None] - points[rows][None], axis=2)
        nearest = distances.argmin(1)
        farthest = int(distances.min(1).argmax())
        bare(axes, f"{name}: farthest point {distances.min(1).max():.1f} away")
        axes.scatter(*points.T, s=8, color=GREY, linewidths=0)
        axes.scatter(*points[rows].T, s=46, color=BLUE, linewidths=0)
        line = np.stack([points[farthest], points[rows[nearest[farthest]]]])
        axes.plot(*line.T, color=RED, linewidth=1.6)
        axes.set_aspect("equal")
    return figure


def draw_tiles() -> Any:
    """Overlapping tiles, how many cover a place, and a merged map with and without seams."""
    plate = spoiled_plates(["scratch"], seed=4)[0]
    size, stride = SIDE // 2, SIDE // 4
    ones = np.ones((1, 1, SIDE, SIDE), np.float32)
    covers = np.zeros((SIDE, SIDE), int)
    for row in range(0, SIDE - size + 1, stride):
        for column in range(0, SIDE - size + 1, stride):
            covers[row : row + size, column : column + size] += 1
    smooth = ead.tile(ones * np.linspace(0, 1, SIDE, dtype=np.float32), size, size)
    shifts = np.random.default_rng(5).uniform(-0.25, 0.25, smooth.shape[:2]).astype(np.float32)
    merged = ead.untile(smooth + shifts[..., None, None, None, None], SIDE, size)
    calm = ead.smooth_seams(merged, size, size, sigma=4.0, width=0.25)
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.5), layout="constrained")
    bare(axes[0], "two of 3 x 3 tiles")
    axes[0].imshow(plate)
    for corner, colour in (((0, 0), ORANGE), ((stride, stride), BLUE)):
        place = (corner[0] - 0.5, corner[1] - 0.5)
        axes[0].add_patch(Rectangle(place, size, size, fill=False, edgecolor=colour, linewidth=2))
    bare(axes[1], "tiles over each place")
    axes[1].imshow(covers, cmap="Blues", vmin=0, vmax=5)
    for row in range(4):
        for column in range(4):
            y, x = row * stride + stride // 2, column * stride + stride // 2
            dark = "white" if covers[y, x] > 2 else "black"
            axes[1].text(x, y, str(covers[y, x]), ha="center", va="center", color=dark)
    for axis, picture, title in ((axes[2], merged, "maps side by side"), (axes[3], calm, "seams smoothed")):
        bare(axis, title)
        axis.imshow(picture[0, 0], cmap="magma", vmin=-0.3, vmax=1.3)
    return figure


def draw_threshold() -> Any:
    """Scores of fresh good plates and of defects, and what a number of fresh images guarantees."""
    fitted, _ = detector()
    estimate = fitted.threshold_
    fitted.calibrate(whole_plates(39, seed=1), false_alarm_rate=0.05)
    good = fitted.predict(whole_plates(50, seed=2)).anomaly_score
    bad = fitted.predict(spoiled_plates(["chip", "scratch", "stain", "heat_tint"] * 6, seed=3)).anomaly_score
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained")
    edges = np.geomspace(min(good.min(), bad.min()), max(good.max(), bad.max()), 40)
    left.hist(good, edges, color=BLUE, alpha=0.8, label="good")
    left.hist(bad, edges, color=ORANGE, alpha=0.8, label="defects")
    left.axvline(estimate, color=GREY, linestyle="--", linewidth=1.6, label="threshold of fit")
    left.axvline(fitted.threshold_, color=RED, linewidth=1.6, label="of calibrate, rate 0.05")
    left.set_xscale("log")
    left.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"], minor=False)
    left.set_xticks([], minor=True)
    left.set_xlabel("score")
    left.set_ylabel("images")
    left.legend(frameon=False, fontsize=8)
    counts = np.arange(4, 200)
    right.plot(counts, 1 / (counts + 1), color=BLUE)
    for count, rate in ((9, 0.1), (19, 0.05), (99, 0.01)):
        right.plot(count, rate, "o", color=RED)
        right.annotate(f"{count} images: {rate:g}", (count, rate), (8, 6), textcoords="offset points")
    right.set_ylim(0, 0.21)
    right.set_xlabel("fresh good images")
    right.set_ylabel("lowest guaranteed false-alarm rate")
    return figure


FIGURES: dict[str, Callable[[], Any]] = {
    "patches": draw_patches,
    "coreset": draw_coreset,
    "tiles": draw_tiles,
    "threshold": draw_threshold,
}


def draw_all(folder: Path) -> list[Path]:
    """Draw every picture; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            paths.append(folder / f"{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None})
            plt.close(figure)
    return paths


if __name__ == "__main__":
    for written in draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES):
        print(written)
