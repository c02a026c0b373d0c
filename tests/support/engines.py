"""Networks and detectors for tests of engines."""

from __future__ import annotations

from typing import Any

import torch
from support.networks import TinyNet
from torch import nn

import ensemblead as ead
from ensemblead.networks.engines.engine import Part

LAYERS = ("first", "second")
OPTIONS: dict[str, Any] = {
    "image_size": None,
    "resize": None,
    "coreset_fraction": 0.05,
    "batch_size": 4,
    "device": "cpu",
}


class Normed(TinyNet):
    """With a batch norm, which both engines fold, and a layer that writes into what came before it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.norm = nn.BatchNorm2d(10)
        self.norm.running_mean = torch.linspace(-0.5, 0.5, 10)
        self.norm.running_var = torch.linspace(0.5, 2.0, 10)
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(self.second(self.act(self.norm(self.first(images)))))  # type: ignore[no-any-return]


class Untraceable(TinyNet):
    """Refuses to be traced."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not while traced")
        return super().forward(images)


def detector_of(module: Any = None, layers: tuple[str, ...] = LAYERS, **options: Any) -> ead.PatchCore:
    return ead.PatchCore(Normed() if module is None else module, layers, **(OPTIONS | options))


def part_of(module: nn.Module, precision: str = "float32", dtype: torch.dtype = torch.float32) -> Part:
    return Part(module.eval(), LAYERS, "Normed", torch.device("cpu"), dtype, precision)
