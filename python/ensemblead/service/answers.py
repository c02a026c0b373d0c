"""What a service answers: results in JSON's types, and their schema."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, Field

from ensemblead.common.errors import ImageTooLargeError
from ensemblead.service.batching import Model
from ensemblead.service.scoring import Scored

MapKind = Literal["none", "png", "float32"]


class MapAnswer(BaseModel):
    """An anomaly map: what the network saw, and where that lies in the photograph."""

    kind: MapKind
    height: int
    width: int
    box: list[float] = Field(description="top, left, bottom, right in pixels of the upright photograph")
    low: float = Field(description="the least value; of a PNG that of grey 0")
    high: float = Field(description="the largest value; of a PNG that of grey 255")
    data: str = Field(description="base64: a PNG of 8-bit grey, or float32, little endian, row by row")


class ImageError(BaseModel):
    """Why an image has no result."""

    status: int = Field(description="413 too many pixels, 422 not readable, 500 anything else")
    message: str


class ImageAnswer(BaseModel):
    """One image: a result, or an error."""

    name: str
    score: float | None = Field(None, description="the larger the more anomalous")
    threshold: float | None = Field(None, description="null where the model has none")
    is_anomalous: bool | None = Field(
        None, description="whether the score is above the threshold by more than rounding"
    )
    size: list[int] | None = Field(None, description="height and width of the upright photograph")
    map: MapAnswer | None = None
    error: ImageError | None = None


class Answer(BaseModel):
    """All images of a request, in its order."""

    images: list[ImageAnswer]


class Problem(BaseModel):
    """Why a request has no answer."""

    detail: str


def describe_result(name: str, outcome: tuple[Model, Scored | Exception], kind: MapKind) -> dict[str, Any]:
    """One image as `ImageAnswer` has it, without what is null."""
    model, result = outcome
    if isinstance(result, Exception):
        return {"name": name, "error": _describe_error(result)}
    threshold = float(model.detector.threshold_)
    found: dict[str, Any] = {
        "name": name,
        "score": result.score,
        "threshold": threshold if abs(threshold) != float("inf") else None,
        "is_anomalous": result.is_anomalous,
        "size": list(result.size),
    }
    if kind != "none":
        box = model.detector.geometry.crop_box(*result.size)
        found["map"] = {"kind": kind, "box": list(box), **_encode(result.anomaly_map, kind)}
    return found


def _describe_error(error: Exception) -> dict[str, Any]:
    if isinstance(error, ImageTooLargeError):
        # Of the message, what concerns whoever sends an image.
        return {"status": 413, "message": str(error).partition(";")[0]}
    status = 422 if isinstance(error, ValueError) else 500
    return {"status": status, "message": str(error) or type(error).__name__}


def _encode(values: npt.NDArray[np.float32], kind: MapKind) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    if kind == "png":
        # In float64, which the difference of two large float32 fits into.
        levels = (values.astype(np.float64) - low) * (255.0 / (high - low) if high > low else 0.0)
        file = io.BytesIO()
        Image.fromarray(levels.round().astype(np.uint8)).save(file, format="PNG")
        data = file.getvalue()
    else:
        data = np.ascontiguousarray(values, "<f4").tobytes()
    height, width = values.shape
    text = base64.b64encode(data).decode()
    return {"height": height, "width": width, "low": low, "high": high, "data": text}
