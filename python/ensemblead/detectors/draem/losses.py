"""DRAEM's losses, as the authors compute them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from ensemblead.common.precision import exact_products

_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # of values in 0..1
_SMOOTHING = 1e-5
_GAMMA = 2


def dissimilarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One minus the structural similarity (SSIM) of images `[B, C, H, W]`, its mean over all values.

    A Gaussian window of 11 x 11 pixels with sigma 1.5 in each channel; zeros lie outside of images.
    """
    moments = torch.stack([first, second, first * first, second * second, first * second])
    rows, columns = (_window(side, first.device) for side in first.shape[2:])
    # Two matrix products: a convolution of single planes takes ten times as long.
    with exact_products():
        mean1, mean2, square1, square2, product = torch.matmul(torch.matmul(rows, moments), columns)
    means = mean1 * mean2
    squares = mean1 * mean1 + mean2 * mean2
    similarity: torch.Tensor = ((2 * means + _C1) * (2 * (product - means) + _C2)) / (
        (squares + _C1) * (square1 + square2 - squares + _C2)
    )
    return 1.0 - similarity.mean()


@lru_cache(maxsize=16)
def _window(side: int, device: torch.device) -> torch.Tensor:
    """The Gaussian along one axis as a symmetric matrix `[side, side]`."""
    places = np.arange(side)
    apart = np.abs(places[:, None] - places)
    taps = np.exp(-0.5 * (apart / _SIGMA) ** 2) * (apart <= _RADIUS)
    total = 1.0 + 2.0 * sum(math.exp(-0.5 * (away / _SIGMA) ** 2) for away in range(1, _RADIUS + 1))
    with torch.inference_mode(False):  # it is kept, and training cannot use a tensor of inference mode
        return torch.from_numpy(taps / total).to(device, torch.float32)


def focal_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Of logits `[B, 2, H, W]` and masks `[B, 1, H, W]` of zeros and ones: the mean over pixels.

    Both classes count alike. The smoothing caps a pixel's loss at about 10.8, which matters while the
    network is wrong.
    """
    wanted = torch.cat([1.0 - masks, masks], 1).clamp(_SMOOTHING, 1.0 - _SMOOTHING)
    right = (wanted * logits.softmax(1)).sum(1) + _SMOOTHING
    return -((1.0 - right) ** _GAMMA * right.log()).mean()
