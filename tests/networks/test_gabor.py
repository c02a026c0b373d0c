"""The Gabor bank: filters with the promised properties, textures told apart, strides of a network."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblead.networks.extractor import FeatureExtractor  # noqa: E402
from ensemblead.networks.gabor import gabor_filters  # noqa: E402

LAYERS = ("layer1", "layer2", "layer3")


def grating(size: int, wavelength: float, angle: float, phase: float = 0.0) -> torch.Tensor:
    """A grey sine grating, float `[1, 3, size, size]` in 0..1; `angle` is where it varies to."""
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    plane = 0.5 + 0.3 * torch.sin(2.0 * math.pi * along / wavelength + phase)
    return plane.float().expand(1, 3, size, size).contiguous()


def bank(layers=LAYERS) -> FeatureExtractor:
    return FeatureExtractor("gabor", layers)


def test_filters_are_quadrature_pairs():
    even, odd = gabor_filters(6, (3.0, 6.0))
    assert even.shape == odd.shape
    assert even.shape[0] == 12
    # Blind to brightness, symmetric and antisymmetric.
    assert even.sum((1, 2)).abs().max() < 1e-5
    torch.testing.assert_close(even, even.flip(1, 2))
    torch.testing.assert_close(odd, -odd.flip(1, 2))
    # Unit gain at their own wave, and their energy there does not depend on the phase.
    radius = even.shape[-1] // 2
    y, x = torch.meshgrid(*(torch.arange(-radius, radius + 1).double(),) * 2, indexing="ij")
    for k in range(12):
        wavelength, angle = (3.0, 6.0)[k // 6], math.pi * (k % 6) / 6
        along = 2.0 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
        for phase in (0.0, 0.7, 1.6, 2.9):
            wave = torch.cos(along + phase)
            energy = ((even[k].double() * wave).sum() ** 2 + (odd[k].double() * wave).sum() ** 2).sqrt()
            assert energy == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (96, 160), (50, 75)])
def test_strides_are_those_of_a_network(size):
    extractor = bank()
    outputs = extractor(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    for output, stride in zip(outputs, (4, 8, 16), strict=True):
        assert output.shape[0] == 2
        assert tuple(output.shape[2:]) == tuple(-(-side // stride) for side in size)
        assert torch.isfinite(output).all()
    assert extractor.channels(64) == tuple(output.shape[1] for output in outputs)


def test_extractor_knows_it_needs_nothing():
    extractor = bank(("layer3", "layer1"))
    assert extractor.name == "gabor"
    assert extractor.source == {"kind": "gabor"}
    assert (extractor.mean, extractor.std) == ((0.0,) * 3, (1.0,) * 3)
    assert extractor.state_dict() == {}
    assert list(extractor.module.parameters()) == []
    assert extractor.grid(64) == (4, 4)
    with pytest.raises(ValueError, match="gabor backbone has none"):
        FeatureExtractor("gabor", LAYERS, weights={"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"no layer 'layer4'; did you mean one of layer"):
        bank(("layer4",))


def test_it_is_a_fixed_function():
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    one, other = bank(), bank()
    torch.manual_seed(1)
    for a, b in zip(one(images), other(images), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(state)
    both = bank()(torch.cat([images, images.flip(3)]))
    for a, b in zip(one(images), both, strict=True):
        torch.testing.assert_close(a[0], b[0])


@pytest.mark.parametrize(("layer", "wavelength"), [(0, 6.0), (1, 12.0), (2, 24.0)])
def test_textures_of_equal_mean_are_told_apart_by_direction_and_scale(layer, wavelength):
    extractor = bank()

    def middle(image: torch.Tensor) -> torch.Tensor:
        output = extractor(image)[layer]
        h, w = output.shape[2:]
        return output[0, :, h // 4 : -h // 4, w // 4 : -w // 4]

    base = middle(grating(256, wavelength, 0.4))
    spread = (base - base.mean((1, 2), keepdim=True)).norm(dim=0).max()
    shifted = middle(grating(256, wavelength, 0.4, phase=1.9)).mean((1, 2))
    turned = middle(grating(256, wavelength, 0.4 + math.pi / 3)).mean((1, 2))
    finer = middle(grating(256, wavelength / 1.8, 0.4)).mean((1, 2))
    base = base.mean((1, 2))
    same = max(float((base - shifted).norm()), float(spread))
    assert (base - turned).norm() > 3.0 * same
    assert (base - finer).norm() > 3.0 * same


def test_colour_alone_tells_apart():
    grey = torch.full((1, 3, 64, 64), 0.5)
    # As bright as the grey one.
    red = grey.clone()
    red[:, 0], red[:, 1], red[:, 2] = 0.6, 0.45, 0.45
    for one, other in zip(bank()(grey), bank()(red), strict=True):
        assert (one - other).norm(dim=1).min() > 0.1


def test_a_defect_stands_out_where_it_is():
    generator = np.random.default_rng(0)
    stripes = grating(128, 8.0, 0.3)
    normal = [
        (stripes + 0.03 * torch.from_numpy(generator.standard_normal(stripes.shape)).float())
        for _ in range(6)
    ]
    defective = normal[-1].clone()
    defective[:, :, 40:64, 72:96] = grating(24, 8.0, 1.5)
    extractor = bank(("layer2",))

    def rows(image: torch.Tensor) -> torch.Tensor:
        return extractor(image.clamp(0, 1))[0][0].flatten(1).T

    memory = torch.cat([rows(image) for image in normal[:5]])
    clean = torch.cdist(rows(normal[5]), memory).min(dim=1).values
    scores = torch.cdist(rows(defective), memory).min(dim=1).values.reshape(16, 16)
    row, column = divmod(int(scores.argmax()), 16)
    # Inside, or one cell beside it: filters see an edge from both sides.
    assert 4 <= row <= 8
    assert 8 <= column <= 12
    assert scores.max() > 2.0 * clean.max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_only_rounds_the_result(dtype):
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    first, last = bank(("layer1", "layer3"))(images.float())
    half_first, half_last = bank(("layer1", "layer3")).to("cpu", dtype)(images)
    assert half_first.dtype == half_last.dtype == dtype
    assert torch.equal(half_first, first.to(dtype))
    # A coarser layer reads the rounded energies of the finer one.
    torch.testing.assert_close(half_last.float(), last, rtol=0.01, atol=0.03)
