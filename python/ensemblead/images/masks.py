"""Ground-truth masks: which pixels of an image are defective."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.files import StrPath
from ensemblead.images.decode import is_transparent, open_file, pixel_limit, upright

Mask = npt.NDArray[np.bool_]

# Notes on suspicious masks, with a plural verb, so that masks of one note can be counted.
LOSSY = "have been compressed with loss (JPEG, WebP) and are binarised at half of the range: save them as PNG"
GREY = "have more than 16 grey levels: every pixel that is not black counts as defective"
SPECKS = "have more than 20 isolated pixels, each of which counts as a region of its own: are they noise?"
INVERTED = "mark more than nine tenths of the image as defective: are black and white exchanged?"

_FEW_LEVELS = 16
_FEW_SPECKS = 20
_HALF = 128
# Formats that compress with loss; WebP and JPEG 2000 may be lossless, which their values show.
_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP", "JPEG2000", "HEIF", "AVIF"})


def read_mask(path: StrPath) -> Mask:
    """Decode a ground-truth mask: bool `[H, W]`, true wherever it is not black.

    Colours are converted to RGB, transparent pixels composited over black. A palette is looked up; if its
    colours and its indices disagree about what is background, the mask is refused, unless the colours are
    greys. Masks that were compressed with loss are binarised at half of the range, because their ripples are
    not black. Of several frames or pages the first is read.

    Errors as `read_image`; UnreadableImageError also for masks that are ambiguous.
    """
    return examine_mask(path)[0]


def examine_mask(path: StrPath) -> tuple[Mask, tuple[str, ...]]:
    """`read_mask(path)`, and notes on a suspicious mask (`LOSSY`, `GREY`, `SPECKS`,
    `INVERTED`).
    """
    with open_file(path, "mask", max_pixels=pixel_limit(None)) as image:
        lossy = image.format in _LOSSY_FORMATS
        decoded = upright(image)
        if decoded.mode == "P":
            mask, notes = _of_palette(decoded, path), list[str]()
        else:
            mask, notes = _of_levels(_levels(decoded, path), lossy, path)
    if _isolated(mask) > _FEW_SPECKS:
        notes.append(SPECKS)
    if np.count_nonzero(mask) > 0.9 * mask.size:
        notes.append(INVERTED)
    return mask, tuple(notes)


def _levels(image: Image.Image, path: StrPath) -> npt.NDArray[Any]:
    """`[H, W]`, 0 where the mask shows black; of colours the largest channel."""
    transparent = is_transparent(image)
    if image.mode in ("1", "L", "LAB") and not transparent:
        grey: npt.NDArray[np.uint8] = np.asarray(
            image.getchannel("L") if image.mode == "LAB" else image.convert("L")
        )
        return grey
    if image.mode == "F" or image.mode.startswith("I"):
        values: npt.NDArray[Any] = np.asarray(image)
        if not np.isfinite(values).all():
            raise _ambiguous(path, "it has values that are not finite")
        return values
    pixels: npt.NDArray[np.uint8] = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    colour: npt.NDArray[np.uint8] = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    if not transparent:
        return colour
    alpha = pixels[..., 3]
    shown = (colour.astype(np.uint16) * alpha // 255).astype(np.uint8)
    shown[(shown == 0) & (alpha > 0) & (colour > 0)] = 1  # faint paint is not black
    if not shown.any() and (alpha.min() != alpha.max() or colour.any()):
        raise _ambiguous(path, "over black it shows nothing, although its transparency or its colours vary")
    return shown


def _of_levels(levels: npt.NDArray[Any], lossy: bool, path: StrPath) -> tuple[Mask, list[str]]:
    if levels.dtype != np.uint8:
        return levels != 0, []
    counts = np.array(Image.fromarray(levels).histogram())
    known = int(np.count_nonzero(counts))
    if (lossy and counts[1:].any()) or (known > _FEW_LEVELS and _ripples(counts)):
        if not counts[_HALF:].any() or counts[64:192].sum() > counts[192:].sum():
            raise _ambiguous(
                path, "it was compressed with loss, and most of its values are not near 0 or 255"
            )
        return levels >= _HALF, [LOSSY] if known > 2 else []
    return levels > 0, [GREY] if known > _FEW_LEVELS else []


def _ripples(counts: npt.NDArray[np.int64]) -> bool:
    """Whether values gather around 0 and 255, as they do after compression with loss: nobody draws so."""
    bright = int(counts[224:].sum())
    return bright > 0 and bool(counts[1:32].any()) and int(counts[32:224].sum()) <= 0.1 * bright


def _of_palette(image: Image.Image, path: StrPath) -> Mask:
    indices: npt.NDArray[np.uint8] = np.asarray(image)
    by_index: Mask = indices != 0
    used = np.array(image.histogram()[:256]) > 0
    colours, alpha = np.zeros((256, 3), np.uint8), np.full(256, 255, np.uint8)
    table = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)[:256]
    colours[: len(table)] = table
    transparency = image.info.get("transparency")
    if isinstance(transparency, int):
        alpha[transparency] = 0
    elif transparency is not None:
        alpha[: len(transparency)] = np.frombuffer(transparency, np.uint8)[:256]
    visible = colours.any(axis=1) & (alpha > 0)
    other = np.arange(256) > 0
    if np.array_equal(visible[used], other[used]):
        return by_index
    if alpha[used].min() == 255:
        shown = colours[used]
        if not shown.any():
            return by_index  # labels without any colours
        if (shown == shown[:, :1]).all() and not visible[used].all():
            by_colour: Mask = visible[indices]
            return by_colour  # a grey picture that was saved with a palette
    raise _ambiguous(path, "the colours of its palette and its indices disagree about what is background")


def _isolated(mask: Mask) -> int:
    """Pixels without a neighbour above, below, left or right."""
    alone = mask.copy()
    alone[1:] &= ~mask[:-1]
    alone[:-1] &= ~mask[1:]
    alone[:, 1:] &= ~mask[:, :-1]
    alone[:, :-1] &= ~mask[:, 1:]
    return int(np.count_nonzero(alone))


def _ambiguous(path: StrPath, why: str) -> UnreadableImageError:
    return UnreadableImageError(f"mask {path} is ambiguous: {why}; save it as grey PNG, 0 and 255")
