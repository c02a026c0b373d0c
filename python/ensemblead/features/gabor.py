"""A fixed bank of Gabor filters: texture and colour at three scales, without any weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


class GaborBank(nn.Module):
    """RGB in 0..1 `[B, 3, H, W]` -> features at strides 4, 8 and 16, as `layer1`, `layer2`, `layer3`.

    The image is turned into opponent colours and into a pyramid (5-tap binomial filter before every
    halving). Each layer sees its pyramid level through quadrature pairs of Gabor filters and keeps

    - the local energy of every orientation and wavelength, `sqrt(even^2 + odd^2)`, averaged over a
      neighbourhood: texture, blind to phase (Fogel and Sagi 1989; Jain and Farrokhnia 1991);
    - the local mean and standard deviation of the three opponent colours.

    Everything is a fixed function: no randomness, no training, nothing to download. A network in half
        precision is
    computed in float32 inside and rounded at the end.
    """

    def __init__(self, orientations: int = 6, wavelengths: tuple[float, ...] = (3.0, 6.0)) -> None:
        super().__init__()
        self.stem = _OpponentColours()
        self.layer1 = _Scale(orientations, wavelengths)
        self.layer2 = _Scale(orientations, wavelengths)
        self.layer3 = _Scale(orientations, wavelengths)

    def forward(self, images: Tensor) -> Tensor:
        level = _halve(self.stem(images.float()))
        self.layer1(level)
        level = _halve(level)
        self.layer2(level)
        features: Tensor = self.layer3(_halve(level))
        return features


class _OpponentColours(nn.Module):
    """Luminance, red against green, yellow against blue: an orthonormal turn of RGB."""

    def forward(self, images: Tensor) -> Tensor:
        r, g, b = images.unbind(1)
        return torch.stack(
            ((r + g + b) / math.sqrt(3.0), (r - g) / math.sqrt(2.0), (r + g - 2.0 * b) / math.sqrt(6.0)),
            dim=1,
        )


class _Scale(nn.Module):
    """Energies and colour statistics of one pyramid level, at half its resolution."""

    even: Tensor
    odd: Tensor

    def __init__(self, orientations: int, wavelengths: tuple[float, ...]) -> None:
        super().__init__()
        even, odd = gabor_filters(orientations, wavelengths)
        # Not persistent: a fixed function has no weights to store.
        self.register_buffer("even", even[:, None], persistent=False)
        self.register_buffer("odd", odd[:, None], persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        batch, channels, height, width = level.shape
        energy = self._energy(level.reshape(batch * channels, 1, height, width))
        energy = energy.reshape(batch, -1, height, width)
        mean = _smooth(level)
        deviation = (_smooth(level * level) - mean * mean).clamp_min(0.0).add(1e-6).sqrt()
        return torch.cat([_halve(energy), mean[..., ::2, ::2], deviation[..., ::2, ::2]], dim=1)

    def _energy(self, planes: Tensor) -> Tensor:
        margin = self.even.shape[-1] // 2
        padded = functional.pad(planes, (margin,) * 4, mode="replicate")
        even, odd = functional.conv2d(padded, self.even), functional.conv2d(padded, self.odd)
        return (even * even + odd * odd).add(1e-8).sqrt()


def gabor_filters(orientations: int, wavelengths: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Quadrature pairs, each `[orientations * wavelengths, K, K]` float32: zero mean, unit gain at their
    own wave.
    """
    radius = math.ceil(1.2 * max(wavelengths))
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    even, odd = [], []
    for wavelength in wavelengths:
        sigma = 0.45 * wavelength
        window = torch.exp(-(x * x + y * y) / (2.0 * sigma * sigma))
        for k in range(orientations):
            angle = math.pi * k / orientations
            phase = 2.0 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
            cosine, sine = torch.cos(phase), torch.sin(phase)
            # Without its mean the even filter is blind to brightness, as the odd one is by symmetry.
            real = window * (cosine - (window * cosine).sum() / window.sum())
            imaginary = window * sine
            even.append(real / (real * cosine).sum())
            odd.append(imaginary / (imaginary * sine).sum())
    return torch.stack(even).float(), torch.stack(odd).float()


def _smooth(planes: Tensor) -> Tensor:
    kernel = torch.tensor(_BINOMIAL, dtype=planes.dtype, device=planes.device) / 16.0
    channels = planes.shape[1]
    planes = functional.pad(planes, (2, 2, 2, 2), mode="replicate")
    planes = functional.conv2d(planes, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return functional.conv2d(planes, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)


def _halve(planes: Tensor) -> Tensor:
    return _smooth(planes)[..., ::2, ::2]
