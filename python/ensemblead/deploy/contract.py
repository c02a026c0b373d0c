"""`export.json`: what an exported folder holds, how its graph is called, and how it was verified."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblead.common.errors import DamagedModelError, NewerFormatError
from ensemblead.common.manifests import (
    check_place,
    checksum_of,
    file_entry,
    require_checksum,
    require_entries,
    verified_bytes,
)
from ensemblead.common.validation import finite_number, one_of, pair
from ensemblead.deploy import onnx, openvino
from ensemblead.images import Geometry, Region
from ensemblead.images.depth import checked_bits
from ensemblead.kernels.build import __version__

CONTRACT = "export.json"
FORMAT_VERSION = 2
# What reads this one reads exports without a region.
_WITHOUT_REGION = 1
# What a graph puts out, in this order.
OUTPUTS = ("anomaly_score", "anomaly_map", "is_anomalous")
FORMATS: dict[str, tuple[str, ...]] = {
    "openvino": (openvino.GRAPH, openvino.CONSTANTS),
    "onnx": (onnx.GRAPH,),
}
PRECISIONS = ("float32", "bfloat16", "int8")
INPUTS = ("image", "resized")


@dataclass(frozen=True)
class Contract:
    """How an exported graph is called, and what it stands for.

    Attributes:
        format, precision: "openvino" or "onnx"; what networks compute in.
        input: "image", as decoded, or "resized" and cropped by `geometry` before.
        size: height and width of the input.
        geometry: of the detector.
        bits: used bits of 16-bit files, see `open_images`.
        threshold, rounding: a score is anomalous that exceeds the first by more than the second. Without a
            threshold it is infinity, in the file null.
        false_alarm_rate, is_guaranteed: of normal images, and whether that is a guarantee. NaN where it is
            not known, in the file null.
        pixel_threshold: map values above it belong to regions; None where it is not known, in the file null.
        source: `detector`, the detector in a line; `checksum`, that of its saved model; `threshold`, where it
            comes from: "user" where one was set, else as `Calibration.origin`.
        versions: of what wrote it.
        verification: see `ExportReport.summary`.
    """

    format: str
    precision: str
    input: str
    size: tuple[int, int]
    geometry: Geometry
    bits: int | None
    threshold: float
    rounding: float
    false_alarm_rate: float
    is_guaranteed: bool
    source: Mapping[str, Any]
    versions: Mapping[str, Any]
    verification: Mapping[str, Any]
    pixel_threshold: float | None = None

    def document(self) -> dict[str, Any]:
        """The contract in JSON's types."""
        (height, width), region = self.size, self.geometry.region
        return {
            "format": _WITHOUT_REGION if region is None else FORMAT_VERSION,
            "written_by": f"ensemblead {__version__}",
            "graph": {"format": self.format, "precision": self.precision},
            "input": {
                "name": "image",
                "is": self.input,
                "dtype": "uint8",
                "layout": "NHWC",
                "shape": ["batch", height, width, 3],
                "colours": "RGB",
            },
            "geometry": {
                "resize": self.geometry.resize,
                "crop": self.geometry.crop,
                **({} if region is None else {"region": region.plain()}),
            },
            "bits": self.bits,
            "outputs": {
                "anomaly_score": {"dtype": "float32", "shape": ["batch"]},
                "anomaly_map": {"dtype": "float32", "shape": ["batch", "height", "width"]},
                "is_anomalous": {"dtype": "bool", "shape": ["batch"]},
            },
            "threshold": _known(self.threshold),
            "rounding": self.rounding,
            "false_alarm_rate": _known(self.false_alarm_rate),
            "is_guaranteed": self.is_guaranteed,
            "pixel_threshold": self.pixel_threshold,
            "source": dict(self.source),
            "versions": dict(self.versions),
            "verification": dict(self.verification),
        }


def write_contract(folder: Path, contract: Contract) -> None:
    """Write `export.json` beside the graph's files, with their checksums and its own."""
    entries = {name: file_entry((folder / name).read_bytes()) for name in FORMATS[contract.format]}
    document = {**contract.document(), "files": entries}
    document["checksum"] = checksum_of(document)
    (folder / CONTRACT).write_text(json.dumps(document, indent=1, allow_nan=False))


def read_export(folder: Path) -> tuple[Contract, list[bytes]]:
    """The contract of an exported folder, and the verified bytes of its graph's files.

    Raises FileNotFoundError for nothing there, DamagedModelError for a folder that is no export, is
    incomplete, mixed from two exports or altered, NewerFormatError for one of a later version.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no exported detector at {folder}")
    document, path = _document(folder), folder / CONTRACT
    try:
        contract = _contract(document)
        entries = document["files"]
        names = FORMATS[contract.format]
        if entries.keys() != set(names):
            raise ValueError(f"it states the files {', '.join(entries)}, of which {', '.join(names)} is made")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedModelError(f"{path} is damaged: {error}") from error
    require_entries(document, path)
    for name in names:
        check_place(folder, name, entries[name])
    return contract, [verified_bytes(folder / name, entries[name]) for name in names]


def _document(folder: Path) -> dict[str, Any]:
    path = folder / CONTRACT
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedModelError(f"{folder} is no exported detector: it has no {CONTRACT}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedModelError(f"{path} is damaged: {error}") from error
    if type(document) is not dict or type(document.get("format")) is not int:
        raise DamagedModelError(f"{path} is damaged: it states no format")
    if document["format"] > FORMAT_VERSION:
        raise NewerFormatError(
            f"{folder} has format {document['format']}, written by "
            f"{document.get('written_by', 'a later version')}; this version, {__version__}, reads up to "
            f"{FORMAT_VERSION}: upgrade ensemblead"
        )
    require_checksum(document, path)
    return document


def _contract(document: Mapping[str, Any]) -> Contract:
    graph, given, geometry = document["graph"], document["input"], document["geometry"]
    return Contract(
        format=one_of("format", graph["format"], FORMATS),
        precision=one_of("precision", graph["precision"], PRECISIONS),
        input=one_of("input", given["is"], INPUTS),
        size=pair("shape", given["shape"][1:3], 1),
        geometry=Geometry(
            _size(geometry["resize"]), _size(geometry["crop"]), region=Region.of(geometry.get("region"))
        ),
        bits=checked_bits(document["bits"]),
        threshold=math.inf if document["threshold"] is None else float(document["threshold"]),
        rounding=float(document["rounding"]),
        false_alarm_rate=math.nan
        if document["false_alarm_rate"] is None
        else float(document["false_alarm_rate"]),
        is_guaranteed=bool(document["is_guaranteed"]),
        source=document["source"],
        versions=document["versions"],
        verification=document["verification"],
        pixel_threshold=_pixel_threshold(document.get("pixel_threshold")),  # exports of before have none
    )


def _known(value: float) -> float | None:
    """A number as JSON has it; None for infinity and NaN."""
    return value if math.isfinite(value) else None


def _pixel_threshold(given: Any) -> float | None:
    return None if given is None else finite_number("pixel_threshold", given)


def _size(given: Any) -> Any:
    return tuple(given) if isinstance(given, list) else given
