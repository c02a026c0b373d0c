"""Vectors out of a network: pooled grids, class tokens, and what a classifier reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ensemblead.networks import FeatureExtractor
from ensemblead.networks.engines.engine import input_of
from ensemblead.networks.vectors import head_input

timm = pytest.importorskip("timm")


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)
        self.fc = nn.Linear(5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.conv(images).mean((2, 3)))
        return out


@pytest.mark.parametrize(
    "name",
    ["resnet18", "densenet121", "efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "regnetx_002"],
)
@pytest.mark.parametrize("engine", ["eager", "folded"])
def test_what_the_classifier_reads_is_timms_output_without_its_head(name: str, engine: str) -> None:
    module = timm.create_model(name, pretrained=False).eval()
    side = 224 if name.startswith("vit") else 64
    images = _images(2, 3, side, side)
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(images), pre_logits=True)
    (found,) = FeatureExtractor(module, None, pooling="avg").run_by(engine)(images)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_torchvisions_classifier_reads() -> None:
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.models.resnet18(weights=None).eval()
    assert head_input(module) == "fc:input"
    extractor = FeatureExtractor(module, None, pooling="avg")
    (found,) = extractor(_images(2, 3, 64, 64))
    (grid,) = FeatureExtractor(module, ("layer4",))(_images(2, 3, 64, 64))
    torch.testing.assert_close(found, grid.mean((2, 3)))
    # The classifier itself is not needed.
    assert not any(name.startswith("fc") for name in extractor.state_dict())


def test_pooling_of_a_grid() -> None:
    module, images = Small(), _images(3, 3, 16, 24)
    (grid,) = FeatureExtractor(module, ("conv",))(images)
    expected = {
        "avg": grid.double().mean((2, 3)),
        "max": grid.double().amax((2, 3)),
        "gem": grid.double().clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
    }
    for pooling, vectors in expected.items():
        extractor = FeatureExtractor(module, ("conv",), pooling=pooling)  # type: ignore[arg-type]
        (found,) = extractor(images)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        torch.testing.assert_close(found.double(), vectors, rtol=1e-4, atol=1e-6)
        assert extractor.channels((16, 24)) == (5,)
        (half,) = extractor.copy().to("cpu", torch.bfloat16)(images)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), vectors, rtol=0.05, atol=0.02)


def test_pooling_of_tokens() -> None:
    module = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    images = _images(2, 3, 224, 224)
    with torch.no_grad():
        tokens = module.forward_intermediates(images, indices=[3], norm=False, intermediates_only=True)[0]
    (token,) = FeatureExtractor(module, ("blocks.3",), pooling="token")(images)
    (mean,) = FeatureExtractor(module, ("blocks.3",), pooling="avg")(images)
    assert token.shape == (2, 192)
    torch.testing.assert_close(mean, tokens.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(token, mean)


def test_several_layers_and_layers_that_are_vectors() -> None:
    module, images = Small(), _images(2, 3, 16, 16)
    conv, read, out = FeatureExtractor(module, ("conv", "fc:input", "fc"), pooling="avg")(images)
    torch.testing.assert_close(conv, read)
    torch.testing.assert_close(out, module.fc(read).detach())
    other = FeatureExtractor(module, ("conv",), pooling="avg").with_layers(("fc",))
    torch.testing.assert_close(other(images)[0], out)


def test_inputs_by_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend="aot_eager"))
    torch._dynamo.reset()
    module, images = Small(), _images(2, 3, 16, 16)
    expected = FeatureExtractor(module, ("conv", "fc:input"), pooling="avg")(images)
    found = FeatureExtractor(module, ("conv", "fc:input"), pooling="avg").compile()(images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_of_that_very_name_comes_first() -> None:
    assert input_of("fc:input", {"fc": 0}) == "fc"
    assert input_of("fc:input", {"fc": 0, "fc:input": 1}) is None
    assert input_of("conv:input", {"fc": 0}) is None


@pytest.mark.parametrize(
    ("layers", "pooling", "message"),
    [
        (("conv",), "mean", r"pooling must be None or one of avg, max, gem, token, got 'mean'"),
        (None, None, "layers=None stands for a vector per image; give pooling="),
        (("cnv:input",), "avg", "no layer 'cnv:input'"),
    ],
)
def test_wrong_arguments(layers: Any, pooling: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(Small(), layers, pooling=pooling)


def test_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="'conv' has no class token; use pooling='avg'"):
        FeatureExtractor(Small(), ("conv",), pooling="token")(_images(1, 3, 8, 8))
    with pytest.raises(ValueError, match="'fc' gives shape .* or be read as vectors by"):
        FeatureExtractor(Small(), ("fc",))(_images(1, 3, 8, 8))
    with pytest.raises(ValueError, match="Conv2d has no classifier"):
        FeatureExtractor(nn.Conv2d(3, 2, 1), None, pooling="avg")
    with pytest.raises(ValueError, match="pooling='avg' gives vectors, which have no grid"):
        FeatureExtractor(Small(), ("conv",), pooling="avg").grid(8)
    with pytest.raises(TypeError, match="layers must be names, got 3"):
        FeatureExtractor(Small(), (3,))  # type: ignore[arg-type]
