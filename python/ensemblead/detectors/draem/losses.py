"""DRAEM's losses, as the authors compute them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2  # of values in 0..1
_SMOOTHING = 1e-5
_GAMMA = 2


def dissimilarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """One minus the structural similarity (SSIM) of images `[B, C, H, W]`, its mean over all values.

    A Gaussian window of 11 x 11 pixels with sigma 1.5 in each channel; zeros lie outside of images.
    """
    moments = torch.cat([first, second, first * first, second * second, first * second])
    window = _window(first.device)
    planes = moments.flatten(0, 1)[:, None]
    planes = functional.conv2d(planes, window[..., None], padding=(_WINDOW // 2, 0))
    planes = functional.conv2d(planes, window[None], padding=(0, _WINDOW // 2))
    mean1, mean2, square1, square2, product = planes.view(moments.shape).chunk(5)
    means = mean1 * mean2
    squares = mean1 * mean1 + mean2 * mean2
    similarity = ((2 * means + _C1) * (2 * (product - means) + _C2)) / (
        (squares + _C1) * (square1 + square2 - squares + _C2)
    )
    return 1.0 - similarity.mean()


@lru_cache(maxsize=8)
def _window(device: torch.device) -> torch.Tensor:
    """The Gaussian along one axis: `[1, 1, 11]`."""
    places = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    taps = torch.exp(-0.5 * (places / _SIGMA) ** 2)
    return (taps / taps.sum()).float().to(device)[None, None]


def focal_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Of logits `[B, 2, H, W]` and masks `[B, 1, H, W]` of zeros and ones: the mean over pixels.

    Both classes count alike. The smoothing caps a pixel's loss at about 10.8, which matters while the
    network is wrong.
    """
    wanted = torch.cat([1.0 - masks, masks], 1).clamp(_SMOOTHING, 1.0 - _SMOOTHING)
    right = (wanted * logits.softmax(1)).sum(1) + _SMOOTHING
    return -((1.0 - right) ** _GAMMA * right.log()).mean()
