"""A small network with three scales, and small trained detectors: on its feature maps, and on pixels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import ensemblead as ead
from ensemblead.detectors import Method, Run, Scores, Seen, TrainingData
from ensemblead.detectors.training.loop import Recipe, Tensors, train
from ensemblead.networks.modes import own_generator

LAYERS = ("one", "two", "three")


class Pyramid(nn.Module):
    """Layers of strides 4, 8 and 16 with weights from a seed."""

    def __init__(self, seed: int = 0, channels: tuple[int, int, int] = (4, 6, 8)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        first, second, third = channels
        self.one = nn.Sequential(nn.Conv2d(3, first, 4, 4), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(first, second, 2, 2), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(second, third, 2, 2), nn.ReLU())
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(images)))


def distilled(net: nn.Module | None = None, **options: Any) -> ead.ReverseDistillation:
    """Reverse Distillation on a `Pyramid`."""
    defaults: dict[str, Any] = {"steps": 12, "batch_size": 4, "resize": None, "device": "cpu"}
    return ead.ReverseDistillation(net or Pyramid(), LAYERS, **(defaults | options))


@dataclass(frozen=True)
class Filter:
    """A convolution, and the loss of every step."""

    weight: torch.Tensor
    losses: torch.Tensor


class Denoiser(Method):
    """One convolution that takes noise off pixels; it is trained on pixels, each with noise of its own."""

    State = Filter

    def __init__(
        self,
        *,
        steps: int = 12,
        learning_rate: float = 0.01,
        resize: int | None = None,
        image_size: int | None = None,
        batch_size: int = 4,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(locals())
        self.steps, self.learning_rate = steps, learning_rate

    def train(self, data: TrainingData, run: Run) -> Filter:
        recipe = Denoising(self, data)
        losses = train(recipe, data, run)
        return Filter(recipe.module.weight.detach(), losses)

    def scores(self, state: Filter, seen: Seen) -> Scores:
        pixels = seen.pixels.float() / 255.0
        apart = (nn.functional.conv2d(pixels, state.weight, padding=1) - pixels).square().mean(1)
        return Scores(apart)


class Denoising(Recipe):
    module: nn.Conv2d

    def __init__(self, method: Denoiser, data: TrainingData) -> None:
        with own_generator(method.seed):
            self.module = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.steps, self.learning_rate, self._data = method.steps, method.learning_rate, data

    def batch(self, step: int) -> Tensors:
        pixels = self._data.pixels(self._data.drawn(step)).float() / 255.0
        shape = tuple(pixels.shape[1:])
        noise = [torch.from_numpy(own.normal(0, 0.1, shape)) for own in self._data.generators(step)]
        return pixels, pixels + torch.stack(noise).float()

    def forward(self, batch: Tensors) -> Tensors:
        pixels, noisy = batch
        return pixels, self.module(noisy)

    def loss(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        pixels, cleaned = outputs
        return {
            "square": (pixels - cleaned).square().mean(),
            "size": 1e-4 * self.module.weight.square().sum(),
        }


def stop_at(step: int, act: Callable[[], None] | None = None) -> Callable[[str, int, int], None]:
    """Progress that interrupts the training at the end of its update number `step`, counted over all."""
    calls = itertools.count(1)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "train" and next(calls) == step:
            if act is None:
                raise KeyboardInterrupt
            act()

    return progress
