"""What detectors over one frozen network have in common: its arguments, sharing it, saving it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn

from ensemblead.calibration.statistics import Calibration
from ensemblead.common.errors import NotFittedError
from ensemblead.common.validation import whole_number
from ensemblead.detectors.base import LeafDetector
from ensemblead.images import Geometry
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.network import Network, check_device, check_precision, network_from_store
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

_CALIBRATION = "calibration.safetensors"


class NetworkDetector(LeafDetector):
    """A detector over one network and one geometry. Subclasses learn something from its feature maps.

    `_own_parameters` names the arguments that a subclass adds to those here; each is an attribute too.
    """

    _own_parameters: ClassVar[tuple[str, ...]] = ()
    _common_parameters: ClassVar[tuple[str, ...]] = (
        "image_size",
        "resize",
        "device",
        "precision",
        "batch_size",
        "seed",
        "compile",
    )

    def __init__(
        self,
        backbone: str | nn.Module,
        layers: Sequence[str],
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None,
        image_size: int | tuple[int, int] | None,
        resize: int | tuple[int, int] | None,
        device: str | torch.device,
        precision: str,
        batch_size: int,
        seed: int,
        compile: bool,
    ) -> None:
        if isinstance(layers, str):
            raise TypeError(f"layers must be a sequence of names, got one string; write ({layers!r},)")
        self.backbone, self.layers, self.weights = backbone, tuple(layers), weights
        self._geometry = Geometry(resize, image_size)  # checks both
        self.image_size, self.resize = _plain_size(image_size), _plain_size(resize)
        self.device, self.precision = check_device(device), check_precision(precision)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed)
        if not isinstance(compile, bool):
            raise TypeError(f"compile must be a bool, got {compile!r}")
        self.compile = compile
        self._shared: Network | None = None
        self._calibration: Calibration | None = None

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def calibration_(self) -> Calibration:
        if self._calibration is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit first")
        return self._calibration

    @property
    def network_(self) -> FeatureExtractor:
        """The frozen network; loaded at the first use."""
        return self._network().extractor

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments but for the network's: `backbone`, `layers`, `weights`."""
        return {name: getattr(self, name) for name in (*self._own_parameters, *self._common_parameters)}

    def _network(self) -> Network:
        if self._shared is None:
            extractor = FeatureExtractor(self.backbone, self.layers, weights=self.weights, seed=self.seed)
            self._shared = Network(extractor, self.device, self.precision, compile=self.compile)
        return self._shared

    def _share_network(self, network: Network) -> None:
        self._shared = self._network().sharing(network)

    def _accept(self, calibrations: Sequence[Calibration]) -> None:
        (self._calibration,) = calibrations

    def _clone(self) -> Self:
        twin = type(self)(self.backbone, self.layers, weights=self.weights, **self.parameters())
        twin._shared = self._network()
        return twin

    def _common_state(self, writer: FolderWriter) -> dict[str, Any]:
        """The part of `to_store` that is the same for all."""
        calibration, samples = self.calibration_.state()
        writer.tensors(_CALIBRATION, samples)
        return {
            "parameters": self.parameters(),
            "network": self._network().to_store(writer),
            "calibration": calibration,
        }

    @classmethod
    def _from_common_state(cls, reader: FolderReader) -> Self:
        """A detector with parameters, network and statistics as stored; what it learned is still missing."""
        state = reader.state
        with reader.as_damage():
            parameters = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in state["parameters"].items()
            }
            stored, given = parameters["device"], reader.options.get("device")
            parameters["device"] = "auto"
            source, layers = state["network"]["source"], state["network"]["layers"]
            name = source.get("name", source["kind"])
            detector = cls(name, layers, weights=None, **cast("dict[str, Any]", parameters))
        # Apart from the rest: whether this machine has the device says nothing of the folder.
        detector.device = check_device(stored if given is None else given)
        network = network_from_store(
            reader, state["network"], detector.device, detector.precision, compile=detector.compile
        )
        if source["kind"] == "module":
            detector.backbone = network.extractor.module
        detector._shared = network
        samples = {name: t.numpy() for name, t in reader.tensors(_CALIBRATION).items()}
        with reader.as_damage():
            known = Calibration.from_state(state["calibration"], samples, detector._rounding)
        detector._calibration = known
        return detector


def _plain_size(size: Any) -> Any:
    """A size that `Geometry` has taken, in Python's own ints, which JSON knows."""
    if size is None:
        return None
    return tuple(int(side) for side in size) if isinstance(size, (tuple, list)) else int(size)
