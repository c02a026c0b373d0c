"""The frozen network of a detector: where and in what precision it runs, who shares it, what a saved model
knows of it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ensemblead.common.errors import BackboneUnavailableError
from ensemblead.common.files import sha256_of
from ensemblead.common.warnings import warn
from ensemblead.images import Geometry
from ensemblead.kernels.build import __version__, cuda_available, has_cuda_kernels
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.transfer import check_finite
from ensemblead.store import FolderReader, FolderWriter

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILE = "backbone.safetensors"
_KINDS = ("zoo", "file", "state", "gabor", "module")


def check_device(device: Any) -> str:
    """The device's name if it is one that this version computes on, or "auto". Whether it is there shows when
    a network goes there.
    """
    if device == "auto":
        return "auto"
    try:
        name = str(torch.device(device))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto" or a torch device, got {device!r}') from error
    if name.startswith("cuda") and not has_cuda_kernels():
        raise ValueError(
            f"device is {name!r}, but the CUDA kernels are not part of this version of ensemblead, "
            f"{__version__}; use device='auto' or 'cpu'"
        )
    return name


def check_precision(precision: str) -> str:
    if not isinstance(precision, str):
        raise TypeError(f"precision must be a name, got {precision!r}")
    if precision != "auto" and precision not in _PRECISIONS:
        raise ValueError(f'precision must be "auto" or one of {", ".join(_PRECISIONS)}, got {precision!r}')
    return precision


def resolve_device(device: str) -> torch.device:
    """The device itself, a GPU with its number. "auto" is torch's current GPU if there is one and the core's
    kernels run on it; with a warning, the CPU where there are kernels, but the GPU is torch's alone.

    Raises ValueError for a GPU that torch or the kernels do not see.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    unusable = (
        f"this torch sees {gpus} GPU{'s' * (gpus > 1)}, but the CUDA kernels can use none: the driver is "
        "older than the CUDA they were built with, or they were built for newer architectures"
    )
    if device == "auto":
        if not has_cuda_kernels() or gpus == 0:
            return torch.device("cpu")
        if not cuda_available():
            warn(f"{unusable}; detectors run on the CPU", RuntimeWarning)
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())
    place = torch.device(device)
    if place.type != "cuda":
        return place
    if gpus == 0:
        raise ValueError(f"device is {device!r}, but this torch sees no GPU; use device='auto'")
    if not cuda_available():
        raise ValueError(f"device is {device!r}, and {unusable}; use device='cpu'")
    # With the number, or "cuda" and "cuda:0" would count as two places.
    index = torch.cuda.current_device() if place.index is None else place.index
    if index >= gpus:
        raise ValueError(
            f"device is {device!r}, but this torch sees {gpus} GPU{'s' * (gpus > 1)}: "
            f"{', '.join(f'cuda:{i}' for i in range(gpus))}"
        )
    return torch.device("cuda", index)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """ "auto" is float32 on a CPU and half precision on a GPU: bfloat16 where its tensor cores have it
    (compute capability 8.0), else float16.
    """
    if precision != "auto":
        return _PRECISIONS[precision]
    if device.type != "cuda":
        return torch.float32
    # torch.cuda.is_bf16_supported asks the current device, and says yes to an emulation.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def relative_noise(dtype):
    return {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}[dtype]


