"""Anomaly maps back on the images they belong to: heat maps to look at, and raw maps as TIFF."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.common.files import write_atomically
from ensemblead.images import Geometry

# A heat map covers an image up to so much.
_OPACITY = 0.8
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


def place_back(anomaly_map: Values, geometry: Geometry, size: tuple[int, int]) -> Values:
    """A map `[h, w]` in the frame of its image: float32 `[H, W]` = `size`, NaN where the network saw nothing.

    Bilinear; a pixel's value is the map's at the pixel's centre.
    """
    height, width = size
    top, left, bottom, right = geometry.crop_box(height, width)
    placed = np.full(size, np.nan, dtype=np.float32)
    y0, y1 = _centres_within(top, bottom, height)
    x0, x1 = _centres_within(left, right, width)
    low, high, part = _samples(y0, y1, top, bottom, anomaly_map.shape[0])
    rows = anomaly_map[low] * (1 - part[:, None]) + anomaly_map[high] * part[:, None]
    low, high, part = _samples(x0, x1, left, right, anomaly_map.shape[1])
    placed[y0:y1, x0:x1] = rows[:, low] * (1 - part) + rows[:, high] * part
    return placed


def _samples(
    first: int, last: int, start: float, stop: float, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Values]:
    """For the centres of pixels `first` to `last` the two of `length` values, spread over `start` to `stop`,
    that lie around them, and how far between the two they are.
    """
    places = (np.arange(first, last) + 0.5 - start) * (length / (stop - start)) - 0.5
    places = np.clip(places, 0.0, length - 1.0)
    low = places.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (places - low).astype(np.float32)


def _centres_within(start: float, stop: float, length: int) -> tuple[int, int]:
    """The pixels, of `length`, whose centres lie in the interval; at least one."""
    first, last = int(np.ceil(start - 0.5)), int(np.ceil(stop - 0.5))
    first = min(max(first, 0), length - 1)
    return first, min(max(last, first + 1), length)


def overlay(image: Pixels, placed: Values, scale: tuple[float, float]) -> Pixels:
    """A heat map over its image, both `[H, W]`: the stronger the value, the less transparent.

    What the network did not see is greyed.
    """
    low, high = scale
    seen = np.isfinite(placed)
    level = np.clip((np.nan_to_num(placed, nan=low) - low) / (high - low), 0.0, 1.0)
    colors = _inferno()[(level * 255.0).astype(np.uint8)]
    opacity = (_OPACITY * level)[..., None]
    mixed = image * (1.0 - opacity) + colors * opacity
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32) * 0.5 + 96.0
    drawn: Pixels = np.where(seen[..., None], mixed, grey).round().astype(np.uint8)
    return drawn


@lru_cache(maxsize=1)
def _inferno() -> npt.NDArray[np.float32]:
    """Colours `[256, 3]` in 0..255; the lower tenth, almost black, is left out."""
    import matplotlib

    table = matplotlib.colormaps["inferno"](np.linspace(0.1, 1.0, 256))[:, :3]
    return np.asarray(table * 255.0, dtype=np.float32)


def save_png(path: Path, pixels: Pixels) -> None:
    """8-bit RGB `[H, W, 3]`."""
    # Little compression: it is four times as quick, and heat maps do not compress well anyway.
    write_atomically(path, lambda file: Image.fromarray(pixels).save(file, format="PNG", compress_level=3))


def save_map(path: Path, values: Values) -> None:
    """float32 `[H, W]` as an uncompressed TIFF."""
    write_atomically(path, lambda file: Image.fromarray(values).save(file, format="TIFF"))
