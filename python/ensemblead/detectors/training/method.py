"""What methods have in common whose networks the engine trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch

from ensemblead.common.validation import whole_number
from ensemblead.detectors.method import Method
from ensemblead.detectors.training.data import TrainingData

Net = TypeVar("Net")
Steps = int | Literal["paper"]


class TrainedMethod(Method, abstract=True):
    """A method whose `State` has the `weights` of its networks, and the `losses` of their training."""

    # Of the paper, which `steps="paper"` stands for.
    epochs: ClassVar[int]
    _kept: tuple[Any, Any] | None = None

    @property
    def losses_(self) -> torch.Tensor:
        """The loss of every step, float32 `[steps]`."""
        losses: torch.Tensor = self.state_.losses
        return losses

    @property
    def learned_(self) -> dict[str, int]:
        return {"parameters": sum(one.numel() for one in self.state_.weights if one.is_floating_point())}

    def _updates(self, steps: Steps, data: TrainingData) -> int:
        """How many `steps` are with these images."""
        return self.epochs * math.ceil(len(data) / data.batch_size) if isinstance(steps, str) else steps

    def _network_of(self, state: Any, make: Callable[[], Net]) -> Net:
        """The network of a state, kept from batch to batch."""
        if self._kept is None or self._kept[0] is not state.weights:
            self._kept = state.weights, make()
        network: Net = self._kept[1]
        return network


def checked_steps(steps: Any) -> Steps:
    """Raise TypeError or ValueError for what is neither a number of updates nor "paper"."""
    if not isinstance(steps, str):
        return whole_number("steps", steps, 1)
    if steps != "paper":
        raise ValueError(f'steps must be a whole number or "paper", got {steps!r}')
    return "paper"