class Network:
    """A `FeatureExtractor` on its device. Two with the same `key` compute the same thing.

    A module of the caller's that would have to move or change its precision stays as it is, and a copy does.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        device: str = "auto",
        precision: str = "auto",
        *,
        compile: bool = False,
        identity: str | None = None,
    ) -> None:
        place = resolve_device(device)
        dtype = resolve_precision(precision, place)
        source = extractor.source
        self._origin = extractor.module  # kept, for as long as its id stands for it
        if source["kind"] == "module" and not extractor.is_at(place, dtype):
            extractor = extractor.copy()
        # Channels last is what a GPU's tensor cores want, and on a CPU it saves ResNets, DenseNets and
        # SqueezeNet a sixth to a half of the pass.
        extractor.to(place, dtype, channels_last=True)
        if compile:
            extractor.compile()
        elif source["kind"] != "module":  # a caller's module may yet be changed
            extractor.fold()
        self.extractor = extractor
        self.device = place
        # A state dict or a module says nothing about its values: only the very same object is the same
        # network.
        anonymous = source["kind"] == "module" or (source["kind"] == "state" and "seed" not in source)
        known = identity or (id(self._origin) if anonymous else json.dumps(source, sort_keys=True))
        self.key = (known, extractor.mean, extractor.std, str(place), dtype, compile)

    @property
    def layers(self) -> tuple[str, ...]:
        return self.extractor.layers

    @property
    def dtype(self):
        return self.extractor.dtype

    def sharing(self, other: Network) -> Network:
        """This network's layers read off `other`'s module, which is equal; the own module can then be let
        go.
        """
        twin = object.__new__(Network)
        twin.__dict__.update(other.__dict__)
        twin.extractor = other.extractor.with_layers(self.layers)
        return twin

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """Describe the network; its weights are written where nothing else has them, or if they are asked
        for. With the option `borrowed` somebody else writes them: see `network_from_store`.
        """
        extractor = self.extractor
        has_weights = extractor.source["kind"] != "gabor"
        elsewhere = extractor.source["kind"] in ("zoo", "file")
        borrowed = bool(writer.options.get("borrowed"))
        stored = has_weights and (not elsewhere or bool(writer.options.get("include_backbone")))
        stored = stored and not borrowed
        if stored:
            writer.tensors(_FILE, extractor.state_dict())
        return {
            "source": extractor.source,
            "layers": list(extractor.layers),
            "mean": list(extractor.mean),
            "std": list(extractor.std),
            "stored": stored,
            **({"borrowed": True} if borrowed else {}),
        }


def network_from_store(
    reader: FolderReader, state: Mapping[str, Any], device: str, precision: str, *, compile: bool = False
) -> Network:
    """The network that `Network.to_store` described, with the options `weights` and `backbone` of `load`.

    Borrowed ones come from the option `networks`, an iterator over those of all leaves in their order.
    """
    if state.get("borrowed"):
        lent = reader.options.get("networks")
        if lent is None:
            raise BackboneUnavailableError(
                f"{reader.folder} is a part of the model in {reader.folder.parent}, which has its network: "
                "load that one"
            )
        network: Network = next(lent)
        return network
    with reader.as_damage():
        source, layers = _described(state)
    weights, backbone = (_of_one(name, reader.options.get(name)) for name in ("weights", "backbone"))
    if backbone is not None and source["kind"] != "module":
        raise ValueError(
            f"backbone: the model at {reader.folder} knows its network, "
            f"{source.get('name', source['kind'])}; a module is only taken for one that was fitted with one"
        )
    if source["kind"] == "module":
        extractor = _into_module(reader, backbone, layers, state)
    else:
        name = "gabor" if source["kind"] == "gabor" else source["name"]
        chosen = _weights_of(reader, source, bool(state["stored"]), weights)
        if source["kind"] == "zoo" and isinstance(chosen, str) and chosen == "default" and source["tag"]:
            name = f"{name}.{source['tag']}"
        # Whether a published network has these layers depends on the installed version.
        with reader.as_damage() if name == "gabor" else nullcontext():
            extractor = FeatureExtractor(name, layers, weights=chosen, mean=state["mean"], std=state["std"])
        if state["stored"] and weights is None:
            # Where the weights came from in the first place, for the next save.
            extractor.source = dict(source)
    # Stored weights reach no further than their layers did, so networks are equal only where these files are,
    # whatever source they share. A caller's module is equal to itself alone.
    from_folder = state["stored"] and weights is None and source["kind"] != "module"
    identity = reader.digest(_FILE) if from_folder else None
    return Network(extractor, device, precision, compile=compile, identity=identity)


def _described(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Where a network came from, and its layers. Raises TypeError or ValueError for what `to_store` never
    says.
    """
    source, layers = state["source"], state["layers"]
    if source["kind"] not in _KINDS or type(source.get("name", "")) is not str:
        raise ValueError(f"source cannot be {dict(source)}")
    if type(layers) is not list or not layers or any(type(layer) is not str for layer in layers):
        raise ValueError(f"layers must be names, got {layers!r}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers must differ from each other, got {layers}")
    for name in ("mean", "std"):
        values = state[name]
        if type(values) is not list or len(values) != 3 or any(type(v) not in (int, float) for v in values):
            raise ValueError(f"{name} must be three numbers, got {values!r}")
    if min(state["std"]) <= 0:
        raise ValueError(f"std must be positive, got {state['std']}")
    return source, layers


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
        return reader.tensors(_FILE)
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


