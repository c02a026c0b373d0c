"""Pictures that speak: outlines, boxes and a caption on photographs of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ensemblead.common.errors import MissingExtraError
from ensemblead.common.regions import outlines

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

# A bright line on a dark, wider one is seen on any photograph; the page has the same colours.
OUTLINE: Colour = (77, 225, 242)
BOX: Colour = (255, 255, 255)
_HALO: Colour = (0, 0, 0)
_BAND, _TEXT, _QUIET = (22, 25, 29), (240, 240, 236), (176, 184, 192)
_ANOMALOUS, _NORMAL = (255, 180, 84), (140, 214, 160)
# Of the geometric mean of a picture's sides; the least in pixels.
_LINE, _FONT, _LEAST_FONT = 0.003, 0.03, 11
_SMALL = 160  # sides of pictures whose lines have no rim, which would hide too much
# The longer side up to which a map is enlarged before its outline is drawn: finer than the eye follows.
_FINE = 1024
_STRIP = 1 << 22  # pixels that are handed to a picture together


def canvas_of(image: Pixels, below: int = 0, width: int = 0) -> Image.Image:
    """A picture of an image `[H, W, 3]`, with `below` more rows, and `width` pixels wide at least.

    Handed over in strips, so that it and the image are the only large things in memory.
    """
    height, own = image.shape[:2]
    canvas = Image.new("RGB", (max(own, width), height + below), _BAND)
    rows = max(1, _STRIP // max(1, own))
    for top in range(0, height, rows):
        canvas.paste(Image.fromarray(image[top : top + rows]), (0, top))
    return canvas


def line_width(size: tuple[int, int]) -> int:
    """Of lines on a picture (H, W): a pixel on small ones, twelve on one of 4000 pixels."""
    return max(1, round(_LINE * math.sqrt(size[0] * size[1])))


def draw_outline(
    canvas: Image.Image,
    mask: Mask,
    box: tuple[float, float, float, float],
    *,
    width: int,
    colour: Colour = OUTLINE,
) -> None:
    """Draw the outline of a mask, in place.

    Args:
        canvas: the picture.
        mask: bool `[h, w]`, of any size.
        box: which part of the picture it covers: (top, left, bottom, right) in the picture's pixels, as
            `Geometry.crop_box` gives it.
        width: of the line, in pixels, see `line_width`.
        colour: of the line, which has a dark rim.
    """
    top, left, bottom, right = box
    scale = (right - left) / mask.shape[1], (bottom - top) / mask.shape[0]
    rings = [ring * scale + (left, top) for ring in outlines(mask)]
    _draw_rings(canvas, rings, width, colour)


def draw_boxes(
    canvas: Image.Image, boxes: Iterable[tuple[float, float, float, float]], *, width: int
) -> None:
    """Draw boxes (x, y, width, height), in place, with a little room around what they enclose."""
    rings = []
    for x, y, wide, high in boxes:
        room = 2.0 * width
        near, far = (x - room, y - room), (x + wide + room, y + high + room)
        rings.append(np.array([near, (far[0], near[1]), far, (near[0], far[1])]))
    _draw_rings(canvas, rings, max(1, width // 2), BOX)


def _draw_rings(canvas: Image.Image, rings: Sequence[npt.NDArray[Any]], width: int, colour: Colour) -> None:
    draw = ImageDraw.Draw(canvas)
    has_rim = canvas.width * canvas.height > _SMALL**2
    rim = width + 2 * max(1, width // 2) * has_rim
    for wide, own in ((rim, _HALO), (width, colour)):
        for ring in rings:
            # Corners to centres of pixels; the first two once more, so that the last joint is round, too.
            points = [(x - 0.5, y - 0.5) for x, y in (*ring.tolist(), *ring[:2].tolist())]
            draw.line(points, fill=own, width=wide, joint="curve" if wide > 3 else None)


def fine_mask(values: Values, threshold: float, size: tuple[int, int]) -> Mask:
    """Where a map `[h, w]` lies above a threshold, as finely as its place `size` (H, W) on the photograph
    shows it: enlarged (bilinear) to about that, or to `_FINE` pixels on the longer side, and never reduced.

    By odd factors, so that the values themselves are among the enlarged ones, and no region is lost.
    """
    shrink = min(1.0, _FINE / max(size))
    factors = (int(shrink * side / own) for side, own in zip(size, values.shape, strict=True))
    height, width = (
        own * max(1, factor - 1 + factor % 2) for own, factor in zip(values.shape, factors, strict=True)
    )
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    enlarged: Values = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    above: Mask = enlarged > np.float64(threshold)
    return above


class Caption:
    """The band below a picture: verdict, score and threshold, in letters that go with the picture's size.

    Args:
        size: (H, W) of the picture.
        words: the verdict, then what else there is to say.
        anomalous: the verdict; None where there is none.

    Attributes: `height`, of the band; `width`, that the picture must have at least.
    """

    def __init__(self, size: tuple[int, int], words: Sequence[str], anomalous: bool | None) -> None:
        letters = max(_LEAST_FONT, round(_FONT * math.sqrt(size[0] * size[1])))
        widest = max(words, key=len)
        while letters > _LEAST_FONT and self._wide(widest, letters) + 2 * letters > size[1]:
            letters -= 1
        self._letters, self._anomalous = letters, anomalous
        self._pad = max(3, letters // 2)
        self.width = max(size[1], int(max(self._wide(word, letters) for word in words)) + 2 * self._pad + 1)
        self._lines = self._broken(words)
        self.height = len(self._lines) * self._line + 2 * self._pad

    @property
    def _line(self) -> int:
        return round(1.35 * self._letters)

    @property
    def _gap(self) -> float:
        return 1.2 * self._letters

    @staticmethod
    def _wide(text: str, letters: int) -> float:
        return float(_font(letters).getlength(text))

    def _broken(self, words: Sequence[str]) -> list[list[str]]:
        lines, room = [list[str]()], 0.0
        for word in words:
            wide = self._wide(word, self._letters)
            if lines[-1] and wide > room:
                lines.append([])
            if not lines[-1]:
                room = self.width - 2.0 * self._pad
            lines[-1].append(word)
            room -= wide + self._gap
        return lines

    def draw(self, canvas: Image.Image) -> None:
        """Draw it on the lowest rows of a picture that has room for it."""
        draw = ImageDraw.Draw(canvas)
        top = canvas.height - self.height
        draw.rectangle((0, top, canvas.width, canvas.height), fill=_BAND)
        verdict = {True: _ANOMALOUS, False: _NORMAL, None: _QUIET}[self._anomalous]
        draw.rectangle((0, top, canvas.width, top + max(1, self._pad // 4)), fill=verdict)
        y, font = float(top + self._pad), _font(self._letters)
        for line in self._lines:
            x = float(self._pad)
            for word in line:
                is_verdict = word is self._lines[0][0]
                draw.text((x, y), word, font=font, fill=verdict if is_verdict else _TEXT)
                x += self._wide(word, self._letters) + self._gap
            y += self._line


def caption_words(
    score: float, threshold: float, anomalous: bool | None, regions: int | None
) -> tuple[str, ...]:
    """What a picture says: verdict, score, threshold, and the number of regions; None of what is not
    known.
    """
    verdict = {True: "▲ anomalous", False: "✓ normal", None: "no verdict"}[anomalous]
    words = [verdict, f"score {short(score)}"]
    words.append(f"threshold {short(threshold)}" if np.isfinite(threshold) else "no threshold")
    if regions is not None:
        words.append(f"{regions} region{'s' * (regions != 1)}")
    return tuple(words)


def short(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


@lru_cache(maxsize=64)
def _font(letters: int) -> ImageFont.FreeTypeFont:
    """Aileron, which comes with Pillow."""
    font = ImageFont.load_default(letters)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise MissingExtraError("heat maps with words need a Pillow that was built with FreeType")
    return font
