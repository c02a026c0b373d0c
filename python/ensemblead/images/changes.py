"""Changes of images that a detector learns from: turned about the middle, darker and brighter.

Turns by multiples of 45 degrees, with mirrored edges, are those of Damm et al., "AnomalyDINO", arXiv
2405.14529, and their code (dammsi/AnomalyDINO). Factors of 0.8 and 1.2 are the ends of the range that Roming
et al., "SuperADD", arXiv 2605.14808, draw from (config.json of LukasRoom/SuperADD).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.images.masks import Mask

Planes: TypeAlias = npt.NDArray[np.uint8]
Change: TypeAlias = Literal["rotations", "brightness"]
CHANGES: tuple[Change, ...] = ("rotations", "brightness")
ANGLES = (0, 45, 90, 135, 180, 225, 270, 315)
FACTORS = (1.0, 0.8, 1.2)
# Beyond the last pixel that a turned frame reaches, for the interpolation.
_MARGIN = 2
# By so much of a pixel the place of a pixel's centre may be rounded.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Turn:
    """How a copy of a frame is turned about its middle.

    Attributes:
        angle: in degrees, clockwise.
        stretch: how much higher a pixel of the photograph is than wide in the frame, 1 where it is square.
            The photograph is turned, not the frame: a squashed circle stays one.
    """

    angle: int
    stretch: float = 1.0

    def of(self, planes: Planes) -> Planes:
        """A frame uint8 `[3, h, w]` turned, in its size, by bilinear interpolation. What lies beyond its edge
        is its mirror image about the middle of the last pixel.

        >>> Turn(90).of(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))[0]
        array([[2, 0],
               [3, 1]], dtype=uint8)
        """
        if not self.angle:
            return planes
        _, height, width = planes.shape
        (a, b), (c, d) = self._matrix()
        middle_x, middle_y = width / 2, height / 2
        across = math.ceil(max(0.0, abs(a) * middle_x + abs(b) * middle_y - middle_x)) + _MARGIN
        down = math.ceil(max(0.0, abs(c) * middle_x + abs(d) * middle_y - middle_y)) + _MARGIN
        mirrored = np.pad(planes, ((0, 0), (down, down), (across, across)), mode="reflect")
        image = Image.fromarray(np.ascontiguousarray(mirrored.transpose(1, 2, 0)))
        left = middle_x + across - a * middle_x - b * middle_y
        top = middle_y + down - c * middle_x - d * middle_y
        turned = image.transform(
            (width, height),
            Image.Transform.AFFINE,
            (a, b, left, c, d, top),
            resample=Image.Resampling.BILINEAR,
        )
        return np.ascontiguousarray(np.asarray(turned).transpose(2, 0, 1))

    def reached(self, mask: Mask) -> Mask:
        """Which pixels of the turned frame show a pixel of `mask`, bool `[h, w]`, and no mirror image."""
        if not self.angle:
            return mask
        height, width = mask.shape
        (a, b), (c, d) = self._matrix()
        x = np.arange(width)[None, :] + 0.5 - width / 2
        y = np.arange(height)[:, None] + 0.5 - height / 2
        columns, rows = a * x + b * y + width / 2, c * x + d * y + height / 2
        within = (columns > -_ROUNDING) & (columns < width + _ROUNDING)
        within &= (rows > -_ROUNDING) & (rows < height + _ROUNDING)
        row, column = (
            np.clip(np.floor(places).astype(np.int64), 0, side - 1)
            for places, side in ((rows, height), (columns, width))
        )
        reached: Mask = within & mask[row, column]
        return reached

    def _matrix(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """From places in the turned frame, about its middle, to those in the frame: x and y each of x, y."""
        angle = math.radians(self.angle)
        # Exact for quarter turns, whose pixels are then copied.
        cos, sin = round(math.cos(angle), 12), round(math.sin(angle), 12)
        return (cos, sin / self.stretch), (-sin * self.stretch, cos)


@dataclass(frozen=True)
class Copy:
    """One way in which images are changed: turned by `angle` degrees, and every value times `factor`."""

    angle: int = 0
    factor: float = 1.0

    @property
    def is_unchanged(self) -> bool:
        return not self.angle and self.factor == 1.0

    def of(self, planes: Planes, stretch: float) -> Planes:
        """A frame uint8 `[3, h, w]` changed; values are rounded, and end at 255. `stretch`: see `Turn`."""
        turned = Turn(self.angle, stretch).of(planes)
        values = np.rint(np.arange(256) * self.factor).clip(0, 255).astype(np.uint8)
        return turned if self.factor == 1.0 else values[turned]


def copies_of(changes: Collection[str]) -> tuple[Copy, ...]:
    """All combinations of changes by name; the first one changes nothing.

    >>> len(copies_of(["rotations"])), len(copies_of(["brightness"])), len(copies_of([]))
    (8, 3, 1)
    """
    angles = ANGLES if "rotations" in changes else ANGLES[:1]
    factors = FACTORS if "brightness" in changes else FACTORS[:1]
    return tuple(Copy(angle, factor) for factor in factors for angle in angles)
