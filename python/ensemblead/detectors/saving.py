"""Methods in folders: parameters, network, what was learned, statistics."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ensemblead.calibration import Calibration
from ensemblead.common.warnings import warn
from ensemblead.detectors.format1 import calibration_of_format1
from ensemblead.detectors.frozen import per_network
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.parts import Reading
from ensemblead.detectors.provenance import history_document, read_history
from ensemblead.images import BIT_DEPTHS, Geometry, Region
from ensemblead.networks.network import (
    check_device,
    check_engine,
    check_precision,
    resolve_device,
    resolve_engine,
)
from ensemblead.networks.stored import network_from_store
from ensemblead.store import FolderReader, FolderWriter, load_state, move_state, save_state

# The network describes itself.
OF_THE_NETWORK = ("backbone", "layers", "weights")


def arguments(detector: Any) -> dict[str, Any]:
    """What made a detector: for every parameter of its constructor the attribute of that name."""
    names = inspect.signature(type(detector)).parameters
    return {name: getattr(detector, name) for name in names}


def plain_arguments(detector: Any) -> dict[str, Any]:
    """The same, with a region as JSON has it."""
    given = arguments(detector)
    return {name: value.plain() if isinstance(value, Region) else value for name, value in given.items()}


def write_method(method: Any, writer: FolderWriter) -> dict[str, Any]:
    """For `Method.to_store`."""
    frozen, state, half = method._frozen, method._state_to_save(), ()
    if writer.options.get("half"):
        state, half = method._in_half(state)
    return {
        "parameters": method.parameters(),
        **({"settled": method.settled_} if method.settled_ else {}),  # for the reader of the file
        "network": None if frozen is None else frozen.network.to_store(writer),
        "learned": save_state(writer, "learned", state, method.State, half=half),
        **write_statistics(method, writer),
    }


@dataclass(frozen=True)
class SavedReading:
    """A `Reading` in a folder.

    Attributes:
        fingerprints: int64 `[N]`.
        bits: as in `Reading`.
        resize: the size that `resize="auto"` has come to; None where it is not "auto".
        photograph: height and width of photographs, on which a region of polygons was drawn; else None.
    """

    fingerprints: torch.Tensor
    bits: int | None
    resize: tuple[int, ...] | None
    photograph: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        known = self.fingerprints
        if known.ndim != 1 or known.dtype != torch.int64:
            raise ValueError(f"fingerprints must be int64 [N], got {known.dtype} {tuple(known.shape)}")
        if self.bits is not None and self.bits not in BIT_DEPTHS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BIT_DEPTHS))}, got {self.bits}")


def write_statistics(detector: Any, writer: FolderWriter) -> dict[str, Any]:
    """The statistics of a part, and what it has settled about images."""
    calibration, reading = detector.calibration_, detector._reading
    decided = reading.geometries and getattr(detector, "resize", None) == "auto"
    resize = reading.geometries[0].resize if decided else None
    drawn = reading.geometries and detector.region is not None and detector.region.size is None
    photograph = reading.geometries[0].region.size if drawn else None
    fingerprints = torch.from_numpy(reading.fingerprints.view(np.int64))
    settled = SavedReading(fingerprints, reading.bits, resize, photograph)
    saved = save_state(writer, "images", settled, SavedReading)
    # For the reader of the file; computed again from the scores on loading.
    summary = statistics_summary(calibration)
    stored = save_state(writer, "calibration", calibration, Calibration)
    left_out = [one.plain() for one in detector.left_out_]
    document = {"calibration": stored, "summary": summary, "images": saved, "left_out": left_out}
    return {**document, **history_document(detector)}


def statistics_summary(calibration: Calibration) -> dict[str, Any]:
    """The threshold and its like, in JSON's types, for the reader of a manifest."""
    names = ("threshold", "false_alarm_rate", "score_mean", "score_std")
    summary = {name: getattr(calibration, name) for name in names if calibration.has_statistics}
    if not calibration.has_statistics:
        summary["threshold"] = calibration.given
    in_words = {"rate_in_words": words} if (words := calibration.describe_rate()) else {}
    return {**summary, "threshold_origin": calibration.threshold_origin, **in_words}


def read_statistics(detector: Any, reader: FolderReader, rounding: float | None = None) -> None:
    """What `write_statistics` wrote. `rounding`: of a tiled ensemble's members, for format 1."""
    read_history(detector, reader)
    if reader.format == 1:
        detector._calibration = calibration_of_format1(reader, rounding)
        return
    with reader.as_damage():
        detector._calibration = load_state(reader, "calibration", reader.state["calibration"], Calibration)
        saved = load_state(reader, "images", reader.state["images"], SavedReading)
        decided = _settled_geometry(detector, saved)
        left_out = tuple(LeftOut.of(one) for one in reader.state.get("left_out", []))
        looks = saved.fingerprints.numpy().view(np.uint64)
        detector._reading = Reading(decided, looks, saved.bits, (left_out,))


