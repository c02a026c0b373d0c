"""Checkpoints of anomalib 2: PatchCore and PaDiM, as Lightning or `torch.save` of a state dict wrote them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemblead.common.validation import whole_number
from ensemblead.conversion.checkpoints import Checkpoint, read_checkpoint
from ensemblead.conversion.definitions import anomalib_padim, anomalib_patchcore
from ensemblead.conversion.patchcore_inspection import bank_of, norm_of
from ensemblead.conversion.source import Converted, check_normalization, give_state
from ensemblead.detectors.padim import PaDiM
from ensemblead.detectors.padim.detector import Positions
from ensemblead.detectors.padim.gaussians import Gaussians
from ensemblead.detectors.patchcore import PatchCore
from ensemblead.networks.zoo import IMAGENET_MEAN, IMAGENET_STD, blueprint

NAME = "anomalib"
_NETWORK = "feature_extractor.feature_extractor."
_RESIZE = (256, 256)
_NEIGHBORS = 9
_BLUR = "anomaly_map_generator.blur.kernel"


def read_detector(
    path: Path,
    *,
    backbone: str | None,
    layers: Sequence[str] | None,
    num_neighbors: int | None,
    resize: Any,
    image_size: Any,
    device: Any,
) -> Converted:
    """The detector of a checkpoint; arguments that it states need not be given."""
    known, notes = read_checkpoint(path), list[str]()
    shared = _network(known, backbone, layers, device, notes)
    shared["resize"], shared["image_size"], mean, std = _geometry(known, resize, image_size, notes)
    _check_blur(known)
    threshold = _threshold(known, notes)
    if "memory_bank" in known.state:
        converted = _patchcore(known, shared, num_neighbors, notes)
    elif "gaussian.mean" in known.state:
        if num_neighbors is not None:
            raise ValueError("num_neighbors is of PatchCore, and the checkpoint holds a PaDiM")
        converted = _padim(known, shared, notes)
    else:
        raise ValueError(f"{path} holds neither a PatchCore (memory_bank) nor a PaDiM (gaussian.mean)")
    detector, state, definition, scale = converted
    check_normalization(detector, str(path), mean, std)
    give_state(detector, state, threshold)
    notes.append(
        "images are resized in 8 bits, by anomalib in floating point: scores of images that are resized "
        "differ by that"
    )
    return Converted(detector, definition, scale, False, tuple(notes))


def _network(
    known: Checkpoint, backbone: str | None, layers: Sequence[str] | None, device: Any, notes: list[str]
) -> dict[str, Any]:
    """Arguments of both detectors: the network, with its weights from the checkpoint."""
    name = known.choose("backbone", backbone)
    names = known.choose("layers", None if layers is None else list(layers))
    is_list = isinstance(names, list) and bool(names) and all(isinstance(layer, str) for layer in names)
    if not (isinstance(name, str) and is_list):
        raise ValueError(f"backbone and layers in {known.what} must be names, got {name!r} and {names!r}")
    if "vit" in name.lower():
        raise ValueError(
            f"{known.what} has the transformer {name}, whose tokens anomalib normalises once more; only "
            "convolutional networks can be converted"
        )
    weights = {
        key.removeprefix(_NETWORK): value for key, value in known.state.items() if key.startswith(_NETWORK)
    }
    if not weights:
        raise ValueError(f"{known.what} has no tensors {_NETWORK}*, which hold the network of anomalib")
    # timm gives maps in the order of the network, and anomalib takes them so, whichever order names have.
    order = {layer: place for place, (layer, _) in enumerate(blueprint(name).named_modules())}
    ordered = sorted(names, key=lambda layer: order.get(layer, len(order)))
    if ordered != names:
        notes.append(f"layers {', '.join(ordered)}: in the order of the network, as anomalib takes them")
    return {"backbone": name, "layers": ordered, "weights": weights, "precision": "float32", "device": device}


def _patchcore(
    known: Checkpoint, shared: Mapping[str, Any], num_neighbors: int | None, notes: list[str]
) -> tuple[Any, Any, Any, float]:
    rows = _tensor(known, "memory_bank", 2)
    if num_neighbors is None and "num_neighbors" not in known.hyper:
        notes.append(f"num_neighbors {_NEIGHBORS}: the default of anomalib, since the file does not state it")
    neighbors = known.choose("num_neighbors", num_neighbors, _NEIGHBORS)
    neighbors = whole_number(f"num_neighbors of {known.what}", neighbors, 1)
    if len(rows) == 1 and neighbors > 1:
        raise ValueError(f"{known.what} has a memory bank of one row, by which anomalib scores every image 0")
    detector = PatchCore(
        **shared,
        aggregation="concat",
        patch_size=3,
        score="reweighted",
        reweight_neighbors=neighbors,
        map_kind="nearest",
        coreset_fraction=known.hyper.get("coreset_sampling_ratio", 0.1),
    ).load_networks()
    channels = sum(detector.network_.channels(_input_size(detector)))
    if rows.shape[1] != channels:
        raise ValueError(
            f"{known.what} has a memory bank of {rows.shape[1]} dimensions, but the layers "
            f"{', '.join(detector.layers)} have {channels} channels"
        )
    bank = bank_of(detector, rows, known.what)
    return detector, bank, anomalib_patchcore(rows.numpy(), neighbors), norm_of(bank)


def _padim(known: Checkpoint, shared: Mapping[str, Any], notes: list[str]) -> tuple[Any, Any, Any, float]:
    mean, inverse = _tensor(known, "gaussian.mean", 2), _tensor(known, "gaussian.inv_covariance", 3)
    if inverse.shape != (mean.shape[1], len(mean), len(mean)):
        raise ValueError(
            f"{known.what} has gaussian.inv_covariance of shape {tuple(inverse.shape)}, which does not go "
            f"with gaussian.mean of shape {tuple(mean.shape)}"
        )
    index = known.state.get("idx")
    if index is None or index.dtype != torch.int64 or index.shape != (len(mean),) or int(index.min()) < 0:
        raise ValueError(f"{known.what} must have idx, one channel for each of {len(mean)} dimensions")
    detector = PaDiM(
        **shared, num_dimensions=index.tolist(), interpolation="nearest", map_kind="reflect"
    ).load_networks()
    size = _input_size(detector)
    channels, grid = sum(detector.network_.channels(size)), detector.network_.grid(size)
    if int(index.max()) >= channels:
        raise ValueError(
            f"{known.what} keeps channel {int(index.max())}, but the layers "
            f"{', '.join(detector.layers)} have {channels} channels"
        )
    if mean.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"{known.what} has Gaussians at {mean.shape[1]} positions, but images of {size[0]} x {size[1]} "
            f"give {grid[0]} x {grid[1]}: give the resize and image_size it was fitted with"
        )
    order = index.argsort()  # channels are kept in ascending order here
    try:
        gaussians = Gaussians.from_precision(mean[order].T.contiguous(), inverse[:, order][:, :, order])
    except ValueError as error:
        raise ValueError(f"{known.what}: {error}") from error
    device = detector.network_.device
    moved = Gaussians(0, gaussians.mean.to(device), tuple(block.to(device) for block in gaussians.whitening))
    notes.append("the number of training images is not in the file, so extend is refused")
    definition = anomalib_padim(index.numpy(), mean.numpy(), inverse.numpy())
    return detector, Positions(moved, grid), definition, float(len(index)) ** 0.5


def _tensor(known: Checkpoint, name: str, axes: int) -> torch.Tensor:
    tensor = known.state.get(name)
    if tensor is None or tensor.ndim != axes or 0 in tensor.shape:
        got = "none" if tensor is None else tuple(tensor.shape)
        raise ValueError(
            f"{known.what} must have {name} of {axes} axes, not empty, got {got}: was it fitted?"
        )
    if tensor.dtype != torch.float32:
        raise ValueError(
            f"{known.what} has {name} in {str(tensor.dtype).removeprefix('torch.')}, in which anomalib then "
            "computes as well; only float32 can be converted"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{known.what}: {name} must be finite, got NaN or infinity")
    return tensor


def _input_size(detector: Any) -> tuple[int, int]:
    """Of the network's input, where it does not depend on the image."""
    crop, resize = detector.geometry.crop, detector.geometry.resize
    size = crop if isinstance(crop, tuple) else resize
    if not isinstance(size, tuple):
        raise ValueError(f"resize must be (h, w) where there is no image_size, got {resize!r}")
    return size


