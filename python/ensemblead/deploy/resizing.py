"""The bilinear resize of `kernels/resize.py` as standard operators, to the last bit.

Rows are summed first, then columns, by weights of 22 binary places, and rounded to whole numbers each time.

Sums of so many places do not fit into float32, and sums next to a half are frequent: in plain float32 up to
one pixel in forty comes out a level off. So a weight is split into its upper and its lower 11 places, of
-2^10 to 2^10. Sums of either are whole numbers below 2^24, which float32 holds exactly, for images that
become up to 28 times smaller; beyond that it is likely, but not certain.

A result has few pixels that it is a sum of. They are gathered, one after the other; matrix products, which
would be exact as well, take five times as long.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ensemblead.images import Geometry, Region
from ensemblead.kernels.filling import nearest_inside

_PLACES = 22
_HALF = 1 << (_PLACES // 2)
_ROWS, _COLUMNS = 2, 3  # of [B, 3, H, W]


class Fill(nn.Module):
    """Pixels `[B, 3, H, W]` in which those outside of a region have the colour of the nearest one inside."""

    sources: Tensor

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.register_buffer("sources", torch.from_numpy(nearest_inside(region.mask).ravel()))
        self._size = region.mask.shape

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = self._size
        return pixels.flatten(2).index_select(2, self.sources).reshape(-1, 3, height, width)


class Resize(nn.Module):
    """Pixels in 0..255 as float32 `[B, 3, H, W]`, resized and cropped as a geometry has it."""

    def __init__(self, geometry: Geometry, native: tuple[int, int]) -> None:
        super().__init__()
        size = geometry.resized_size(*native)
        top, left, bottom, right = geometry.crop_in_resized(size)
        self.rows = _Axis(_ROWS, native[0], size[0], slice(top, bottom))
        self.columns = _Axis(_COLUMNS, native[1], size[1], slice(left, right))

    def forward(self, pixels: Tensor) -> Tensor:
        resized: Tensor = self.rows(self.columns(pixels))
        return resized


class _Axis(nn.Module):
    """The resize along one axis, and the crop."""

    indices: Tensor
    upper: Tensor
    lower: Tensor

    def __init__(self, axis: int, have: int, want: int, crop: slice) -> None:
        super().__init__()
        self._axis, self._crop = axis, crop
        self._resizes = have != want
        if self._resizes:
            indices, weights = (own[crop].T for own in _taps(have, want))
            upper = (weights + _HALF // 2) // _HALF
            self.register_buffer("indices", torch.from_numpy(indices.copy()))
            for name, part in (("upper", upper), ("lower", weights - upper * _HALF)):
                # [T, 1, w] or [T, h, 1]
                values = torch.from_numpy(part.astype(np.float32)).unsqueeze(-1 if axis == _ROWS else 1)
                self.register_buffer(name, values)

    def forward(self, pixels: Tensor) -> Tensor:
        if not self._resizes:
            return pixels.narrow(self._axis, self._crop.start, self._crop.stop - self._crop.start)
        upper = lower = torch.zeros(())
        for indices, high, low in zip(self.indices, self.upper, self.lower, strict=True):
            taken = pixels.index_select(self._axis, indices)
            upper, lower = upper + taken * high, lower + taken * low
        # floor((2^11 upper + lower) / 2^22 + 1/2)
        carried = torch.floor((lower + _HALF * (_HALF // 2)) / _HALF)
        return torch.floor((upper + carried) / _HALF)


def _taps(have: int, want: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of the antialiased bilinear filter along one axis, for every result the pixels that it is a sum of,
    `[want, T]`, and their weights, times 2^22.
    """
    scale = have / want
    support = max(scale, 1.0)
    centres = (np.arange(want) + 0.5) * scale
    first = np.maximum(0, (centres - support + 0.5).astype(np.int64))
    last = np.minimum(have, (centres + support + 0.5).astype(np.int64))
    places = first[:, None] + np.arange(int((last - first).max()))
    shares = np.maximum(0.0, 1.0 - np.abs(places - centres[:, None] + 0.5) / support)
    shares *= places < last[:, None]
    weights = np.floor(shares / shares.sum(1, keepdims=True) * (1 << _PLACES) + 0.5)
    return np.minimum(places, have - 1), weights.astype(np.int64)