def _settled_geometry(detector: Any, saved: SavedReading) -> tuple[Geometry, ...]:
    """The geometry that the images of the fit decided; nothing where they had nothing to decide."""
    geometry, region = detector._geometry, detector.region
    if saved.photograph is not None:
        region = region.sized(saved.photograph)
        geometry = replace(geometry, region=region)
    if saved.resize is not None:
        height, width = saved.resize
        return (Geometry((height, width), detector.image_size, region=region),)
    return () if saved.photograph is None else (geometry,)


def read_method(cls: Any, reader: FolderReader) -> Any:
    """For `Method.from_store`."""
    state = reader.state
    with reader.as_damage():
        own = plain_parameters(state["parameters"])
        stored, given = own.get("device", "auto"), reader.options.get("device")
        if "device" in own:
            own["device"] = "auto"
        if state["network"] is not None:
            source = state["network"]["source"]
            own |= {"backbone": source.get("name", source["kind"]), "layers": state["network"]["layers"]}
            own["weights"] = None
        method = cls(**own)
        if (state["network"] is None) != (method._frozen is None):
            # Else the constructor's default would be fetched.
            raise ValueError("network must be there, and for methods without one null")
    # Apart from the rest: whether this machine has the device says nothing of the folder.
    method.device = check_device(stored if given is None else given)
    if state["network"] is not None:
        open_network(method, reader)
    else:
        _without_network(method, reader)
    with reader.as_damage():
        if reader.format == 1:
            saved = cls._state_from_format1(reader)
        else:
            saved = load_state(reader, "learned", state["learned"], method.State)
        device = resolve_device(method.device) if method._frozen is None else method._frozen.network.device
        method._state = method._state_from_saved(move_state(saved, device))
    read_statistics(method, reader)
    return method


def _without_network(method: Any, reader: FolderReader) -> None:
    """The options of `load` about networks, for a method that has trained all of its own."""
    engine, precision = reader.options.get("engine"), reader.options.get("precision")
    name, takes = type(method).__name__, inspect.signature(type(method)).parameters
    if precision == "int8" and engine == "openvino":  # of others, in one ensemble
        warn(f"precision='int8' is for frozen networks, and {name} has none: float32 it is", RuntimeWarning)
        precision = "float32"
    if "engine" in takes:
        method._engine = check_engine(
            method._engine if engine is None else engine, method.device, compile=False
        )
        resolve_engine(method._engine, "auto", resolve_device(method.device), compile=False)
    elif engine is not None and check_engine(engine, "auto", compile=False) not in ("torch", "auto"):
        warn(f"engine={engine!r} is for networks that read images, and {name} has none", RuntimeWarning)
    if precision is None:
        return
    if "precision" in takes:
        method._precision = check_precision(precision, engine="")
    elif check_precision(precision, engine="") not in ("auto", "float32"):
        warn(f"precision={precision!r} is for networks, and {name} has none", RuntimeWarning)


def open_network(method: Any, reader: FolderReader) -> None:
    """Give a method, or an embedder, the network that its folder describes."""
    frozen = method._frozen
    assert frozen is not None
    for option in ("weights", "backbone"):
        reader.options[option] = per_network(option, reader.options.get(option))
    frozen.device = method.device
    given = {name: reader.options.get(name) for name in ("engine", "precision")}
    frozen.run_by(**{name: getattr(frozen, name) if one is None else one for name, one in given.items()})
    network = network_from_store(
        reader,
        reader.state["network"],
        frozen.device,
        frozen.precision,
        compile=frozen.compile,
        engine=frozen.engine,
    )
    frozen.replace(network)
    extractor = network.extractor
    kind = extractor.source["kind"]
    if kind == "module":
        method.backbone = frozen.backbone = extractor.module
    # The weights as the constructor takes them, so that the detector can be described and cloned.
    known = {"zoo": "default", "file": extractor.source.get("path"), "gabor": "default"}
    is_random = kind == "state" and "seed" in extractor.source
    weights = known.get(kind) if kind in known or is_random or kind == "module" else extractor.state_dict()
    method.weights = frozen.weights = weights


def plain_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON holds them, as constructors take them.

    Raises ValueError for a region that is the name of a file: no folder makes loading read another file.
    """
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(own.get("region"), str):
        raise ValueError(f"region must be stored as it is, got the path {own['region']}")
    return own
