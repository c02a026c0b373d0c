"""Weights and feature maps by a formula of name and index, so that fixtures need none of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import nn


def waves(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Values in -1..1 that follow from the name and the place alone: float64."""
    count = int(torch.tensor(list(shape)).prod())
    phase = zlib.crc32(name.encode()) % 1000
    # Fractional parts of multiples of the golden ratio, spread evenly.
    turned = (torch.arange(count, dtype=torch.float64) + phase) * 0.6180339887498949
    return ((turned - turned.floor()) * 2 - 1).reshape(list(shape))


@torch.no_grad()
def fill(module: nn.Module, names: dict[str, str] | None = None) -> None:
    """Give a network weights and statistics by the formula; `names`: what its tensors are called there."""
    for own, tensor in module.state_dict().items():
        name = own if names is None else names[own]
        if tensor.is_floating_point() or name.endswith("permutation"):
            tensor.copy_(filled(name, tensor.shape))


def filled(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The values of one of its tensors: float64, of a permutation int64."""
    values = waves(name, shape)
    if name.endswith("permutation"):
        return values.argsort()
    if name.endswith("running_var"):
        return 1.0 + 0.5 * values
    if name.endswith("scale"):  # of a flow's step: gains around one
        return values + 2.0 * math.log(math.expm1(5.0))
    if len(shape) == 1 or "norm_" in name:  # of a norm: gains around one, the rest around zero
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    return values * (6.0 / math.prod(shape[1:])) ** 0.5


def feature_maps(channels: Sequence[int], grid: int, count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Of a teacher, after its ReLU: each with half the grid of the one before."""
    return [
        waves(f"map {number} {seed}", (count, own, grid >> number, grid >> number)).relu().float()
        for number, own in enumerate(channels)
    ]
