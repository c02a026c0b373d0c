"""A fitted detector written as one graph, which is proven on real images before it takes its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ensemblead.common.errors import EngineError, NotExportableError
from ensemblead.common.extras import require
from ensemblead.common.files import StrPath
from ensemblead.common.validation import one_of, positive_number, size_or_pair, whole_number
from ensemblead.deploy import openvino
from ensemblead.deploy.contract import (
    FORMATS,
    INPUTS,
    OUTPUTS,
    PRECISIONS,
    Contract,
    read_export,
    write_contract,
)
from ensemblead.deploy.graph import DetectorGraph, Pass
from ensemblead.deploy.runtime import ExportedDetector
from ensemblead.deploy.verify import checked_images, checksum_of_model, verify
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.exporting import ExportReport
from ensemblead.detectors.parts import Progress
from ensemblead.detectors.text import constructor_text
from ensemblead.images import ImageSource, chosen_images
from ensemblead.networks.engines.openvino import from_torch, of_shape, quiet
from ensemblead.networks.modes import default_modes
from ensemblead.store import write_folder

# The first that has all the operators, and is read by all runtimes of the last years.
OPSET = 17


def export(
    detector: Detector,
    path: StrPath,
    *,
    format: str,
    precision: str,
    input: str,
    image_size: int | tuple[int, int] | None,
    images: Any,
    tolerance: float | None,
    allow_flag_changes: int,
    progress: Progress | None,
) -> ExportReport:
    """See `Detector.export`; `images` is its `verify`."""
    one_of("format", format, FORMATS)
    one_of("precision", precision, PRECISIONS)
    one_of("input", input, INPUTS)
    if format == "onnx" and precision != "float32":
        raise ValueError(f"precision={precision!r} goes with format='openvino'; ONNX graphs are in float32")
    if tolerance is not None:
        tolerance = positive_number("tolerance", tolerance)
    allow_flag_changes = whole_number("allow_flag_changes", allow_flag_changes, 0)
    for module in ("openvino",) if format == "openvino" else ("onnx", "onnxruntime"):
        require(module, f"format={format!r}")
    target = Path(os.path.abspath(path))
    if os.path.lexists(target):
        raise ValueError(f"path {target} exists; choose another, or remove it")
    source = checked_images(images, detector)
    _check_precision(detector, precision)
    size = _input_size(detector, source, input, image_size)
    detector.predict(chosen_images(source, 1, seed=0))  # which says what is wrong with images of that size
    graph = DetectorGraph(detector, size, resized=input == "resized").eval()
    inside = {one.network.key for one in detector._networks()} - {one.network.key for one in graph.passes}
    if precision == "int8" and inside:
        raise NotExportableError(
            "precision='int8': a method that runs its network itself, as EfficientAD does, has it in float32 "
            "in its graph; load the detector with engine='torch', precision='float32' to export it"
        )
    written: list[tuple[ExportReport, os.stat_result]] = []

    def write(folder: Path) -> None:
        with default_modes():
            _write_graph(graph, folder, format, precision, size)
        contract = _contract(detector, format, precision, input, size)
        write_contract(folder, contract)
        exported = ExportedDetector(*read_export(folder), torch.get_num_threads())
        report = verify(
            exported,
            detector,
            source,
            tolerance=tolerance,
            allow_flag_changes=allow_flag_changes,
            progress=progress,
        )
        write_contract(folder, replace(contract, verification=report.summary()))
        written.append((report, folder.stat()))

    write_folder(target, write, keep=True)
    report, own = written[0]
    if not os.path.samestat(own, target.stat()):
        raise ValueError(
            f"path {target} exists: it was made while this export was written; choose another, or remove it"
        )
    return report


def _check_precision(detector: Detector, precision: str) -> None:
    """Raise ValueError where the detector's networks compute in what the graph's would not."""
    known = {one.network.extractor.precision for one in detector._networks()}
    if precision == "int8" and known != {"int8"}:
        seen = f"compute in {', '.join(sorted(known))}" if known else "are trained"
        raise ValueError(
            f"precision='int8' needs a detector whose frozen networks are quantized, but they {seen}; call "
            "quantize(images) first"
        )
    if precision != "int8" and "int8" in known:
        raise ValueError(
            f"precision={precision!r}: the detector's networks are quantized; export it with "
            "precision='int8', or load it with engine='torch', precision='float32'"
        )
    if precision == "float32" and known - {"float32"}:
        raise ValueError(
            f"precision='float32': the detector's networks compute in {', '.join(sorted(known))}, with other "
            "scores; load it with precision='float32', or export it with precision='bfloat16'"
        )


def _input_size(
    detector: Detector, source: ImageSource, input: str, image_size: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Height and width of the graph's input. Raises ValueError where the images do not have it."""
    geometry = detector.geometry
    if image_size is None:
        native = source.size(0)
    else:
        given = size_or_pair("image_size", image_size, 1)
        native = given if isinstance(given, tuple) else (given, given)

    def shown(size: tuple[int, int]) -> tuple[int, int]:
        return geometry.output_size(*size) if input == "resized" else size

    for number in range(len(source)):
        own = source.size(number)
        if shown(own) != shown(native):
            hint = "" if input == "resized" else "; input='resized' resizes them first, as the detector does"
            raise ValueError(
                f"verify: a graph takes one size, which is {native[0]} x {native[1]} pixels, but "
                f"{source.describe(number)} has {own[0]} x {own[1]}{hint}"
            )
    return shown(native)


