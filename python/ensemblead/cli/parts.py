"""Brushed metal plates with drilled holes, whole and with defects, drawn from a seed: the data of `demo`.

A plate is a height field and a colour. Both are lit together, so that a dent is visible by its shading and a
scratch by its rims, and what differs between whole plates (grain, place, angle, light, noise) differs in
defective ones too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from ensemblead.common.threads import available_cores, ended_with_generator

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_FINE = 2  # drawn at so many times the size, then averaged
_ALUMINIUM = np.array([0.66, 0.675, 0.69], np.float32)
_BENCH = np.array([0.10, 0.105, 0.125], np.float32)
_HALF = 0.40  # half the side of a plate; lengths are in widths of the picture, heights too
_HOLES, _HOLE = 0.285, 0.035
_HUB = 0.15


@dataclass
class _Part:
    """A plate in the making: where every pixel lies on it (u right, v down), and what is there."""

    u: Field
    v: Field
    height: Field
    grain: Field
    metal: Field  # 1 on the plate, 0 on the bench
    tint: npt.NDArray[np.float32]  # [H, W, 3], times the metal's colour
    pixel: float
    rng: np.random.Generator

    def noise(self, sigma: float) -> Field:
        """Smooth noise with standard deviation 1; `sigma` in widths."""
        values = gaussian_filter(self.rng.standard_normal(self.u.shape, np.float32), sigma / self.pixel)
        return np.asarray((values - values.mean()) / values.std(), np.float32)

    def spot(self, reach: float = 0.30) -> tuple[float, float]:
        """A place on the plate."""
        u, v = self.rng.uniform(-reach, reach, 2)
        return float(u), float(v)

    def blob(self, radius: float, edge: float, reach: float = 0.28) -> Field:
        """An uneven patch: 1 inside, 0 outside, `edge` wide in between."""
        u, v = self.spot(reach)
        stretch, turn = self.rng.uniform(0.75, 1.35), self.rng.uniform(0, np.pi)
        a = (self.u - u) * np.cos(turn) + (self.v - v) * np.sin(turn)
        b = (self.v - v) * np.cos(turn) - (self.u - u) * np.sin(turn)
        distance = np.hypot(a * stretch, b / stretch) + 0.16 * radius * self.noise(0.4 * radius)
        return _step((radius - distance) / edge + 0.5)


def _step(x: npt.NDArray[np.floating]) -> Field:
    """Smoothly from 0 at 0 to 1 at 1."""
    t = np.clip(x, 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t), np.float32)


def _whole(size: int, rng: np.random.Generator) -> _Part:
    fine = size * _FINE
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine - 0.5
    turn, (right, down) = np.deg2rad(rng.uniform(-1.5, 1.5)), rng.uniform(-0.008, 0.008, 2)
    x, y = axis[None, :] - right, axis[:, None] - down
    u = np.asarray(x * np.cos(turn) + y * np.sin(turn), np.float32)
    v = np.asarray(y * np.cos(turn) - x * np.sin(turn), np.float32)
    pixel = 1.0 / fine
    outline = np.hypot(np.maximum(abs(u) - _HALF + 0.05, 0), np.maximum(abs(v) - _HALF + 0.05, 0)) - 0.05
    metal = _step(0.5 - outline / (2 * pixel))
    height = 0.010 * _step(-outline / 0.014)  # a bevelled edge
    radius = np.hypot(u, v)
    # Brushed along u, but turned on a lathe within the hub, which a groove surrounds.
    lines = gaussian_filter(rng.standard_normal(u.shape, np.float32), (0.8, 0.05 * fine))
    turned = np.sin(radius / 0.0165 * 2 * np.pi + rng.uniform(0, 2 * np.pi))
    hub = _step((_HUB - radius) / 0.004 + 0.5)
    grain = lines / lines.std() * (1 - hub) * 0.0003 + turned * hub * 0.00055
    height -= 0.006 * np.exp(-(((radius - _HUB) / 0.008) ** 2))
    for sign_u in (-1, 1):
        for sign_v in (-1, 1):
            distance = np.hypot(u - sign_u * _HOLES, v - sign_v * _HOLES)
            height -= 0.012 * _step((1.75 * _HOLE - distance) / (0.75 * _HOLE))  # countersunk
            metal = metal * _step((distance - _HOLE) / (2 * pixel) + 0.5)
    tint = np.ones((*u.shape, 3), np.float32)
    return _Part(u, v, np.asarray(height, np.float32), np.asarray(grain, np.float32), metal, tint, pixel, rng)


# Defects: each changes a whole part and says where.


def _scratch(part: _Part) -> Mask:
    """A gouge, slightly bent, with a raised rim on both sides."""
    rng = part.rng
    u, v = part.spot(0.2)
    turn, length, bend = rng.uniform(0, np.pi), rng.uniform(0.10, 0.22), rng.uniform(-1.2, 1.2)
    along = (part.u - u) * np.cos(turn) + (part.v - v) * np.sin(turn)
    across = (part.v - v) * np.cos(turn) - (part.u - u) * np.sin(turn) - bend * along**2
    across += 0.0012 * part.noise(0.02)
    width = rng.uniform(0.0032, 0.0055) * _step((length / 2 - abs(along)) / 0.05) + 1e-6
    depth = np.exp(-((across / width) ** 2)) - 0.6 * np.exp(-(((abs(across) - 2 * width) / width) ** 2))
    within = abs(along) < length / 2
    part.height -= np.where(within, 1.1 * width * depth, 0).astype(np.float32)
    part.grain *= np.where(within & (abs(across) < 2 * width), 0.3, 1.0).astype(np.float32)
    part.tint *= (1.0 - 0.35 * np.exp(-((across / width) ** 2)) * within)[..., None]
    return np.asarray(within & (abs(across) < 2.6 * width))


def _dent(part: _Part) -> Mask:
    """A smooth hollow, seen by its shading alone."""
    u, v = part.spot(0.25)
    radius, stretch, turn = part.rng.uniform(0.024, 0.042), part.rng.uniform(0.7, 1.4), part.rng.uniform(0, 3)
    a = (part.u - u) * np.cos(turn) + (part.v - v) * np.sin(turn)
    b = (part.v - v) * np.cos(turn) - (part.u - u) * np.sin(turn)
    distance = np.hypot(a * stretch, b / stretch) / radius
    part.height -= (0.30 * radius * np.exp(-(distance**2))).astype(np.float32)
    return np.asarray(distance < 1.6)


def _stain(part: _Part) -> Mask:
    """A dried drop: a translucent film, darkest at its rim."""
    film = part.blob(part.rng.uniform(0.035, 0.07), 0.018)
    rim = 4 * film * (1 - film)
    color = np.array([0.30, 0.42, 0.56], np.float32) * part.rng.uniform(0.8, 1.1)
    part.tint *= 1.0 - (0.7 * film + 0.45 * rim)[..., None] * color
    return np.asarray(film > 0.3)


def _worn(part: _Part) -> Mask:
    """The brushing is rubbed away: the surface is smooth there and a little brighter."""
    patch = part.blob(part.rng.uniform(0.05, 0.085), 0.03)
    part.grain *= 1.0 - 0.97 * patch
    part.tint *= 1.0 + 0.05 * patch[..., None]
    return np.asarray(patch > 0.4)


def _heat(part: _Part) -> Mask:
    """The colours of overheated metal, from straw outside to blue inside."""
    level = part.blob(part.rng.uniform(0.06, 0.10), 0.08)
    stops = np.array([[1, 1, 1], [1.04, 0.99, 0.88], [1.0, 0.91, 0.87], [0.88, 0.9, 1.02]], np.float32)
    places = np.linspace(0, 1, len(stops))
    color = np.stack([np.interp(level, places, stops[:, channel]) for channel in range(3)], axis=2)
    part.tint *= color.astype(np.float32)
    return np.asarray(level > 0.25)


def _chip(part: _Part) -> Mask:
    """A piece broken off the edge."""
    side, place = part.rng.integers(4), part.rng.uniform(-0.28, 0.28)
    u, v = [(-_HALF, place), (_HALF, place), (place, -_HALF), (place, _HALF)][side]
    radius = part.rng.uniform(0.028, 0.05)
    distance = np.hypot(part.u - u, part.v - v) + 0.22 * radius * part.noise(0.25 * radius)
    part.metal = part.metal * _step((distance - radius) / (3 * part.pixel) + 0.5)
    part.height -= (0.008 * _step((1.3 * radius - distance) / (0.3 * radius))).astype(np.float32)
    return np.asarray(distance < 1.15 * radius)


DEFECTS: dict[str, Callable[[_Part], Mask]] = {
    "chip": _chip,
    "dent": _dent,
    "heat_tint": _heat,
    "scratch": _scratch,
    "stain": _stain,
    "worn": _worn,
}


def draw_part(
    size: int, rng: np.random.Generator, defect: str | None = None
) -> tuple[npt.NDArray[np.uint8], Mask]:
    """A photograph of a plate, uint8 `[size, size, 3]`, and where its defect is, bool `[size, size]`."""
    part = _whole(size, rng)
    whole = part.metal > 0.5
    mask = np.zeros(part.u.shape, bool) if defect is None else DEFECTS[defect](part) & whole
    lit = _light(part)
    small = lit.reshape(size, _FINE, size, _FINE, 3).mean((1, 3))
    small += rng.standard_normal(small.shape, np.float32) * 0.009
    image = (np.clip(small, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    covered = mask.reshape(size, _FINE, size, _FINE).mean((1, 3)) >= 0.5
    return image, covered


def _light(part: _Part) -> npt.NDArray[np.float32]:
    """Lambert's and Blinn's light from the upper left, float32 `[H, W, 3]` in 0..1."""
    rng = part.rng
    dv, du = np.gradient(part.height + part.grain, part.pixel)
    length = np.sqrt(du * du + dv * dv + 1.0)
    sun = np.array([-0.55 + rng.uniform(-0.04, 0.04), -0.50 + rng.uniform(-0.04, 0.04), 0.75])
    sun /= np.linalg.norm(sun)
    half = sun + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    diffuse = np.maximum((-du * sun[0] - dv * sun[1] + sun[2]) / length, 0.0)
    glint = np.maximum((-du * half[0] - dv * half[1] + half[2]) / length, 0.0) ** 24
    color = _ALUMINIUM * part.tint * (0.22 + 0.85 * diffuse)[..., None] + 0.22 * glint[..., None]
    bench = _BENCH * (1.0 + 0.06 * part.noise(0.004))[..., None]
    # The lamp is nearer to one corner.
    falloff = 1.0 - 0.16 * (part.u + part.v)
    metal = part.metal[..., None]
    lit = (color * metal + bench * (1.0 - metal)) * falloff[..., None] * rng.uniform(0.97, 1.03)
    return np.asarray(gaussian_filter(lit, (0.9, 0.9, 0)), np.float32)


def draw_data_set(
    folder: Path,
    seed: int,
    *,
    size: int = 256,
    num_train: int = 30,
    num_fresh: int = 20,
    num_good: int = 20,
    per_defect: int = 4,
) -> Iterator[Path]:
    """Write a category in MVTec layout, and fresh normal images in `calibration`; yields every image's path.

    The same arguments give the same images. Every image has a random stream of its own.
    """
    wanted: list[tuple[str, str | None, int]] = [("train/good", None, i) for i in range(num_train)]
    wanted += [("calibration", None, i) for i in range(num_fresh)]
    wanted += [("test/good", None, i) for i in range(num_good)]
    wanted += [(f"test/{name}", name, i) for name in DEFECTS for i in range(per_defect)]
    kinds = list(dict.fromkeys(place for place, _, _ in wanted))

    def draw(place: str, defect: str | None, number: int) -> Path:
        rng = np.random.default_rng([seed, kinds.index(place), number])
        image, mask = draw_part(size, rng, defect)
        path = folder / place / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        if defect is not None:
            truth = folder / "ground_truth" / defect / f"{number:03d}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(truth)
        return path

    pool = ThreadPoolExecutor(min(4, available_cores()))
    with ended_with_generator(pool):
        yield from pool.map(lambda one: draw(*one), wanted)
