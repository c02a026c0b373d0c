"""A fixed bank of Gabor filters: texture and colour at three scales, without any weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_GAIN = 50.0  # contrasts well above 1/50 are compressed, those below count as they are
_DARK = 0.1  # luminance under which contrast is no longer taken relative to it
_MEAN_WEIGHT = (
    3.0  # of colours and of second-order energies, whose range is smaller than that of the first order
)


class GaborBank(nn.Module):
    """RGB in 0..1 `[B, 3, H, W]` -> features at strides 4, 8 and 16, as `layer1`, `layer2`, `layer3`.

    The image is turned into opponent colours and into a pyramid (5-tap binomial filter before every halving).
    Each layer sees its pyramid level through quadrature pairs of Gabor filters and puts out

    - the local energy `sqrt(even^2 + odd^2)` of every colour, wavelength and orientation: texture, blind to
      phase (Jain and Farrokhnia, *Unsupervised texture segmentation using Gabor filters*, 1991);
    - the local mean and standard deviation of the three opponent colours;
    - from `layer2` on, the energies of the finer layer's luminance energies: how texture itself varies, the
      second order of a scattering transform (Bruna and Mallat, 2013).

    Energies and deviations are relative to the local luminance and compressed by a logarithm, so that
    lighting counts little and faint texture enough. Everything is a fixed function: no randomness, no
    training, nothing to download. After a cast to half precision it still computes in float32 and rounds what
    a layer puts out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _OpponentColours()
        self.layer1 = _Scale()
        self.layer2 = _Scale()
        self.layer3 = _Scale()

    def forward(self, images: Tensor) -> Tensor:
        level = _halve(self.stem(images.float()))
        features = self.layer1(level)
        for layer in (self.layer2, self.layer3):
            level = _halve(level)
            # The first channels are luminance's energies, already at this level's resolution.
            features = layer(level, features[:, : len(layer.even)].float())
        return torch.as_tensor(features)


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

    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Plain attributes, not buffers: a cast must not round the filters, or they would see brightness.
        self.even, self.odd = gabor_filters(6, (3.0, 6.0))
        self.coarse_even, self.coarse_odd = gabor_filters(4, (4.0,))
        # The filters where they were last needed: brought there anew, every batch would wait for the copy.
        self._placed: tuple[Tensor, ...] = (self.even, self.odd, self.coarse_even, self.coarse_odd)
        # Empty, but it follows every cast and every move.
        self.register_buffer("precision", torch.empty(0, dtype=torch.float32), persistent=False)

    def forward(self, level: Tensor, finer: Tensor | None = None) -> Tensor:
        if self._placed[0].device != level.device:
            self._placed = tuple(filters.to(level.device) for filters in self._placed)
        even, odd, coarse_even, coarse_odd = self._placed
        mean = _smooth(level)
        deviation = (_smooth(level * level) - mean * mean).clamp_min(0.0).add(1e-6).sqrt()
        luminance = _smooth(mean[:, :1]) / math.sqrt(3.0) + _DARK
        energy = _energies(level, even, odd) / luminance
        parts = [
            _halve(torch.log1p(_GAIN * energy)),
            _MEAN_WEIGHT * mean[..., ::2, ::2],
            _halve(torch.log1p(_GAIN * deviation / luminance)),
        ]
        if finer is not None:
            parts.append(_MEAN_WEIGHT * _halve(_energies(finer, coarse_even, coarse_odd)))
        return torch.cat(parts, dim=1).to(self.precision.dtype)


def _energies(planes: Tensor, even: Tensor, odd: Tensor) -> Tensor:
    """Local energy of every plane under every pair of filters: `[B, C, H, W]` -> `[B, C * filters, H, W]`."""
    batch, channels, height, width = planes.shape
    margin = even.shape[-1] // 2
    padded = functional.pad(planes.reshape(-1, 1, height, width), (margin,) * 4, mode="replicate")
    cosine = functional.conv2d(padded, even[:, None])
    sine = functional.conv2d(padded, odd[:, None])
    # The small number keeps a rounding error of flat regions from counting.
    energy = (cosine * cosine + sine * sine + 1e-8).sqrt()
    return energy.reshape(batch, channels * len(even), height, width)


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
    # 1 4 6 4 1 over 16, computed where it is needed: a list would have to be copied there for every batch.
    # By squares, since OpenVINO leaves an abs out of what follows from arange.
    square = torch.arange(-2.0, 3.0, dtype=planes.dtype, device=planes.device).square()
    kernel = (6.0 - 2.25 * square + 0.25 * square * square) / 16.0
    channels = int(planes.shape[1])
    planes = functional.pad(planes, (2, 2, 2, 2), mode="replicate")
    planes = functional.conv2d(planes, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return functional.conv2d(planes, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)


def _halve(planes: Tensor) -> Tensor:
    return _smooth(planes)[..., ::2, ::2]
