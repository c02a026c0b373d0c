"""Networks out of saved models: what `Network.to_store` described."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ensemblead.common.errors import BackboneUnavailableError, DamagedModelError
from ensemblead.common.files import sha256_of
from ensemblead.common.warnings import warn
from ensemblead.networks.engines.engine import Quantized, digest_of
from ensemblead.networks.extractor import FeatureExtractor
from ensemblead.networks.network import (
    CONSTANTS_FILE,
    GRAPH_FILE,
    PROBE,
    PROBE_FILE,
    WEIGHTS_FILE,
    Network,
)
from ensemblead.networks.structured import extractor_of_structure
from ensemblead.networks.vectors import POOLINGS
from ensemblead.store import FolderReader

_MOST = 1e6  # a mean or a deviation of pixels in 0..1 is far below
# Values that are stored of a network's source, by its kind. A seed is there if the weights were drawn.
_SOURCES: dict[str, tuple[str, ...]] = {
    "zoo": ("name", "tag"),
    "file": ("name", "tag", "path", "sha256"),
    "state": ("name", "tag"),
    "gabor": (),
    "module": (),
}


def network_from_store(
    reader: FolderReader,
    state: Mapping[str, Any],
    device: str,
    precision: str,
    *,
    compile: bool = False,
    engine: str = "torch",
) -> Network:
    """The network that `Network.to_store` described, with the options `weights` and `backbone` of `load`.

    Borrowed ones come from the option `networks`, an iterator over those of all leaves in their order.
    """
    with reader.as_damage():
        _check_flags(state)
    if state.get("borrowed"):
        lent = reader.options.get("networks")
        if lent is None:
            raise BackboneUnavailableError(
                f"{reader.folder} is a part of the model in {reader.folder.parent}, which has its network: "
                "load that one"
            )
        network: Network | None = next(lent, None)
        if network is None:
            raise DamagedModelError(f"{reader.folder} uses a network that the model around it does not have")
        return network
    with reader.as_damage():
        source, layers = _source(state["source"], state["stored"]), _layers(state["layers"])
        mean, std = _channels("mean", state["mean"]), _channels("std", state["std"])
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {std}")
    weights, backbone = (_of_one(name, reader.options.get(name)) for name in ("weights", "backbone"))
    if backbone is not None and source["kind"] != "module":
        raise ValueError(
            f"backbone: the model at {reader.folder} knows its network, "
            f"{source.get('name', source['kind'])}; a module is only taken for one that was fitted with one"
        )
    options = {"mean": mean, "std": std, "pooling": state.get("pooling")}
    # Stored weights reach no further than their layers did, so networks are equal only where these files are,
    # whatever source they share. A caller's module is equal to itself alone.
    from_folder = state["stored"] and weights is None and source["kind"] != "module"
    if source["kind"] == "module":
        extractor = _into_module(reader, backbone, layers, options)
    else:
        extractor = _by_name(reader, source, layers, options, weights, from_folder)
    identity = reader.digest(WEIGHTS_FILE) if from_folder else None
    quantized = _quantized(reader, state, extractor)
    return Network(
        extractor, device, precision, compile=compile, engine=engine, identity=identity, quantized=quantized
    )


def _quantized(
    reader: FolderReader, state: Mapping[str, Any], extractor: FeatureExtractor
) -> Quantized | None:
    """The network in int8 that a folder has, if it is one of these weights; a warning otherwise."""
    if state.get("quantized") is None:
        return None
    with reader.as_damage():
        given = state["quantized"]
        layers, digest, images = _layers(given["layers"]), given["weights"], given["images"]
        if type(digest) is not str or type(images) is not int:
            raise TypeError(f"quantized cannot be {given!r}")
        probe = reader.tensors(PROBE_FILE)[PROBE]
        if probe.dtype != torch.float16 or probe.ndim != 4 or probe.shape[:2] != (1, 3) or not probe.numel():
            raise ValueError(f"{PROBE} must be float16 [1, 3, H, W], got {probe.dtype} {tuple(probe.shape)}")
        if not bool(torch.isfinite(probe).all()):
            raise ValueError(f"{PROBE} must be finite")
    files = reader.data(GRAPH_FILE), reader.data(CONSTANTS_FILE)
    found = Quantized(tuple(layers), digest, images, *files, probe)
    if digest_of(extractor.with_layers(layers).state_dict()) == digest:
        return found
    warn(f"{reader.folder} has an int8 network of other weights, which is not used; call quantize again")
    return None


def _by_name(
    reader: FolderReader,
    source: dict[str, Any],
    layers: list[str],
    options: dict[str, Any],
    weights: Any,
    from_folder: bool,
) -> FeatureExtractor:
    """The network of a stored source; `weights` are those that the caller gives instead, or None."""
    name = "gabor" if source["kind"] == "gabor" else source["name"]
    chosen = _weights_of(reader, source, from_folder, weights)
    if source["kind"] == "zoo" and isinstance(chosen, str) and chosen == "default" and source["tag"]:
        name = f"{name}.{source['tag']}"
    try:
        built = extractor_of_structure(reader, source, layers, options, chosen, from_folder)
    except ValueError as error:
        if from_folder and str(error).startswith("weights"):
            raise _damaged(reader, error) from error
        raise
    if built is not None:
        return built
    # Whether a published network has these layers depends on the installed version.
    with reader.as_damage() if name == "gabor" else nullcontext():
        try:
            extractor = FeatureExtractor(name, layers, weights=chosen, **options)
        except ValueError as error:
            if from_folder and str(error).startswith("weights"):
                raise _damaged(reader, error) from error
            raise
    if from_folder:
        # Where the weights came from in the first place, for the next save.
        extractor.source = dict(source)
    return extractor


def _damaged(reader: FolderReader, error: ValueError) -> DamagedModelError:
    return DamagedModelError(f"{reader.folder}/{WEIGHTS_FILE} is damaged: {error}")


def _check_flags(state: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for what `to_store` never says; so do the functions below."""
    if not isinstance(state, Mapping):
        raise TypeError(f"network must be a mapping, got {type(state).__name__}")
    for name in ("stored", "borrowed"):
        if type(state.get(name, False)) is not bool:
            raise TypeError(f"{name} must be true or false, got {state[name]!r}")
    if state.get("pooling") not in (None, *POOLINGS):
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {state['pooling']!r}")