def _write_graph(
    graph: DetectorGraph, folder: Path, format: str, precision: str, size: tuple[int, int]
) -> None:
    # Two images, so that nothing is taken for a constant that is 1 by chance.
    seeded = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, *size, 3), generator=seeded, dtype=torch.uint8)
    try:
        if format == "onnx":
            _write_onnx(graph, folder, noise)
        else:
            openvino.write(_openvino_model(graph, noise, precision), folder, precision)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # tracers and converters raise all kinds
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EngineError(f"this detector cannot be written as a graph of {format}: {line}") from error


def _write_onnx(graph: DetectorGraph, folder: Path, images: Tensor) -> None:
    names = ("image", *OUTPUTS)
    # Where it fails, the exporter prints the whole graph, and by default to stdout.
    torch._C._jit_set_onnx_log_output_stream("stderr")
    with quiet(), torch.no_grad():
        torch.onnx.export(
            graph,
            (images,),
            str(folder / FORMATS["onnx"][0]),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "batch"} for name in names},
        )


def _openvino_model(graph: DetectorGraph, images: Tensor, precision: str) -> Any:
    with torch.no_grad():
        values = graph.before(images)
        count = len(values) - len(graph.passes)
        outputs = list(values[:count])
        for network, own in zip(graph.networks, values[count:], strict=True):
            outputs += network(own)
    networks = [
        _quantized(one) if precision == "int8" else from_torch(network, own)
        for one, network, own in zip(graph.passes, graph.networks, values[count:], strict=True)
    ]
    before, after = from_torch(graph.before, images), from_torch(graph.after, *outputs)
    return openvino.joined(before, networks, after, (images.shape[1], images.shape[2]), OUTPUTS)


def _quantized(one: Pass) -> Any:
    """A network in int8 as a model for batches of any size."""
    known = one.network.quantized
    assert known is not None  # `_check_precision` has seen it
    return of_shape(known, one.layers, one.network.extractor.name, (-1, 3, *one.frame.size))


def _contract(detector: Detector, format: str, precision: str, input: str, size: tuple[int, int]) -> Contract:
    calibration = detector.calibration_
    return Contract(
        format=format,
        precision=precision,
        input=input,
        size=size,
        geometry=detector.geometry,
        bits=detector.bits_,
        threshold=calibration.threshold,
        rounding=calibration.rounding,
        false_alarm_rate=calibration.false_alarm_rate,
        is_guaranteed=calibration.is_guaranteed,
        source={
            "detector": constructor_text(detector),
            "checksum": checksum_of_model(detector),
            "threshold": calibration.threshold_origin,
        },
        versions=_versions(format),
        verification={},
        pixel_threshold=calibration.pixel_threshold() if calibration.knows_regions else None,
    )


def _versions(format: str) -> Mapping[str, Any]:
    runtime = "openvino" if format == "openvino" else "onnxruntime"
    version = require(runtime, f"format={format!r}").__version__
    opset = {"opset": OPSET} if format == "onnx" else {}
    return {"torch": torch.__version__, runtime: version, **opset}
