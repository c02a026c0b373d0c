"""Convolutions of networks that are trained: on a CPU in float32 those of 3 x 3 by the core's kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ensemblead.kernels.convolution import CHANNELS, convolve, taps_gradient

# Tiles of 4 x 4 positions from which on the kernels are faster: they transform the weights of every call.
_LEAST_TILES = 64


class SameConv2d(nn.Conv2d):
    """A convolution of stride 1 that keeps the grid; its kernel has odd sides."""

    def __init__(self, source: int, target: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(source, target, kernel, padding=kernel // 2, bias=bias)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return same_conv2d(values, self.weight, self.bias)


def same_conv2d(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution of `[B, C, H, W]` with `[O, C, k, k]` that keeps the grid, k odd.

    In training in float32 on a CPU, 3 x 3 kernels of channels in multiples of 16 run by Winograd's method,
    whose rounding is within about 1e-5 of the largest value. All others are torch's.
    """
    if _suits(values, weight):
        result: torch.Tensor = _Winograd.apply(values, weight, bias)
        return result
    return functional.conv2d(values, weight, bias, padding=weight.shape[2] // 2)


def _suits(values: torch.Tensor, weight: torch.Tensor) -> bool:
    if not torch.is_grad_enabled() or not (weight.requires_grad or values.requires_grad):
        return False
    if values.ndim != 4 or values.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        return False  # a graph would hold the result in place of the kernel
    if values.dtype != torch.float32 or weight.dtype != torch.float32 or weight.shape[2:] != (3, 3):
        return False
    batch, _, height, width = values.shape
    tiles = batch * math.ceil(height / 4) * math.ceil(width / 4)
    return tiles >= _LEAST_TILES and weight.shape[0] % CHANNELS == 0 and weight.shape[1] % CHANNELS == 0


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(values, weight)
        # A kernel takes no array that requires gradients, and is not told of them here.
        taps = weight.detach().permute(2, 3, 1, 0).contiguous()
        own_bias = None if bias is None else bias.detach().contiguous()
        return _convolved(values.detach(), taps, own_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        gradients = gradients.detach()
        rows = _last(gradients)
        of_values = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.detach().flip(2, 3).permute(2, 3, 0, 1).contiguous()
            of_values = _convolved(gradients, turned)
        if ctx.needs_input_grad[1]:
            of_weight = taps_gradient(_last(values.detach()), rows).permute(3, 2, 0, 1)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum((0, 1, 2))
        return of_values, of_weight, of_bias


def _convolved(values: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`[B, O, H, W]`, no view: what follows may work in place."""
    batch, _, height, width = values.shape
    shape = (batch, taps.shape[3], height, width)
    layout = torch.channels_last
    result = torch.empty(shape, dtype=torch.float32, device=values.device, memory_format=layout)
    convolve(_last(values), taps, bias, out=result.permute(0, 2, 3, 1))
    return result


def _last(values: torch.Tensor) -> torch.Tensor:
    """With channels last, `[B, H, W, C]`."""
    return values.permute(0, 2, 3, 1).contiguous()
