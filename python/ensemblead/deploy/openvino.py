"""Exported graphs in OpenVINO: put together, written, and run. Nothing here needs torch.

Beside networks/engines/openvino.py and common/openvino.py the only file that imports openvino.
"""

from __future__ import annotations

import queue
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.extras import require
from ensemblead.common.openvino import openvino_core
from ensemblead.common.warnings import warn

GRAPH, CONSTANTS = "model.xml", "model.bin"
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
_PURPOSE = "an export for OpenVINO"
# What may be rounded to bfloat16 beside the networks. Resizing and distances keep all 24 bits. A product that
# OpenVINO fuses with the sum behind it loses its mark: that of the memory bank, which only chooses rows.
_ROUNDED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
_BEFORE, _AFTER = "before", "after"


def joined(
    before: Any, networks: Sequence[Any], after: Any, size: tuple[int, int], names: Sequence[str]
) -> Any:
    """One model of three stages, for images of a size: what `before` puts out are the inputs of `after` and
    then, in step, those of the networks, whose outputs are the remaining inputs of `after`.
    """
    openvino = require("openvino", _PURPOSE)
    stages = {_BEFORE: before, **{f"network{i}": one for i, one in enumerate(networks)}, _AFTER: after}
    for stage, model in stages.items():
        for node in model.get_ops():
            node.set_friendly_name(f"{stage}/{node.get_friendly_name()}")
    outputs = [result.input_value(0) for result in before.get_results()]
    count = len(outputs) - len(networks)
    sources = outputs[:count]
    for network, own in zip(networks, outputs[count:], strict=True):
        _connect(network, [own])
        sources += [result.input_value(0) for result in network.get_results()]
    _connect(after, sources)
    (image,) = before.get_parameters()
    image.set_friendly_name("image")
    image.output(0).get_tensor().set_names({"image"})
    for name, result in zip(names, after.get_results(), strict=True):
        result.set_friendly_name(name)
        result.output(0).get_tensor().set_names({name})
    whole = openvino.Model(after.get_results(), [image], "ensemblead")
    whole.reshape([-1, *size, 3])
    return whole


def _connect(model: Any, sources: Sequence[Any]) -> None:
    """Read these outputs in place of a model's parameters."""
    for parameter, source in zip(model.get_parameters(), sources, strict=True):
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source)


def write(model: Any, folder: Path, precision: str) -> None:
    """Write the two files of a model."""
    openvino = require("openvino", _PURPOSE)
    openvino.save_model(model, folder / GRAPH, compress_to_fp16=False)
    if precision == "bfloat16":
        _keep_precise(folder / GRAPH)


def _keep_precise(path: Path) -> None:
    """Mark what stays in float32 though networks are rounded to bfloat16, as OpenVINO reads it."""
    tree = ElementTree.parse(path)
    for layer in tree.getroot().iter("layer"):
        stage = str(layer.get("name")).partition("/")[0]
        if stage in (_BEFORE, _AFTER) and layer.get("type") not in ("Const", "Parameter", *_ROUNDED):
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(0, info)
            ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    tree.write(path, encoding="utf-8", xml_declaration=True)


def precision_hint(core: Any, precision: str) -> str:
    """OpenVINO's name of a precision; with a warning, float32 where the CPU has no such arithmetic."""
    hint = _HINTS[precision]
    if hint != "bf16" or "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return hint
    warn(
        "this CPU has no bfloat16 that OpenVINO could use: the graph is computed in float32, at its speed",
        RuntimeWarning,
    )
    return "f32"


class Session:
    """A compiled graph for images one by one, so many at a time; threads may share it, and more of them wait
    for each other.

    Args:
        graph, constants: the bytes of the two files.
        precision: what networks compute in.
        threads: None leaves their number to OpenVINO.
        at_once: images that are computed at a time, each by its share of the threads.
    """

    def __init__(
        self, graph: bytes, constants: bytes, precision: str, threads: int | None, at_once: int = 1
    ) -> None:
        core = openvino_core(_PURPOSE)
        model = core.read_model(graph, constants)
        shape = model.input().get_partial_shape()
        shape[0] = 1
        model.reshape(shape)
        hint = precision_hint(core, precision)
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
        settings |= {"PERFORMANCE_HINT": "LATENCY"} if at_once == 1 else {"NUM_STREAMS": str(at_once)}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(model, "CPU", settings)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(at_once):
            self._free.put(compiled.create_infer_request())

    def run(self, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        """The outputs for an image uint8 `[1, H, W, 3]`."""
        request = self._free.get()  # it holds its outputs until it is used again
        try:
            request.infer([image], share_inputs=True)
            return [request.get_output_tensor(number).data.copy() for number in range(3)]
        finally:
            self._free.put(request)
