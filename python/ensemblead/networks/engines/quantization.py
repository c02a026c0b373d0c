"""Networks in int8, by NNCF's quantization after training. This is the only file that imports nncf."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ensemblead.common.errors import EngineError
from ensemblead.common.extras import require
from ensemblead.networks.engines.by_shape import deviation
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import Part, Quantized, digest_of
from ensemblead.networks.engines.openvino import OpenVinoEngine, converted, stored

_SILENT = "NNCF_CI"  # while it is imported with this in the environment, it sends nothing to its makers
# So many images are compared with torch, and so far may features be from torch's, relative to their norm:
# convolutional networks have been seen at 0.02 to 0.11.
_COMPARED, _MOST_OFF = 8, 0.3
_quantizing = threading.Lock()


def quantized(part: Part, images: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Quantized:
    """A network in int8, with the ranges of values that it has for these images.

    Convolutions and products are in int8, with a scale per channel of the weights; the rest stays in float32,
    and so do concatenations.
    The biases are corrected for the mean error (NNCF's fast bias correction).

    Args:
        part: the network in float32, as far as its layers.
        images: normalised, `[1, 3, H, W]` each. Of several sizes, those of the most frequent one are used.
            The first of these is kept.
        weights: of the network as far as the layers; their digest is kept.

    Raises EngineError where it cannot be converted or quantized.
    """
    size = Counter(image.shape for image in images).most_common(1)[0][0]
    chosen = [image for image in images if image.shape == size]
    with _quantizing:
        nncf = _nncf()
        model = converted(part, chosen[0])
        logger = logging.getLogger("nncf")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with redirect_stdout(sys.stderr):  # its progress, with the time left
                data = nncf.Dataset([image.contiguous().numpy() for image in chosen])
                result = nncf.quantize(model, data, subset_size=len(chosen), **_options(nncf))
        except Exception as error:  # NNCF and OpenVINO raise all kinds
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            message = f"{part.name} cannot be quantized ({reason}); use precision='float32'"
            raise EngineError(message) from error
        finally:
            logger.setLevel(level)
    probe = chosen[0].half().contiguous()
    found = Quantized(part.layers, digest_of(weights), len(chosen), *stored(result), probe)
    _check(part, found, torch.cat(chosen[:_COMPARED]))
    return found


def _options(nncf: Any) -> dict[str, Any]:
    """Ranges hold all values of all images: NNCF's default, the mean of the images' ranges, cuts off much of
    what half of the normal images hold. They need not lie evenly about zero. And maps that are put together
    keep theirs: with a common one, DenseNet's small values would be lost.
    """
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    ranges = RangeEstimatorParametersSet.MINMAX
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "ignored_scope": nncf.IgnoredScope(types=["Concat"], validate=False),
        "advanced_parameters": nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
    }


def _check(part: Part, found: Quantized, images: Tensor) -> None:
    """Raise EngineError for a network that is far off on the images that it was quantized with."""
    outputs = OpenVinoEngine(replace(part, precision="int8", quantized=found)).run(images)
    for layer, expected in EagerEngine(part).run(images).items():
        error = deviation(outputs[layer], expected, "int8")
        if not error <= _MOST_OFF:
            raise EngineError(
                f"{part.name} loses too much in int8: layer {layer!r} is off by {error:.2g} of its norm on "
                f"the images given, where {_MOST_OFF:g} is allowed; use precision='bfloat16' or 'float32'"
            )


def _nncf() -> Any:
    before = os.environ.get(_SILENT)
    os.environ[_SILENT] = "1"
    try:
        return require("nncf", "quantize")
    finally:
        if before is None:
            del os.environ[_SILENT]
        else:
            os.environ[_SILENT] = before
