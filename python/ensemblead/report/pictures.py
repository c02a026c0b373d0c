"""Images of pages: photograph, heat map and mask as data URLs."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from ensemblead.common.objects import Frame
from ensemblead.evaluation.gallery import Picture, Pictures
from ensemblead.evaluation.results import Details
from ensemblead.images import read_image, read_mask

# The longer side of a photograph and of a mask on the page.
PHOTO_SIDE = 448
MASK_SIDE = 320
_QUALITY = 76
_OPACITY = 0.8  # of the last colour, as in the overlays of `predict`
# Every sixteenth of the upper nine tenths of matplotlib's "inferno", which the overlays of `predict` have:
# perceptually uniform and readable by the colour-blind. The page interpolates.
COLORS = (
    *("#160b39", "#2f0a5b", "#470b6a", "#5d126e", "#751b6e", "#8c2369", "#a32c61", "#b93556", "#cc4248"),
    *("#df5337", "#ec6726", "#f68013", "#fb9906", "#fcb418", "#f7d13d", "#f1ec6d", "#fcffa4"),
)


def common_folder(paths: Iterable[str]) -> str:
    """The folder that all files lie in or below."""
    return os.path.commonpath([os.path.abspath(os.path.dirname(path)) for path in paths])


def describe_item(details: Details, picture: Picture, base: str, missing: list[str]) -> dict[str, Any]:
    """One image as the page's script reads it; named as it lies below `base`.

    Files that cannot be read are appended to `missing`.
    """
    assert details.pictures is not None
    image = details.images[picture.index]
    item: dict[str, Any] = {
        "name": Path(os.path.relpath(image.path, base)).as_posix(),
        "kind": image.defect_type,
        "label": image.label,
        "score": image.score,
        "verdict": image.is_anomalous,
        **describe_photo(image.path, picture, details.pictures.frame, details.pictures.bits, missing),
    }
    if "photo" not in item:
        return item
    if image.mask_path is not None:
        try:
            item["mask"] = _mask(read_mask(image.mask_path))
        except (OSError, ValueError, MemoryError):
            missing.append(image.mask_path)
    return item


def describe_photo(
    path: str, picture: Picture, frame: Frame | None, bits: int | None, missing: list[str]
) -> dict[str, Any]:
    """A heat map and its photograph as the page's script reads them; without the photograph if it cannot be
    read, which `missing` then names.
    """
    found: dict[str, Any] = {
        "heat": {"src": _url(picture.heat, "png"), "low": picture.low, "high": picture.high}
    }
    try:
        photo = read_image(path, bits=bits)
    except (OSError, ValueError, MemoryError):
        missing.append(path)
        return found
    height, width = photo.shape[:2]
    region = getattr(frame, "region", None)
    shown = photo if region is None else region.shaded(photo)
    found.update(width=width, height=height, photo=photo_url(shown))
    if frame is not None:
        top, left, bottom, right = frame.crop_box(height, width)
        found["seen"] = [top / height, left / width, bottom / height, right / width]
    return found


def photo_url(pixels: NDArray[np.uint8], side: int = PHOTO_SIDE) -> str:
    """A photograph, its longer side at most `side`, as a data URL."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if features.check("webp"):  # half as large as JPEG, but not in every build of Pillow
        image.save(file, format="WEBP", quality=_QUALITY, method=4)
        return _url(file.getvalue(), "webp")
    image.save(file, format="JPEG", quality=_QUALITY, optimize=True)
    return _url(file.getvalue(), "jpeg")


def heat_url(photo: NDArray[np.uint8], picture: Picture, shown: Pictures, side: int = PHOTO_SIDE) -> str:
    """A photograph with a kept map over it, its longer side at most `side`, as a data URL; where the network
    saw nothing, the photograph alone, and darker outside of a region. The stronger the value, the less
    transparent.
    """
    region = getattr(shown.frame, "region", None)
    image = Image.fromarray(photo if region is None else region.shaded(photo))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    height, width = photo.shape[:2]
    box = (0.0, 0.0, 1.0, 1.0)
    if shown.frame is not None:
        top, left, bottom, right = shown.frame.crop_box(height, width)
        box = (top / height, left / width, bottom / height, right / width)
    rows, columns = (
        slice(max(0, round(box[a] * size)), max(1, round(box[a + 2] * size)))
        for a, size in ((0, image.height), (1, image.width))
    )
    pixels = np.asarray(image).astype(np.float32)
    inside = pixels[rows, columns]
    grey = Image.open(io.BytesIO(picture.heat)).resize(inside.shape[1::-1], Image.Resampling.BILINEAR)
    values = picture.low + np.asarray(grey, np.float32) / 255.0 * (picture.high - picture.low)
    low, high = shown.scale
    level = np.clip((values - low) / (high - low), 0.0, 1.0)[..., None]
    stops = np.array([[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in COLORS], np.float32)
    places = np.linspace(0.0, 1.0, len(stops))
    colors = np.stack([np.interp(level[..., 0], places, stops[:, c]) for c in range(3)], axis=2)
    opacity = _OPACITY * level
    inside[:] = inside * (1.0 - opacity) + colors * opacity
    return photo_url(pixels.round().astype(np.uint8), side)


def _mask(mask: NDArray[np.bool_]) -> str:
    """A mask of one bit per pixel; reduced, it keeps every pixel that is touched: no scratch vanishes."""
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if max(image.size) > MASK_SIDE:
        shrink = MASK_SIDE / max(image.size)
        size = max(1, round(image.width * shrink)), max(1, round(image.height * shrink))
        reduced = np.asarray(image.convert("F").resize(size, Image.Resampling.BOX)) > 0
        image = Image.fromarray(reduced.astype(np.uint8) * np.uint8(255))
    file = io.BytesIO()
    image.convert("1").save(file, format="PNG", optimize=True)
    return _url(file.getvalue(), "png")


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
