"""OpenVINO on a CPU: the network as a graph of its own, compiled for each size of batches.

Beside common/openvino.py and deploy/openvino.py the only file that imports openvino. docs/design/engines.md
has the figures and the reasons.
"""

from __future__ import annotations

import copy
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemblead.common.errors import EngineError
from ensemblead.common.extras import require
from ensemblead.common.openvino import openvino_core
from ensemblead.common.threads import end_waiting_threads
from ensemblead.common.warnings import warn
from ensemblead.networks.engines.by_shape import ByShape, first_line
from ensemblead.networks.engines.engine import EngineKind, Part, Quantized
from ensemblead.networks.engines.traced import Traced

# Precision -> the name that OpenVINO has for it, and the capability that a CPU needs for it.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "f32"}
_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
_PURPOSE = "engine='openvino'"
# Tracing changes Python's filters of warnings, which are the process's.
_tracing = threading.Lock()


class OpenVinoEngine(ByShape):
    """A network as far as some of its layers, by OpenVINO. In int8, which cuts off what a defect puts out, it
    is compared on an image that it was quantized with, scaled to the size of the batch.
    """

    title = "OpenVINO"
    # In int8, quantization allows 0.3 at the probe's own size.
    tolerances = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.1, "int8": 0.5}  # noqa: RUF012

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._core = openvino_core(_PURPOSE)
        if part.precision == "int8":
            _require_quantized(part)
        self._hint = self._supported_hint()

    def _key(self, images: Tensor) -> tuple[int, ...]:
        return (*images.shape, torch.get_num_threads())

    def _forget(self) -> None:
        if self._part.precision == "int8":
            raise EngineError(
                f"the weights of {self._part.name} have changed since it was made int8; quantize it again"
            )
        super()._forget()

    def _probe(self, images: Tensor) -> Tensor:
        part = self._part
        if part.quantized is None or part.precision != "int8":
            return images
        probe = functional.interpolate(part.quantized.probe.to(part.dtype), images.shape[2:], mode="bilinear")
        return probe.expand(len(images), -1, -1, -1).contiguous(memory_format=torch.channels_last)

    def _supported_hint(self) -> str:
        """OpenVINO's name of the precision; with a warning, float32 where the CPU has no such arithmetic."""
        precision = self._part.precision
        needed = _CAPABILITIES.get(precision)
        if needed is not None and needed not in cpu_capabilities():
            warn(
                f"this CPU has no {precision} that OpenVINO could use, and {self._part.name} is computed in "
                "float32, at its speed; use precision='float32' or 'int8'",
                RuntimeWarning,
            )
            return _HINTS["float32"]
        return _HINTS[precision]

    def _made(self, images: Tensor) -> Any:
        part = self._part
        if part.precision == "int8":
            model = of_shape(_require_quantized(part), part.layers, part.name, tuple(images.shape))
        else:
            model = converted(part, images)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._hint,
        }
        try:
            model = _channels_last(model)
            return self._core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise _failure(part, error) from error

    def _run(self, made: Any, images: Tensor, count: int) -> dict[str, Tensor]:
        values = images.float().permute(0, 2, 3, 1).contiguous().numpy()
        end_waiting_threads(torch.get_num_threads())
        made.infer({0: values}, share_inputs=True)
        found = {}
        for number, layer in enumerate(self._part.layers):
            # A copy, since the request writes into the same memory the next time; by one thread, for those of
            # OpenVINO spin a while.
            output = torch.from_numpy(made.get_output_tensor(number).data[:count].copy())
            if output.ndim == 4:
                output = output.permute(0, 3, 1, 2)
            found[layer] = output.to(self._part.dtype)
        return found


