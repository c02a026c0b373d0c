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

from ensemblead.evaluation.gallery import Picture
from ensemblead.evaluation.results import Details
from ensemblead.images import read_image, read_mask

# The longer side of a photograph and of a mask on the page.
PHOTO_SIDE = 448
MASK_SIDE = 320
_QUALITY = 76
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
        "heat": {"src": _url(picture.heat, "png"), "low": picture.low, "high": picture.high},
    }
    try:
        photo = read_image(image.path, bits=details.pictures.bits)
    except (OSError, ValueError, MemoryError):
        missing.append(image.path)
        return item
    height, width = photo.shape[:2]
    region = getattr(details.pictures.frame, "region", None)
    shown = photo if region is None else region.shaded(photo)
    item.update(width=width, height=height, photo=photo_url(shown))
    if details.pictures.frame is not None:
        top, left, bottom, right = details.pictures.frame.crop_box(height, width)
        item["seen"] = [top / height, left / width, bottom / height, right / width]
    if image.mask_path is not None:
        try:
            item["mask"] = _mask(read_mask(image.mask_path))
        except (OSError, ValueError, MemoryError):
            missing.append(image.mask_path)
    return item


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
