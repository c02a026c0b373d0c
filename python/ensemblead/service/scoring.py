"""Images of strangers to a detector: each has a result of its own, or an error of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import NonFiniteFeaturesError
from ensemblead.common.files import StrPath
from ensemblead.detectors import Detector
from ensemblead.detectors.running import predict
from ensemblead.images import EncodedImage, open_images

# Errors that an image can be the cause of. Others are of the detector or its machine.
OF_IMAGES = (ValueError, MemoryError, ArithmeticError)


@dataclass(frozen=True)
class Scored:
    """One image's result, as `Detector.predict` has it: `anomaly_map` is float32 `[h, w]` in the frame of the
    network, `size` the photograph's (H, W).
    """

    score: float
    is_anomalous: bool
    anomaly_map: npt.NDArray[np.float32]
    size: tuple[int, int]


def check_servable(detector: Detector) -> Detector:
    """The detector, with its networks loaded. Raises where it cannot score images one by one."""
    detector._require_fitted("predict")
    detector._require_single_image_scores()
    return detector.load_networks()


def score_each(
    detector: Detector,
    images: Sequence[StrPath | EncodedImage],
    *,
    max_pixels: int | None = None,
) -> list[Scored | Exception]:
    """The result of every image, in order, or the error that it raised.

    The images are predicted together, in batches of the detector's, without those that cannot be read. Where
    that fails (images of several sizes for a detector that keeps them, one that its crop does not fit into),
    each is predicted alone, so that none fails for another's sake.
    """
    try:
        return _together(detector, images, max_pixels)
    except Exception as error:
        if len(images) == 1:
            return [error]
        return [one for image in images for one in score_each(detector, [image], max_pixels=max_pixels)]


def _together(detector: Detector, images: Sequence[Any], max_pixels: int | None) -> list[Scored | Exception]:
    failed: dict[int, Exception] = {}
    source = open_images(list(images), max_pixels=max_pixels)
    scored: list[Scored | Exception] = []
    for batch in predict(detector, source, failed.__setitem__, None, False):
        assert batch.sizes is not None
        for values in zip(
            batch.anomaly_score.tolist(),
            batch.is_anomalous.tolist(),
            batch.anomaly_map,
            batch.sizes,
            strict=True,
        ):
            scored.append(_checked(Scored(*values)))
    rest = iter(scored)
    return [failed[index] if index in failed else next(rest) for index in range(len(source))]


def _checked(result: Scored) -> Scored | Exception:
    if math.isfinite(result.score) and np.isfinite(result.anomaly_map).all():
        return result
    return NonFiniteFeaturesError(
        "the score or the map of this image is not finite, so that it has no verdict"
    )
