"""Frozen networks as modules in float32 on the CPU, for graphs that other runtimes read."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensemblead.networks.engines.engine import Part
from ensemblead.networks.engines.traced import Traced
from ensemblead.networks.extractor import FeatureExtractor
from ensemblead.networks.grids import TokenLayout


class Normalized(nn.Module):
    """See `FeatureExtractor.normalize`: pixels in 0..255 as float32 `[B, 3, H, W]`, normalised."""

    scale: Tensor

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        scale = torch.tensor([extractor.mean, extractor.std], dtype=torch.float32, device="cpu")
        self.register_buffer("scale", scale.mul(255.0).view(2, 1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.scale[0]) / self.scale[1]


class NetworkGraph(nn.Module):
    """A network as far as some layers, normalised images `[B, 3, h, w]` to what the layers put out."""

    def __init__(self, extractor: FeatureExtractor, layers: Sequence[str]) -> None:
        super().__init__()
        module, place = extractor.module, torch.device("cpu")
        if not extractor.is_at(place, torch.float32):
            module = copy.deepcopy(module).to(place, torch.float32)
        part = Part(module, tuple(layers), extractor.name, place, torch.float32, "float32")
        self.traced, self._layers = Traced(part), part.layers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.traced(images)
        return tuple(outputs[layer] for layer in self._layers)


class Grids:
    """Layers' outputs for images of a size as feature maps `[B, C, H, W]`."""

    def __init__(self, extractor: FeatureExtractor, layers: Sequence[str], size: tuple[int, int]) -> None:
        self._layout, self._layers, self._size = TokenLayout(extractor.module), tuple(layers), size

    def of(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(outputs, self._layers, strict=True)
        return [self._layout.to_grid(output, layer, self._size) for output, layer in pairs]
