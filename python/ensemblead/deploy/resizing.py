"""Pillow's bilinear resize as matrix products, to the last bit.

Pillow resizes along one axis, then along the other, by weights of 22 binary places, and rounds to whole
numbers each time (`Resample.c`). Which axis is first depends on its version and on the sizes: it is asked.

Sums of so many places do not fit into float32, and sums next to a half are frequent: in plain float32 up to
one pixel in forty comes out a level off. So a weight is split into its upper and its lower 11 places, of
-2^10 to 2^10. Sums of either are whole numbers below 2^24, which float32 holds exactly, for images that
become up to 28 times smaller; beyond that it is likely, but not certain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ensemblead.images import Geometry

_PLACES = 22
_HALF = 1 << (_PLACES // 2)


class Resize(nn.Module):
    """Pixels in 0..255 as float32 `[B, 3, H, W]`, resized and cropped as a geometry has it."""

    rows: Tensor
    columns: Tensor

    def __init__(self, geometry: Geometry, native: tuple[int, int]) -> None:
        super().__init__()
        size = geometry.resized_size(*native)
        self._resizes = [have != want for have, want in zip(native, size, strict=True)]
        top, left, bottom, right = geometry.crop_in_resized(size)
        self._crops = (slice(top, bottom), slice(left, right))
        for name, have, want, crop in zip(("rows", "columns"), native, size, self._crops, strict=True):
            weights = pillow_weights(have, want)[crop] if have != want else np.zeros((0, 0), np.int64)
            upper = (weights + _HALF // 2) // _HALF
            split = np.concatenate([upper, weights - upper * _HALF])
            self.register_buffer(name, torch.from_numpy(split.astype(np.float32)))
        self._rows_first = self._is_rows_first(geometry, native)

    def forward(self, pixels: Tensor) -> Tensor:
        if self._rows_first:
            return self._across(self._down(pixels))
        return self._down(self._across(pixels))

    def _across(self, pixels: Tensor) -> Tensor:
        crop = self._crops[1]
        if not self._resizes[1]:
            return pixels[:, :, :, crop]
        sums, width = torch.matmul(pixels, self.columns.T), crop.stop - crop.start
        return _rounded(sums[:, :, :, :width], sums[:, :, :, width:])

    def _down(self, pixels: Tensor) -> Tensor:
        crop = self._crops[0]
        if not self._resizes[0]:
            return pixels[:, :, crop]
        sums, height = torch.matmul(self.rows, pixels), crop.stop - crop.start
        return _rounded(sums[:, :, :height], sums[:, :, height:])

    def _is_rows_first(self, geometry: Geometry, native: tuple[int, int]) -> bool:
        """Whether the Pillow that is installed changes the number of rows before that of columns."""
        if not all(self._resizes):
            return False
        noise = np.random.default_rng(0).integers(0, 256, (*native, 3), dtype=np.uint8)
        pixels = torch.from_numpy(noise).permute(2, 0, 1)[None].float()
        expected = geometry.apply(noise).transpose(2, 0, 1)
        off = [
            int(np.count_nonzero(found[0].numpy() != expected))
            for found in (self._down(self._across(pixels)), self._across(self._down(pixels)))
        ]
        return off[1] < off[0]


def _rounded(upper: Tensor, lower: Tensor) -> Tensor:
    """`floor((2^11 upper + lower) / 2^22 + 1/2)` of whole numbers."""
    carried = torch.floor((lower + _HALF * (_HALF // 2)) / _HALF)
    return torch.floor((upper + carried) / _HALF)


def pillow_weights(have: int, want: int) -> npt.NDArray[np.int64]:
    """Weights `[want, have]` of Pillow's antialiased bilinear filter along one axis, times 2^22."""
    scale = have / want
    support = max(scale, 1.0)
    weights = np.zeros((want, have))
    for row, place in zip(weights, range(want), strict=True):
        centre = (place + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(have, int(centre + support + 0.5))
        distances = np.abs(np.arange(first, last) - centre + 0.5) / support
        taps = np.maximum(0.0, 1.0 - distances)
        row[first:last] = taps / taps.sum()
    return np.floor(weights * (1 << _PLACES) + 0.5).astype(np.int64)