def _source(given: Any, stored: bool) -> dict[str, Any]:
    """The source of a network, with the values that its kind has."""
    kind = given.get("kind") if isinstance(given, Mapping) else None
    if type(kind) is not str or kind not in _SOURCES:
        raise ValueError(f"source cannot be {given!r}")
    source = {"kind": kind, **{name: given[name] for name in _SOURCES[kind]}}
    wrong = [name for name in source if type(source[name]) is not str]
    if wrong or source.get("name") in ("", "gabor"):
        raise ValueError(f"source cannot be {dict(given)}")
    if kind == "file" and (len(source["sha256"]) != 64 or "\0" in source["path"]):
        raise ValueError(f"source cannot be {dict(given)}")
    if kind == "state" and "seed" in given:
        if type(given["seed"]) is not int:
            raise ValueError(f"seed must be a whole number, got {given['seed']!r}")
        source["seed"] = given["seed"]
    if stored and kind == "gabor":
        raise ValueError("a gabor network has no weights to store")
    if not stored and kind in ("state", "module"):
        raise ValueError(f"the weights of a network of kind {kind!r} must be stored with it")
    return source


def _layers(given: Any) -> list[str]:
    if type(given) is not list or not given or any(type(layer) is not str for layer in given):
        raise ValueError(f"layers must be names, got {given!r}")
    if len(set(given)) != len(given):
        raise ValueError(f"layers must differ from each other, got {given}")
    return given


def _channels(name: str, given: Any) -> list[float]:
    """Three finite numbers."""
    numbers = type(given) is list and len(given) == 3 and all(type(value) in (int, float) for value in given)
    if not numbers or not all(abs(value) <= _MOST for value in given):
        raise ValueError(f"{name} must be three numbers, got {given!r}")
    return [float(value) for value in given]


def _of_one(name: str, given: Any) -> Any:
    """An option of `load` for a detector that is no ensemble: the value, or `{0: value}`."""
    if not isinstance(given, Mapping) or not given or not all(isinstance(key, int) for key in given):
        return given
    wrong = [key for key in given if key != 0]
    if wrong:
        raise ValueError(f"{name}: the model is one detector, number 0, and no ensemble; got {wrong[0]}")
    return given[0]


def _weights_of(reader: FolderReader, source: Mapping[str, Any], stored: bool, given: Any) -> Any:
    if source["kind"] == "gabor":
        if given is not None:
            raise ValueError("weights: the gabor backbone has none")
        return "default"
    if given is not None:
        _warn_if_other_file(source, given)
        return given
    if stored:
        return _stored_weights(reader)
    if source["kind"] == "zoo":
        return "default"
    path = source["path"]
    if not os.path.isfile(path):
        raise BackboneUnavailableError(
            f"the weights of {source['name']} are no longer at {path}; "
            f"pass ead.load({str(reader.folder)!r}, weights=...) with where they are now"
        )
    if sha256_of(path) != source["sha256"]:
        raise BackboneUnavailableError(
            f"the weights file {path} has changed since the model was fitted; "
            f"pass ead.load({str(reader.folder)!r}, weights=...) with the ones it was fitted with"
        )
    return path


def _stored_weights(reader: FolderReader) -> dict[str, torch.Tensor]:
    tensors = reader.tensors(WEIGHTS_FILE)
    for name, tensor in tensors.items():
        # Infinity may be a network's own, in the mask of an attention. A maximum is NaN where one value is.
        if tensor.is_floating_point() and tensor.numel() and bool(torch.isnan(tensor.max())):
            raise DamagedModelError(f"{reader.folder}/{WEIGHTS_FILE} is damaged: {name} has NaN")
    return tensors


def _warn_if_other_file(source: Mapping[str, Any], given: Any) -> None:
    is_file = isinstance(given, (str, os.PathLike)) and os.path.isfile(given)
    if source["kind"] == "file" and is_file and sha256_of(str(given)) != source["sha256"]:
        warn(
            f"{given} is not the weights file that the model was fitted with, by its hash: scores may be off"
        )


def _into_module(
    reader: FolderReader, module: nn.Module | None, layers: Sequence[str], options: dict[str, Any]
) -> FeatureExtractor:
    if not isinstance(module, nn.Module):
        raise BackboneUnavailableError(
            "the model was fitted with a torch.nn.Module, which only the caller can build; "
            f"pass ead.load({str(reader.folder)!r}, backbone=module) with one of the same architecture"
        )
    stored = _stored_weights(reader)
    own = module.state_dict()
    for name, tensor in stored.items():
        if name not in own or own[name].shape != tensor.shape:
            found = "no such tensor" if name not in own else f"shape {tuple(own[name].shape)}"
            raise ValueError(
                f"backbone: not the architecture that the model was fitted with: {name} should have shape "
                f"{tuple(tensor.shape)}, the module has {found}"
            )
    # A copy: the caller's module may serve others, with its own weights.
    module = copy.deepcopy(module)
    module.load_state_dict(stored, strict=False)
    return FeatureExtractor(module, layers, **options)
