"""What methods have in common whose networks the engine trains."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch

from ensemblead.common.files import StrPath
from ensemblead.common.validation import whole_number
from ensemblead.detectors.learning import nothing_read
from ensemblead.detectors.method import Method
from ensemblead.detectors.provenance import record
from ensemblead.detectors.saving import arguments
from ensemblead.detectors.training.data import TrainingData
from ensemblead.detectors.training.published import WeightFile
from ensemblead.networks.modes import default_modes
from ensemblead.networks.network import resolve_device

if TYPE_CHECKING:
    from typing_extensions import Self

Net = TypeVar("Net")
Steps = int | Literal["paper"]
# What stands for images of which no size is said.
_SIDE = 256


class TrainedMethod(Method, abstract=True):
    """A method whose `State` has the `weights` of its networks, and the `losses` of their training."""

    # Of the paper, which `steps="paper"` stands for.
    epochs: ClassVar[int]
    # Before the names of the frozen network's tensors, in files of published weights.
    frozen_prefix: ClassVar[str] = ""
    _kept: tuple[Any, str, Any] | None = None

    @property
    def losses_(self) -> torch.Tensor:
        """The loss of every step, float32 `[steps]`; of published weights there is none."""
        losses: torch.Tensor = self.state_.losses
        return losses

    @property
    def learned_(self) -> dict[str, int]:
        return {"parameters": sum(one.numel() for one in self.state_.weights if one.is_floating_point())}

    def load_weights(self, path: StrPath) -> Self:
        """Take networks that were trained elsewhere, in place of `fit`; then `calibrate` gives a threshold.

        Args:
            path: a safetensors file with the names of the code that trained them: anomalib 2.7, whose
                checkpoints have all in one, or the code that docs/design/training.md names for the method. A
                frozen network in it takes the place of `weights`. Pickled checkpoints are refused, with the
                line that converts them.

        The parameters must be those of the training. Until `calibrate(images)` is called with normal images
        nothing can be predicted or saved: the file has no statistics of this library.

        Raises ValueError for a detector that has learned already, for a file that has too little, too much,
        or other shapes, naming the first, for `resize="auto"` and a region of polygons; FileNotFoundError.
        """
        if self._state is not None:
            raise ValueError("load_weights: this detector has learned already; make a new one")
        if not self.geometry.is_decided:
            if self.geometry.resize == "auto":
                raise ValueError(
                    'load_weights: resize="auto" is decided by the images of fit; give the size of the '
                    "training, as resize=(h, w)"
                )
            raise ValueError(
                "load_weights: polygons of a region are drawn on the photographs of fit; give a mask"
            )
        file = WeightFile(path)
        frozen = file.taken(self.frozen_prefix) if self.frozen_prefix else {}
        try:
            twin = (
                type(self)(**arguments(self) | {"weights": frozen}).load_networks()
                if frozen
                else self._clone()
            )
        except ValueError as error:
            raise ValueError(
                f"load_weights: the frozen network in {file.path} does not fit: {error}"
            ) from error
        with default_modes(), torch.no_grad():
            state = twin._published(file, twin.geometry.output_size(_SIDE, _SIDE))
        self._frozen, self._state, self._reading = twin._frozen, state, nothing_read()
        if frozen:
            self.weights = frozen
        record(self, "load_weights")
        return self

    @abstractmethod
    def _published(self, file: WeightFile, size: tuple[int, int]) -> Any:
        """The state that a file holds, for images (h, w). Raises ValueError for a file that does not fit."""

    def _blank_maps(self, size: tuple[int, int]) -> list[torch.Tensor]:
        """The frozen network's feature maps of a black image, for their shapes."""
        extractor = self.network_
        return extractor(extractor.normalize(torch.zeros(1, 3, *size, dtype=torch.uint8)))

    def _placed(self, network: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        """The tensors of a network, on the method's device."""
        device = resolve_device(self.device) if self._frozen is None else self._frozen.network.device
        return tuple(tensor.detach().to(device) for tensor in network.state_dict().values())

    def _updates(self, steps: Steps, data: TrainingData) -> int:
        """How many `steps` are with these images."""
        return self.epochs * math.ceil(len(data) / data.batch_size) if isinstance(steps, str) else steps

    def _network_of(self, state: Any, make: Callable[[], Net], engine: str = "torch") -> Net:
        """The network of a state, as `make` makes it for an engine, kept from batch to batch."""
        if self._kept is None or self._kept[0] is not state.weights or self._kept[1] != engine:
            self._kept = state.weights, engine, make()
        network: Net = self._kept[2]
        return network

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes the network anew: what OpenVINO has compiled cannot be copied.
        return {name: value for name, value in vars(self).items() if name != "_kept"}


def checked_steps(steps: Any) -> Steps:
    """Raise TypeError or ValueError for what is neither a number of updates nor "paper"."""
    if not isinstance(steps, str):
        return whole_number("steps", steps, 1)
    if steps != "paper":
        raise ValueError(f'steps must be a whole number or "paper", got {steps!r}')
    return "paper"


def no_losses() -> torch.Tensor:
    """Of weights that were trained elsewhere."""
    return torch.empty(0)
