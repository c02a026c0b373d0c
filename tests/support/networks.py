"""Small networks for tests, with weights from a seed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

# Images as they are: no resize, no crop.
NATIVE: dict[str, Any] = {"image_size": None, "resize": None}


class TinyNet(nn.Module):
    """Two strided convolutions with weights from a seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Conv2d(3, 10, 3, 2, 1)
        self.second = nn.Conv2d(10, 14, 3, 2, 1)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(images))))


class NoisyNet(TinyNet):
    """A `TinyNet` whose features depend on the batch that an image comes in: on its size, and on the image's
    place in it. Convolutions of some processors do that, by less.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        for name in ("first", "second"):
            noisy = NoisyConvolution.__new__(NoisyConvolution)
            noisy.__dict__.update(getattr(self, name).__dict__)
            setattr(self, name, noisy)


class NoisyConvolution(nn.Conv2d):
    """Every value is off by up to 1e-6 of itself in float32, and by one rounding step in half precision."""

    _NOISE: ClassVar[dict[torch.dtype, float]] = {
        torch.float32: 1e-6,
        torch.bfloat16: 2.0**-8,
        torch.float16: 2.0**-11,
    }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = super().forward(images)
        generator = torch.Generator().manual_seed(len(images))
        noise = (torch.rand(out.shape, generator=generator) * 2 - 1) * self._NOISE[out.dtype]
        return (out.float() * (1 + noise.to(out.device))).to(out.dtype)
