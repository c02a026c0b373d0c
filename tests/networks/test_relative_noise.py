"""The bound on a network's noise: features of one image in batches of several sizes lie within it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ensemblead.networks import FeatureExtractor
from ensemblead.networks.network import Network, relative_noise


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("backbone", ["gabor", "convolutions"])
def test_the_batch_changes_features_by_less_than_the_bound(precision: str, backbone: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))
    extractor = FeatureExtractor(*((backbone, ("layer2",)) if backbone == "gabor" else (module, ("2",))))
    network = Network(extractor, "cpu", precision)
    pixels = torch.randint(0, 256, (7, 3, 48, 48), dtype=torch.uint8)
    run = network.extractor
    whole = run(run.normalize(pixels))[0].double()
    scale = float(torch.linalg.vector_norm(whole, dim=1).square().mean().sqrt())
    for size in (1, 2, 4, 6):
        parts = [run(run.normalize(part))[0].double() for part in pixels.split(size)]
        farthest = float(torch.linalg.vector_norm(torch.cat(parts) - whole, dim=1).max())
        assert farthest <= relative_noise(network.dtype) * scale


def test_a_relative_error_of_a_millionth_is_covered() -> None:
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signs = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)).sign()
    moved = torch.linalg.vector_norm(features * 1e-6 * signs, dim=1)
    assert bool((2 * moved < relative_noise(torch.float32) * torch.linalg.vector_norm(features, dim=1)).all())


def test_dtypes_that_no_network_computes_in() -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float64, .*, got torch\.int8"):
        relative_noise(torch.int8)
