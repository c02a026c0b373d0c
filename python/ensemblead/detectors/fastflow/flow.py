"""Normalizing flows: invertible networks that turn feature maps of normal images into standard normal noise.

A flow has one map `[B, C, H, W]` of a layer, which it first normalises as a whole. Then come its steps. With
`c1 = ceil(C / 2)` channels in the first half and `c2` in the second, a step is

    s, t = 2 tanh(0.1 net(first)[:c2]), 0.1 net(first)[c2:]     net: convolution, ReLU, convolution
    y    = gain * [first, second * exp(s) + t] + offset         gain = 0.1 softplus(scale, beta=0.5)
    out  = y[permutation]                                       of the channels

and the logarithm of the determinant of its Jacobian is `sum(s) + H W sum(ln gain)`.

Beside the convolutions a step's time is memory traffic. So channels are last, and a map is a matrix of
`B H W` rows. Factors and offsets of s and t are part of the second convolution's weights. The rest is one
function with a backward pass of its own, which works in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ensemblead.common.validation import positive_number, whole_number
from ensemblead.detectors.training.convolution import SameConv2d, same_conv2d
from ensemblead.networks.modes import own_generator

Maps = Sequence[torch.Tensor]
# Both with softplus: 0.1 softplus(_UNIT_GAIN, beta=0.5) is 1.
_BETA = 0.5
_UNIT_GAIN = 2.0 * math.log(math.expm1(5.0))


@dataclass(frozen=True)
class Plan:
    """The architecture of the flows, one per layer.

    Attributes:
        channels, rows, columns: of the layers' feature maps.
        steps: of every flow.
        hidden_ratio: channels between a step's two convolutions, as a share of its first half, rounded down.
        conv3x3_only: False: every second step has 1x1 convolutions.
        norm_affine: whether the normalisation of a map has a weight and a bias for every value.
    """

    channels: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    steps: int
    hidden_ratio: float
    conv3x3_only: bool
    norm_affine: bool

    def __post_init__(self) -> None:
        for name, minimum in (("channels", 2), ("rows", 1), ("columns", 1)):
            if len([whole_number(name, value, minimum) for value in getattr(self, name)]) != len(self.rows):
                raise ValueError(f"{name} must be {len(self.rows)} numbers, got {getattr(self, name)}")
        whole_number("steps", self.steps, 1)
        positive_number("hidden_ratio", self.hidden_ratio)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.rows, self.columns, strict=True))


class Flows(nn.Module):
    """A flow for each layer."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.flows = nn.ModuleList(
            Flow(channels, grid, plan) for channels, grid in zip(plan.channels, plan.grids, strict=True)
        )

    def forward(self, maps: Maps) -> tuple[torch.Tensor, ...]:
        """Of feature maps `[B, C, H, W]` first the latent maps, then the log-determinants `[B]`: float32."""
        latents, determinants = zip(
            *(flow(own) for flow, own in zip(self.flows, maps, strict=True)), strict=True
        )
        return (*latents, *determinants)


class Flow(nn.Module):
    """The normalisation and the steps of one layer."""

    def __init__(self, channels: int, grid: tuple[int, int], plan: Plan) -> None:
        super().__init__()
        self.shape = (*grid, channels)
        self.norm_weight = nn.Parameter(torch.ones(self.shape)) if plan.norm_affine else None
        self.norm_bias = nn.Parameter(torch.zeros(self.shape)) if plan.norm_affine else None
        self.steps = nn.ModuleList(
            Step(channels, 3 if plan.conv3x3_only or number % 2 == 0 else 1, plan.hidden_ratio)
            for number in range(plan.steps)
        )

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = values.float().permute(0, 2, 3, 1)
        rows = functional.layer_norm(rows, self.shape, self.norm_weight, self.norm_bias)
        batch, height, width, channels = rows.shape
        rows, (c1, _) = rows.reshape(-1, channels), halves_of(channels)
        first, second = rows[:, :c1].contiguous(), rows[:, c1:].contiguous()
        determinants = first.new_zeros(batch)
        for step in self.steps:
            first, second, own = step(first, second, (batch, height, width))
            determinants = determinants + own
        latent = torch.cat((first, second), 1).view(batch, height, width, channels)
        return latent.permute(0, 3, 1, 2), determinants


