"""A converted detector against the definition of the tool that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ensemblead.common.errors import ConversionError
from ensemblead.conversion.source import Converted, Values
from ensemblead.images import ImageSource

# Of a score, as a distance, or of the scale of distances where that is larger: float32 through patches and
# search is within a tenth of it.
TOLERANCE = 1e-4
MOST_IMAGES = 8
Progress = Callable[[str, int, int], None]


def verify(members: Sequence[Converted], source: ImageSource, progress: Progress | None) -> tuple[int, float]:
    """Score images by the detectors and by the definitions: how many, and the largest relative difference.

    Of more than 8 images 8 are taken, evenly spread. Features come from the network of the detector, and all
    that follows is computed a second time, in float64.

    Raises ConversionError where a score or a map differs by more than the tolerance.
    """
    count = min(len(source), MOST_IMAGES)
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    largest, done = 0.0, 0
    for number, member in enumerate(members):
        for index in chosen:
            pixels = source.read(index)
            name = source.describe(index) + (f" by member {number}" if len(members) > 1 else "")
            largest = max(largest, _compare(member, pixels, name))
            done += 1
            if progress is not None:
                progress("verify", done, count * len(members))
    return count, largest


def _compare(member: Converted, pixels: Any, name: str) -> float:
    found = member.detector.predict(pixels[None])
    frame = member.detector.geometry.apply(pixels)
    network = member.detector.network_
    planes = torch.tensor(frame).permute(2, 0, 1)[None]
    with torch.no_grad():
        layers: list[Values] = [
            one[0].double().cpu().numpy() for one in network(network.normalize(planes.contiguous()))
        ]
    score, grid = member.definition(layers, (frame.shape[0], frame.shape[1]))
    largest = 0.0
    for what, own, defined in (
        ("score", found.anomaly_score, np.array([score])),
        ("map", found.anomaly_map[0], grid),
    ):
        ours, theirs = (_distances(member, values) for values in (own, defined))
        apart = np.abs(ours - theirs) / np.maximum(np.abs(theirs), member.scale)
        worst = float(apart.max())
        if not worst <= TOLERANCE:  # NaN is not either
            place = np.unravel_index(int(np.argmax(apart)), apart.shape)
            raise ConversionError(
                f"the converted detector is not what it comes from: the {what} of {name} is "
                f"{float(own[place]):.6g}, but by definition {float(defined[place]):.6g}; nothing is written"
            )
        largest = max(largest, worst)
    return largest


def _distances(member: Converted, values: Any) -> Values:
    """Scores as distances, signed where rounding has made them negative."""
    exact = np.asarray(values, dtype=np.float64)
    return np.sign(exact) * np.sqrt(np.abs(exact)) if member.is_squared else exact


def drawn_images(seed: int = 0) -> Any:
    """Four pictures of blocks, stripes and noise to compare on where no images are given, uint8."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (4, 10, 12, 3)).repeat(32, axis=1).repeat(32, axis=2)
    stripes = 40 * np.sin(np.arange(384) / generator.uniform(2, 30, (4, 1, 1)))[..., None]
    noise = generator.normal(0, 12, (4, 320, 384, 3))
    return np.clip(blocks * 0.7 + stripes + noise, 0, 255).astype(np.uint8)
