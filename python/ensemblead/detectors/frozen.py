"""The frozen network of a method: loaded at the first use, shared with equal ones."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ensemblead.images import Geometry
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.engines.engine import Quantized
from ensemblead.networks.layers import MIDDLE_STRIDES, default_layers, layer_names
from ensemblead.networks.network import Network, check_device, check_engine, check_precision
from ensemblead.networks.sizes import check_size, padded_size, sizes_taken
from ensemblead.networks.vectors import Pooling

# What a method may take of its network besides the names, and leave out.
NETWORK_DEFAULTS: Mapping[str, Any] = {
    "weights": "default",
    "precision": "auto",
    "compile": False,
    "engine": "torch",
    "pad_to_grid": False,
}


class FrozenNetwork:
    """What a method says of its network, and the network once it is needed.

    Args:
        backbone, layers, weights: as `FeatureExtractor` takes them; layers may be "auto".
        pooling: of an embedder, which reads a vector per image, as `FeatureExtractor` takes it.
        device, precision, compile, engine: as `Network` takes them.
        seed: of random weights.
        strides: of the layers that "auto" stands for.
        pad_to_grid: whether images of a size that the network does not take are padded.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        layers: Sequence[str] | Literal["auto"] | None,
        *,
        weights: Any,
        device: Any,
        precision: str,
        compile: bool,
        seed: int,
        strides: Sequence[int] = MIDDLE_STRIDES,
        pooling: Pooling | None = None,
        engine: str = "torch",
        pad_to_grid: bool = False,
    ) -> None:
        if layers is None and pooling is None:
            raise TypeError('layers must be "auto" or a sequence of names, got None')
        if isinstance(layers, str):
            if layers != "auto":
                raise TypeError(
                    f'layers must be "auto" or a sequence of names, got one string; write ({layers!r},)'
                )
            layers = default_layers(backbone, strides)
        if not isinstance(compile, bool):
            raise TypeError(f"compile must be a bool, got {compile!r}")
        self.backbone, self.weights = backbone, weights
        self.layers = None if layers is None else layer_names(layers)
        self.pooling = pooling
        self.device, self.compile, self.seed = check_device(device), compile, seed
        self.run_by(engine, precision)
        if not isinstance(pad_to_grid, bool):
            raise TypeError(f"pad_to_grid must be True or False, got {pad_to_grid!r}")
        if pad_to_grid and not isinstance(backbone, str):
            raise ValueError(
                "pad_to_grid needs a network by name, for a module does not say which sizes it takes"
            )
        self.pad_to_grid = pad_to_grid
        self._network: Network | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def network(self) -> Network:
        with self._lock:
            if self._network is None:
                extractor = FeatureExtractor(
                    self.backbone, self.layers, weights=self.weights, seed=self.seed, pooling=self.pooling
                )
                self._network = self._padding(
                    Network(extractor, self.device, self.precision, compile=self.compile, engine=self.engine)
                )
            return self._network

    def run_by(self, engine: str, precision: str) -> None:
        """Set both, for a network that is not loaded yet."""
        self.engine = check_engine(engine, self.device, compile=self.compile)
        self.precision = check_precision(precision, self.engine)

    def quantize(self, quantized: Quantized) -> None:
        """Run the network in int8 from now on."""
        self.replace(self.network.in_int8(quantized))
        self.engine, self.precision = "openvino", "int8"

    @property
    def is_loaded(self) -> bool:
        """Whether the network was needed yet."""
        return self._network is not None

    def check_size(self, size: tuple[int, int], argument: str) -> None:
        """Raise ValueError, naming sizes that do, for images (h, w) that the network cannot take."""
        if self.pad_to_grid:
            self.padded_size(size)
        elif isinstance(self.backbone, str):
            check_size(self.backbone, self.layers or (), size, argument)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) that images of `size` are padded to, `size` itself where none are."""
        if not (self.pad_to_grid and isinstance(self.backbone, str)):
            return size
        return padded_size(self.backbone, self.layers or (), size)

    def _padding(self, network: Network) -> Network:
        """The network, which pads as it should here."""
        network.pads_to = self.padded_size if self.pad_to_grid else None
        return network

    def fitting_geometry(self, geometry: Geometry) -> Geometry:
        """A geometry that the network takes, where the images decide.

        One that is decided by the images comes to multiples that the network takes, or to its only size.
        """
        if geometry.resize == "auto" and geometry.crop is None and isinstance(self.backbone, str):
            side = replace(geometry, region=None).decided([(1, 1)]).resize
            assert isinstance(side, tuple)
            sizes, multiple = sizes_taken(self.backbone, self.layers or (), side)
            if multiple is not None:
                return replace(geometry, multiple=multiple)
            if sizes and sizes[0] != side:
                return Geometry(sizes[0], geometry.crop, region=geometry.region)
        return geometry

    def replace(self, network: Network) -> None:
        """Use this network."""
        with self._lock:
            self._network = self._padding(network)

    def share(self, other: Network) -> None:
        """Read the layers off an equal network that is loaded already."""
        self.replace(self.network.sharing(other))


def share_networks(networks: Sequence[FrozenNetwork]) -> None:
    """Let those that loaded the same network one by one keep one copy of it."""
    loaded: dict[Any, Network] = {}
    for one in networks:
        first = loaded.setdefault(one.network.key, one.network)
        if first.extractor.module is not one.network.extractor.module:
            one.share(first)


def per_network(option: str, given: Any) -> Any:
    """An option of `load` for a detector that is no ensemble: the value, or `{0: value}`."""
    if not isinstance(given, Mapping) or not given or not all(isinstance(key, int) for key in given):
        return given
    wrong = [key for key in given if key != 0]
    if wrong:
        raise ValueError(f"{option}: the model is one detector, number 0, and no ensemble; got {wrong[0]}")
    return given[0]


def per_member(name: str, given: Any, count: int) -> list[Any]:
    """An option of `load`, one value per member: from a sequence, or a mapping of member numbers."""
    if given is None:
        return [None] * count
    if isinstance(given, Mapping) and all(isinstance(key, int) for key in given):
        wrong = [key for key in given if not 0 <= key < count]
        if wrong:
            raise ValueError(f"{name}: the ensemble has members 0 to {count - 1}, got {wrong[0]}")
        return [given.get(i) for i in range(count)]
    if isinstance(given, (list, tuple)):
        if len(given) != count:
            raise ValueError(f"{name} must be one per member ({count}), got {len(given)}")
        return list(given)
    raise ValueError(
        f"{name}: the model is an ensemble of {count}; give a list of one per member, or {{number: value}}"
    )