class Step(nn.Module):
    """See above. The halves are float32 `[B H W, c1]` and `[B H W, c2]`."""

    permutation: torch.Tensor

    def __init__(self, channels: int, kernel: int, hidden_ratio: float) -> None:
        super().__init__()
        self.halves = halves_of(channels)
        hidden = max(1, int(self.halves[0] * hidden_ratio))
        self.conv1 = SameConv2d(self.halves[0], hidden, kernel)
        self.conv2 = SameConv2d(hidden, 2 * self.halves[1], kernel)
        self.scale = nn.Parameter(torch.full((channels,), _UNIT_GAIN))
        self.offset = nn.Parameter(torch.zeros(channels))
        self.register_buffer("permutation", torch.randperm(channels))

    def forward(
        self, first: torch.Tensor, second: torch.Tensor, shape: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The halves of the output, and the log-determinants `[B]`; `shape`: B, H and W."""
        c1, c2 = self.halves
        gain = gain_of(self.scale)
        # 2 tanh(0.1 a) is 4 sigmoid(0.2 a) - 2, which takes less time.
        factors = torch.cat((gain.new_full((c2,), 0.2), 0.1 * gain[c1:]))
        offsets = torch.cat((gain.new_zeros(c2), self.offset[c1:]))
        own_bias: Any = self.conv2.bias
        weight = self.conv2.weight * factors[:, None, None, None]
        bias = torch.addcmul(offsets, factors, own_bias)
        hidden = self.conv1(first.view(*shape, c1).permute(0, 3, 1, 2)).relu_()
        net = same_conv2d(hidden, weight, bias)
        net = net.permute(0, 2, 3, 1).reshape(-1, 2 * c2)
        batch, height, width = shape
        halves: tuple[torch.Tensor, ...] = _Coupling.apply(
            first, second, net, gain, self.offset[:c1], self.permutation, batch
        )
        return halves[0], halves[1], halves[2] + height * width * gain.log().sum()


class _Coupling(torch.autograd.Function):
    """A step without its convolutions: the output's halves, and `sum(s)` of every image.

    Half of `net` is what `4 sigmoid - 2` turns into s, the other half is `gain * t + offset`.
    """

    @staticmethod
    def forward(
        ctx: Any, first: torch.Tensor, second: torch.Tensor, *others: Any
    ) -> tuple[torch.Tensor, ...]:
        net, gain, offset, permutation, batch = others
        (rows, c1), c2 = first.shape, second.shape[1]
        values = first.new_empty(rows, c1 + c2)
        torch.addcmul(offset, first, gain[:c1], out=values[:, :c1])
        # A quarter of s.
        quarter = net[:, :c2].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        quarter.sigmoid_().sub_(0.5)
        growth = torch.add(gain[c1:].log(), quarter, alpha=4.0).exp_()  # gain * exp(s)
        torch.addcmul(net[:, c2:], second, growth, out=values[:, c1:])
        ctx.save_for_backward(first, second, quarter, growth, gain, permutation)
        ctx.dtype = net.dtype
        halves = (values.index_select(1, own) for own in permutation.split((c1, c2)))
        return (*halves, quarter.view(batch, -1).sum(1).mul_(4.0))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, second, quarter, growth, gain, permutation = ctx.saved_tensors
        (rows, c1), c2 = first.shape, second.shape[1]
        merged, of_sums = torch.cat(gradients[:2], 1), gradients[2]
        of_first, of_second = (merged.index_select(1, own) for own in permutation.argsort().split((c1, c2)))
        of_net = torch.empty(rows, 2 * c2, dtype=ctx.dtype, device=first.device)
        of_net[:, c2:] = of_second
        through = of_second.mul_(growth)
        of_s = through * second
        of_gain = torch.cat(((of_first * first).sum(0), of_s.sum(0).div_(gain[c1:])))
        of_s.view(len(of_sums), -1).add_(of_sums[:, None])
        # The derivative of s is 1 - s^2 / 4.
        slope = torch.addcmul(of_s.new_ones(()), quarter, quarter, value=-4.0)
        of_net[:, :c2] = of_s.mul_(slope)
        of_offset = of_first.sum(0)
        return of_first.mul_(gain[:c1]), through, of_net, of_gain, of_offset, None, None


def gain_of(scale: torch.Tensor) -> torch.Tensor:
    """The gain of a step's channels."""
    return 0.1 * functional.softplus(scale, beta=_BETA)


def halves_of(channels: int) -> tuple[int, int]:
    """`c1` and `c2`."""
    return channels - channels // 2, channels // 2


def new_flows(plan: Plan, seed: int) -> Flows:
    """Untrained flows: torch's own initialisation, and permutations from the seed."""
    with own_generator(seed):
        return Flows(plan)


def empty_flows(plan: Plan) -> Flows:
    """Flows without values, to be given some."""
    with torch.device("meta"):
        return Flows(plan)
