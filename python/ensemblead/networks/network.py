"""The frozen network of a detector: on its device, shared between detectors, and saved (stored.py loads it).

This file also shows what else detectors use of this room.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ensemblead.images import Geometry
from ensemblead.networks.engines import default_engine
from ensemblead.networks.engines.engine import Quantized
from ensemblead.networks.extractor import FeatureExtractor
from ensemblead.networks.noise import relative_noise
from ensemblead.networks.pdn import NAMES as PDN_NAMES
from ensemblead.networks.placement import (
    check_device,
    check_engine,
    check_precision,
    resolve_device,
    resolve_engine,
    resolve_precision,
    warn_of_threads,
)
from ensemblead.networks.structured import STRUCTURE_FILE, structure_document
from ensemblead.networks.transfer import check_finite
from ensemblead.store import FolderWriter

__all__ = [
    "FeaturePool",
    "Network",
    "check_device",
    "check_engine",
    "check_precision",
    "relative_noise",
    "require_finite",
    "resolve_device",
    "resolve_engine",
    "resolve_precision",
]

# Files of a saved network.
WEIGHTS_FILE = "backbone.safetensors"
GRAPH_FILE, CONSTANTS_FILE = "quantized.xml", "quantized.bin"
PROBE_FILE, PROBE = "quantized.safetensors", "probe"


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
        engine: str = "torch",
        identity: str | None = None,
        quantized: Quantized | None = None,
    ) -> None:
        place = resolve_device(device)
        engine = resolve_engine(engine, precision, place, compile=compile)
        warn_of_threads(place)
        dtype = resolve_precision(precision, place)
        source = extractor.source
        self._origin = extractor.module  # kept, for as long as its id stands for it
        if source["kind"] == "module" and not extractor.is_at(place, dtype):
            extractor = extractor.copy()
        # Channels last is what a GPU's tensor cores want, and on a CPU it saves ResNets, DenseNets and
        # SqueezeNet a sixth to a half of the pass.
        extractor.to(place, dtype, channels_last=True)
        # A caller's module may yet be changed.
        kind = default_engine(dtype, engine=engine, compile=compile, changeable=source["kind"] == "module")
        extractor.run_by(kind, "int8" if precision == "int8" else None, quantized)
        self.extractor, self.quantized = extractor, quantized
        # From the size of images to the one that they are padded to; None: they stay as they are.
        self.pads_to: Callable[[tuple[int, int]], tuple[int, int]] | None = None
        self.device = place
        self.from_folder = identity is not None
        # A state dict or a module says nothing about its values: only the very same object is the same
        # network.
        anonymous = source["kind"] == "module" or (source["kind"] == "state" and "seed" not in source)
        known = identity or (id(self._origin) if anonymous else json.dumps(source, sort_keys=True))
        self._known = (known, extractor.mean, extractor.std, str(place), dtype, compile, extractor.pooling)
        self._engine = engine

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for networks that compute the same, by the same engine."""
        precision = self.extractor.precision
        own = self.quantized.identity if self.quantized is not None and precision == "int8" else None
        # Which sizes are taken depends on the layers.
        padding = None if self.pads_to is None else self.layers
        return (*self._known, self._engine, precision, own, padding)

    def by_torch(self) -> Network:
        """The same network, run by torch, in the dtype that it has."""
        twin = self.sharing(self)
        changeable = self.extractor.source["kind"] == "module"
        twin._engine = "torch"
        kind = default_engine(self.dtype, engine="torch", compile=False, changeable=changeable)
        twin.extractor.run_by(kind)
        return twin

    def in_int8(self, quantized: Quantized) -> Network:
        """The same network, run in int8."""
        twin = self.sharing(self)
        twin._engine, twin.quantized = "openvino", quantized
        twin.extractor.run_by("openvino", "int8", quantized)
        return twin

    @property
    def engine(self) -> str:
        """What runs it: one of the names that users give, and never "auto"."""
        return self._engine

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in; `relative_noise` bounds its rounding."""
        return self.extractor.dtype

    @property
    def layers(self) -> tuple[str, ...]:
        return self.extractor.layers

    def padded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Images `[B, 3, H, W]`, whose last rows and columns are repeated up to a size that the network
        takes, where it pads.
        """
        height, width = int(pixels.shape[2]), int(pixels.shape[3])
        size = (height, width) if self.pads_to is None else self.pads_to((height, width))
        for axis, (have, want) in enumerate(zip((height, width), size, strict=True), start=2):
            if have != want:
                places = torch.arange(want, device=pixels.device).clamp_max(have - 1)
                pixels = pixels.index_select(axis, places)
        return pixels

    def sharing(self, other: Network) -> Network:
        """This network's layers read off `other`'s module, which is equal; the own module can then be let
        go.
        """
        twin = object.__new__(Network)
        twin.__dict__.update(other.__dict__)
        twin.extractor = other.extractor.with_layers(self.layers)
        return twin

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """Describe the network; its weights are written where nothing else has them, if they were read from a
        model's folder, or if they are asked for. With the option `borrowed` somebody else writes them: see
        `stored.network_from_store`.
        """
        extractor = self.extractor
        has_weights = extractor.source["kind"] != "gabor"
        # Weights that came out of a model's folder may be nowhere else on this machine.
        elsewhere = extractor.source["kind"] in ("zoo", "file") and not self.from_folder
        borrowed = bool(writer.options.get("borrowed"))
        stored = has_weights and (not elsewhere or bool(writer.options.get("include_backbone")))
        stored = stored and not borrowed
        if stored:
            writer.tensors(WEIGHTS_FILE, extractor.state_dict())
        if not borrowed and extractor.source.get("name", "pdn_small") not in PDN_NAMES:
            structure = structure_document(extractor, stored)
            if structure is not None:
                writer.data(STRUCTURE_FILE, structure)
        quantized = None if borrowed else self.quantized
        if quantized is not None:
            writer.data(GRAPH_FILE, quantized.graph)
            writer.data(CONSTANTS_FILE, quantized.constants)
            writer.tensors(PROBE_FILE, {PROBE: quantized.probe})
        return {
            "source": extractor.source,
            "layers": list(extractor.layers),
            "mean": list(extractor.mean),
            "std": list(extractor.std),
            "stored": stored,
            **({"borrowed": True} if borrowed else {}),
            **({"pooling": extractor.pooling} if extractor.pooling is not None else {}),
            **({} if quantized is None else {"quantized": _summary(quantized)}),
        }


def _summary(quantized: Quantized) -> dict[str, Any]:
    return {"layers": list(quantized.layers), "weights": quantized.weights, "images": quantized.images}


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
                maps = extractor(extractor.normalize(network.padded(placed[place])))
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