def _check_blur(known: Checkpoint) -> None:
    """Maps are blurred by a Gaussian of 4 pixels."""
    kernel = known.state.get(_BLUR)
    if kernel is None:
        return  # earlier versions do not save it, and have this one
    taps = np.exp(-0.5 * (np.arange(-16, 17) / 4.0) ** 2)
    taps /= taps.sum()
    is_own = kernel.shape == (1, 1, 33, 33)
    if not (is_own and np.allclose(kernel[0, 0].double(), np.outer(taps, taps), rtol=0, atol=1e-5)):
        raise ValueError(f"{known.what} blurs maps otherwise than by a Gaussian of 4 pixels")


def _geometry(
    known: Checkpoint, resize: Any, image_size: Any, notes: list[str]
) -> tuple[Any, Any, Sequence[float], Sequence[float]]:
    """resize, image_size, mean and std."""
    enabled = known.content.get("anomalib_components_enabled")
    if isinstance(enabled, Mapping) and not enabled.get("pre_processor", True):
        raise ValueError(f"{known.what} has no pre-processor, so that images are not normalised")
    config = known.content.get("anomalib_pre_processor_config")
    transform = config.get("transform") if isinstance(config, Mapping) else None
    if transform is None:
        if resize is None:
            resize = _RESIZE
            notes.append(
                f"resize {_RESIZE[0]}x{_RESIZE[1]}: the default of anomalib, since the file does not state it"
            )
        return resize, image_size, IMAGENET_MEAN, IMAGENET_STD
    try:
        found = _read_transform(known.what, transform)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{known.what} does not describe its transforms as anomalib 2 does: {error}"
        ) from error
    for name, given in (("resize", resize), ("image_size", image_size)):
        if given is not None and given != found[name]:
            raise ValueError(f"{name} is {found[name]} in {known.what}, got {given}")
    return found["resize"], found["image_size"], found["mean"], found["std"]