def cpu_capabilities() -> tuple[str, ...]:
    """What OpenVINO can compute in on this CPU, by its names, such as "FP32", "BF16", "INT8"."""
    return tuple(openvino_core(_PURPOSE).get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def converted(part: Part, images: Tensor) -> Any:
    """The network as an OpenVINO model in float32, for images of this shape; outputs as the part's layers.

    Raises EngineError for a network that torch cannot trace, or of which OpenVINO lacks an operation.
    """
    if part.dtype != torch.float32:
        # Values that were rounded are exact in float32.
        part = Part(
            copy.deepcopy(part.module).float(), part.layers, part.name, part.device, torch.float32, "float32"
        )
    images = images.float().contiguous(memory_format=torch.contiguous_format)
    try:
        model = from_torch(_InOrder(part), images)
        model.reshape(list(images.shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tracers and converters raise all kinds
        raise _failure(part, error) from error
    return model


def from_torch(module: nn.Module, *examples: Tensor) -> Any:
    """A module as an OpenVINO model in float32, of inputs and outputs of any shape.

    Raises whatever the tracer and the converter raise.
    """
    require("openvino", _PURPOSE)
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with quiet(), torch.no_grad():
        traced: Any = torch.jit.trace(module, examples, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        # The front end itself: openvino.convert_model would send statistics of use to its makers.
        # The decoder must live as long as what is read through it.
        decoder = TorchScriptPythonDecoder(traced, example_input=examples)
        front = FrontEndManager().load_by_framework("pytorch")
        model = front.convert(front.load(decoder))
    # What depends on weights alone, such as a transformer's embeddings of places, is computed ahead. There
    # OpenVINO 2026 takes the coefficient in the graph, which its front end gives for plain bicubic resizing.
    for node in model.get_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["mode"] == "bicubic_pillow":
            node.set_attribute("cube_coeff", -0.5)
    return model


def stored(model: Any) -> tuple[bytes, bytes]:
    """A model as the bytes of OpenVINO's two files: the graph, and the constants."""
    openvino = require("openvino", _PURPOSE)
    with tempfile.TemporaryDirectory(prefix="ensemblead-") as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _require_quantized(part: Part) -> Quantized:
    """The network in int8, of all the layers of a part."""
    if part.quantized is None:
        raise EngineError(
            f"precision='int8': {part.name} is not quantized; fit in float32, then call quantize(images)"
        )
    lacking = [layer for layer in part.layers if layer not in part.quantized.layers]
    if lacking:
        raise EngineError(
            f"precision='int8': {part.name} is quantized for {', '.join(part.quantized.layers)}, without "
            f"{', '.join(lacking)}; call quantize(images) again"
        )
    return part.quantized


def of_shape(quantized: Quantized, layers: tuple[str, ...], name: str, shape: tuple[int, ...]) -> Any:
    """A quantized network, by its name, that puts out some of its layers, for images of a shape; -1: any."""
    openvino = require("openvino", _PURPOSE)
    try:
        model = openvino_core(_PURPOSE).read_model(quantized.graph, quantized.constants)
    except RuntimeError as error:
        raise EngineError(
            f"the int8 network of {name} cannot be read ({first_line(error)}); call quantize again"
        ) from error
    try:
        results = [model.get_results()[quantized.layers.index(layer)] for layer in layers]
        model = openvino.Model(results, model.get_parameters(), name)
        model.reshape(list(shape))
    except (RuntimeError, IndexError) as error:
        size = " x ".join(map(str, shape))
        raise EngineError(
            f"the int8 network of {name} does not take images of {size} ({first_line(error)}); call "
            "quantize with images of that size, or use precision='float32'"
        ) from error
    return model


def _channels_last(model: Any) -> Any:
    """The model, whose images and feature maps lie channels last: so torch has them here, and OpenVINO's own
    kernels, so that nothing is laid out anew.
    """
    openvino = require("openvino", _PURPOSE)
    prepared = openvino.preprocess.PrePostProcessor(model)
    ends = [prepared.input()]
    ends += [
        prepared.output(number)
        for number, output in enumerate(model.outputs)
        if output.partial_shape.rank.get_length() == 4
    ]
    for end in ends:
        end.model().set_layout(openvino.Layout("NCHW"))
        end.tensor().set_layout(openvino.Layout("NHWC"))
    return prepared.build()


class _InOrder(nn.Module):
    """The layers' outputs as a tuple."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.traced, self._layers = Traced(part), part.layers

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        outputs = self.traced(images)
        return tuple(outputs[layer] for layer in self._layers)


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: the tracer warns of its own age, and of constants, which the comparison sees."""
    with _tracing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _failure(part: Part, error: Exception) -> EngineError:
    return EngineError(
        f"OpenVINO cannot run {part.name} as far as {', '.join(part.layers)} ({first_line(error)}); use "
        "engine='torch'"
    )


OPENVINO = EngineKind(
    name="openvino",
    build=lambda part, _seen: OpenVinoEngine(part),
    precisions=tuple(_HINTS),
    device_types=("cpu",),
    tolerance=lambda part: OpenVinoEngine.tolerances[part.precision],
    strict=True,
)
