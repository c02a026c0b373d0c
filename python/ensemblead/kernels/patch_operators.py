"""Patch aggregation as standard operators of torch, for graphs that other runtimes read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemblead.kernels.patches import Mode, pooled_dims

Interpolation = Literal["bilinear", "nearest"]


class PatchOperators(nn.Module):
    """`aggregate_patches` for layers of given channels: maps `[B, C_l, H_l, W_l]` to `[B, H_0, W_0, D]`.

    Each layer is pooled at its own resolution and resized last, as the kernels do it. Bins of channels are
    means of a few of them, so that neither windows nor wide matrices are ever made.
    """

    def __init__(
        self,
        channels: Sequence[int],
        grid: tuple[int, int],
        *,
        patch_size: int,
        pretrain_dim: int | Sequence[int] | Literal["auto"],
        target_dim: int,
        mode: Mode,
    ) -> None:
        super().__init__()
        self._grid = grid
        dims, target = list(channels), sum(channels)
        if mode == "adaptive":
            dims, target = pooled_dims(pretrain_dim, target_dim, channels)
        self.layers = nn.ModuleList(
            _AdaptiveMeans(count, dim, patch_size if mode == "adaptive" else 1)
            for count, dim in zip(channels, dims, strict=True)
        )
        # The windows' own means come first where each channel is a bin.
        self.windows = nn.AvgPool2d(patch_size, 1, patch_size // 2)
        self._averages = mode == "concat" and patch_size > 1
        self.joined = _AdaptiveMeans(sum(dims), target, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pooled = []
        for layer, own in zip(self.layers, maps, strict=True):
            values = layer(self.windows(own) if self._averages else own)
            pooled.append(resized(values, self._grid))
        joined: Tensor = self.joined(torch.cat(pooled, 1))
        return joined.permute(0, 2, 3, 1)


def resized(values: Tensor, grid: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """`[B, C, h, w]` on another grid, bilinear with `align_corners=False`, or by the nearest position."""
    if tuple(map(int, values.shape[2:])) == grid:
        return values
    if interpolation == "nearest":
        return functional.interpolate(values, grid, mode="nearest")
    return functional.interpolate(values, grid, mode="bilinear", align_corners=False)


class _AdaptiveMeans(nn.Module):
    """Adaptive means over flattened (channel, ky, kx) values of windows: `[B, C, h, w]` to `[B, P, h, w]`.

    Bin j covers the values from `floor(j n / P)` to `ceil((j + 1) n / P)` of `n = C * side^2`. Where bins are
    whole channels that is the mean of windows, then of channels. In general each bin gathers the channels
    that it touches, and weights their windows.
    """

    indices: Tensor
    weights: Tensor

    def __init__(self, channels: int, dim: int, side: int) -> None:
        super().__init__()
        self._channels, self._dim, self._side = channels, dim, side
        self._whole = channels % dim == 0
        if not self._whole:
            indices, weights = _taps(channels, dim, side)
            self.register_buffer("indices", torch.from_numpy(indices.reshape(-1)))
            self.register_buffer("weights", torch.from_numpy(weights.reshape(-1, 1, side, side)))

    def forward(self, values: Tensor) -> Tensor:
        side, dim = self._side, self._dim
        if self._whole:
            if side > 1:
                values = functional.avg_pool2d(values, side, 1, side // 2)
            if self._channels == dim:
                return values
            return _grouped(values, dim).mean(2)
        values = values.index_select(1, self.indices)
        if side == 1:
            values = values * self.weights[:, 0]
        else:
            values = functional.conv2d(values, self.weights, padding=side // 2, groups=len(self.weights))
        return _grouped(values, dim).sum(2)


def _grouped(values: Tensor, groups: int) -> Tensor:
    """`[B, C, h, w]` to `[B, groups, C / groups, h, w]`."""
    channels, height, width = map(int, values.shape[1:])
    return values.reshape(-1, groups, channels // groups, height, width)


def _taps(channels: int, dim: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For every bin the channels that it touches, int64 `[P, T]`, and the weights of their windows, float32
    `[P, T, side, side]`.
    """
    window = side * side
    total = channels * window
    starts = np.arange(dim) * total // dim
    ends = -(-(np.arange(dim) + 1) * total // dim)
    first = starts // window
    touched = int(((ends - 1) // window - first).max()) + 1
    weights = np.zeros((dim, touched * window), dtype=np.float32)
    for row, start, end in zip(weights, starts - first * window, ends - first * window, strict=True):
        row[start:end] = 1.0 / (end - start)
    indices = np.minimum(first[:, None] + np.arange(touched), channels - 1)
    return indices, weights.reshape(dim, touched, side, side)