def _read_transform(what: str, transform: Any) -> dict[str, Any]:
    """A Resize, then a CenterCrop, then a Normalize, as anomalib writes them down; the first two may lack."""
    found: dict[str, Any] = {"resize": None, "image_size": None}
    steps = [transform]
    if isinstance(transform, Mapping) and _class(transform) == "Compose":
        steps = transform["init_args"]["transforms"]
    expected = iter(("Resize", "CenterCrop", "Normalize"))
    for step in steps:
        name, own = _class(step), step.get("init_args", {}) if isinstance(step, Mapping) else {}
        if name == "ExportableCenterCrop":
            name = "CenterCrop"
        if name not in expected:  # reads on in the order that is expected
            raise ValueError(f"{what} has the transform {name}, which cannot be converted at its place")
        if name == "Normalize":
            found |= {"mean": own["mean"], "std": own["std"]}
        elif name == "CenterCrop":
            found["image_size"] = _size(own["size"])
        else:
            plain = own.get("interpolation", "bilinear") == "bilinear" and own.get("antialias", True)
            if not plain or own.get("max_size") is not None:
                raise ValueError(f"{what} resizes by {own}: only bilinear and antialiased can be converted")
            found["resize"] = _size(own["size"])
    if "mean" not in found:
        raise ValueError(f"{what} does not normalise images")
    return found


def _class(step: Any) -> str:
    path = step.get("class_path") if isinstance(step, Mapping) else None
    return path.rsplit(".", 1)[-1] if isinstance(path, str) else repr(step)[:40]


def _size(value: Any) -> Any:
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return sides[0] if len(sides) == 1 else sides


def _threshold(known: Checkpoint, notes: list[str]) -> float | None:
    """The image threshold in units of the raw scores, as `PostProcessor` applies it."""
    values = {key.removeprefix("post_processor.").lstrip("_"): value for key, value in known.others.items()}
    config = known.content.get("anomalib_post_processor_config")
    settings = config if isinstance(config, Mapping) else {}

    def number(name: str) -> float:
        value = values.get(name)
        return math.nan if value is None or value.numel() != 1 else float(value)

    threshold = number("image_threshold")
    if math.isnan(threshold) and settings.get("enable_threshold_matching", True):
        threshold = number("pixel_threshold")
    if math.isnan(threshold):
        return None
    low, high = number("image_min"), number("image_max")
    scaled = settings.get("enable_normalization", True) and math.isfinite(low) and math.isfinite(high)
    usual = settings.get("image_sensitivity", 0.5) == 0.5 and settings.get("enable_thresholding", True)
    if not (usual and scaled and math.isfinite(threshold)):
        notes.append(
            f"the threshold {threshold:.6g} is not carried over: its post-processor does not apply it to raw "
            "scores as it stands (no normalisation, or a sensitivity that is not 0.5)"
        )
        return None
    notes.append(f"threshold {threshold:.6g}: that of the checkpoint")
    return threshold