def _warn_if_other_file(source: Mapping[str, Any], given: Any) -> None:
    is_file = isinstance(given, (str, os.PathLike)) and os.path.isfile(given)
    if source["kind"] == "file" and is_file and sha256_of(str(given)) != source["sha256"]:
        warn(
            f"{given} is not the weights file that the model was fitted with, by its hash: scores may be off"
        )


def _into_module(
    reader: FolderReader, module: nn.Module | None, layers: Sequence[str], state: Mapping[str, Any]
) -> FeatureExtractor:
    if not isinstance(module, nn.Module):
        raise BackboneUnavailableError(
            "the model was fitted with a torch.nn.Module, which only the caller can build; "
            f"pass ead.load({str(reader.folder)!r}, backbone=module) with one of the same architecture"
        )
    stored = reader.tensors(_FILE)
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
    return FeatureExtractor(module, layers, mean=state["mean"], std=state["std"])


class FeaturePool:
    """Forward passes shared by detectors: networks of one key over one geometry run once per batch, to the
    last layer that any of them reads. Images go to a device once, as bytes.
    """

    def __init__(self, readers: Sequence[tuple[Network, Geometry]]) -> None:
        self._extractors: dict[Any, FeatureExtractor] = {}
        wanted: dict[Any, list[str]] = {}
        for network, geometry in readers:
            key = (network.key, geometry)
            wanted.setdefault(key, []).extend(network.layers)
            self._extractors.setdefault(key, network.extractor)
        for key, layers in wanted.items():
            union = tuple(dict.fromkeys(layers))
            if union != self._extractors[key].layers:
                self._extractors[key] = self._extractors[key].with_layers(union)

    @contextmanager
    def batch(
        self, images: Mapping[Geometry, torch.Tensor]
    ) -> Iterator[Callable[[Network, Geometry], list[torch.Tensor]]]:
        """Inside, a function that gives a network's feature maps of this batch, in the order of its
        layers.
        """
        done: dict[Any, dict[str, torch.Tensor]] = {}
        placed: dict[tuple[torch.device, Geometry], torch.Tensor] = {}

        def features(network: Network, geometry: Geometry) -> list[torch.Tensor]:
            key = (network.key, geometry)
            if key not in done:
                extractor = self._extractors[key]
                place = (network.device, geometry)
                if place not in placed:
                    # From page-locked memory this only queues the copy; torch keeps the memory until it is
                    # done.
                    placed[place] = images[geometry].to(network.device, non_blocking=True)
                maps = extractor(extractor.normalize(placed[place]))
                done[key] = dict(zip(extractor.layers, maps, strict=True))
            return [done[key][layer] for layer in network.layers]

        try:
            yield features
        finally:
            done.clear()
            placed.clear()


def require_finite(embeddings: torch.Tensor, extractor: FeatureExtractor) -> None:
    """Raise NonFiniteFeaturesError if a network has put out NaN or infinity (see `check_finite` for when)."""
    advice = "; use precision='float32'" if extractor.dtype != torch.float32 else "; check its weights"
    dtype = str(extractor.dtype).removeprefix("torch.")
    check_finite(embeddings, f"the network {extractor.name} put out NaN or infinity in {dtype}{advice}")
