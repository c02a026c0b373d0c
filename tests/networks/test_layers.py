"""Default layers of every family, what can be tapped, and parity with timm's own intermediate features."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

from ensemblead.networks import layers as layers_module  # noqa: E402
from ensemblead.networks.extractor import FeatureExtractor  # noqa: E402
from ensemblead.networks.layers import default_layers, network_to_list, taps_of  # noqa: E402
from ensemblead.networks.zoo import blueprint  # noqa: E402

THREE = (4, 8, 16)

# Layers of strides 4, 8 and 16 (of one stride: at 1/4, 1/2 and 3/4 of the depth).
FAMILIES = {
    "gabor": ("layer1", "layer2", "layer3"),
    "resnet18": ("layer1", "layer2", "layer3"),
    "wideresnet50": ("layer1", "layer2", "layer3"),
    "resnext101": ("layer1", "layer2", "layer3"),
    "resnet50.a1_in1k": ("layer1", "layer2", "layer3"),
    "seresnet50": ("layer1", "layer2", "layer3"),
    "resnetv2_18": ("stages.0", "stages.1", "stages.2"),
    "densenet121": ("features.denseblock1", "features.denseblock2", "features.denseblock3"),
    "efficientnet_b0": ("blocks.1", "blocks.2", "blocks.4"),
    "efficientnet_lite0": ("blocks.1", "blocks.2", "blocks.4"),
    "mobilenetv2_050": ("blocks.1", "blocks.2", "blocks.4"),
    "mobilenetv3_large_100": ("blocks.1", "blocks.2", "blocks.4"),
    "mobilenetv3_small_050": ("blocks.0", "blocks.1", "blocks.3"),
    "convnext_atto": ("stages.0", "stages.1", "stages.2"),
    "vit_tiny_patch16_224": ("blocks.2", "blocks.5", "blocks.8"),
    "deit_tiny_patch16_224": ("blocks.2", "blocks.5", "blocks.8"),
    "swin_tiny_patch4_window7_224": ("layers.0", "layers.1", "layers.2"),
    "vit_small_patch14_dinov2": ("blocks.2", "blocks.5", "blocks.8"),
    "vit_small_patch14_reg4_dinov2": ("blocks.2", "blocks.5", "blocks.8"),
    "vit_small_patch16_dinov3": ("blocks.2", "blocks.5", "blocks.8"),
    "squeezenet1_1": ("features.4", "features.7", "features.12"),
    "alexnet": ("features.1", "features.4", "features.11"),
    "mobilenet_v2": ("features.3", "features.6", "features.13"),
    "regnet_y_400mf": ("trunk_output.block1", "trunk_output.block2", "trunk_output.block3"),
    "vit_b_16": tuple(f"encoder.layers.encoder_layer_{block}" for block in (2, 5, 8)),
}


QUICK = ["gabor", "resnet18", "wideresnet50", "resnet50.a1_in1k", "efficientnet_lite0", "convnext_atto"]
QUICK += ["vit_small_patch14_reg4_dinov2", "squeezenet1_1"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_families(name):
    assert default_layers(name, THREE) == FAMILIES[name]
    assert default_layers(name) == FAMILIES[name][1:]


def test_published_layers_need_no_zoo(monkeypatch):
    monkeypatch.setattr(layers_module, "blueprint", None)
    assert default_layers("wide_resnet50_2.tv_in1k") == ("layer2", "layer3")
    assert default_layers("gabor") == ("layer2", "layer3")


def test_known_names_are_what_timm_says():
    for name in ("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"):
        record = {entry["reduction"]: entry["module"] for entry in blueprint(name).feature_info}
        assert tuple(record[stride] for stride in THREE) == default_layers(name, THREE)


def test_refusals():
    with pytest.raises(
        ValueError, match=r"no default is known for hrnet_w18_small; give layers=.* `ensemblead layers hrnet"
    ):
        default_layers("hrnet_w18_small")
    with pytest.raises(ValueError, match=r"'resnet1O1' is known neither"):
        default_layers("resnet1O1")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(ValueError, match=r"needs a network by name, got a module; .* such as 0, 1, 1\.0"):
        default_layers(module)
    for backbone in (["resnet18"], None, 3):
        with pytest.raises(TypeError, match=r"backbone must be a name or a torch\.nn\.Module, got "):
            default_layers(backbone)


@pytest.mark.parametrize("name", ["resnet18", "gabor", "squeezenet1_1", "vit_tiny_patch16_224"])
def test_taps_are_what_an_extractor_gives(name):
    size = (64, 96)
    taps = taps_of(network_to_list(name), size)
    extractor = FeatureExtractor(
        name, [tap.name for tap in taps], weights="default" if name == "gabor" else None
    )
    maps = extractor(torch.zeros(1, 3, *size))
    assert [(tap.channels, *tap.grid) for tap in taps] == [tuple(found.shape[1:]) for found in maps]
    assert len(taps) > 2


def test_taps_leave_no_trace():
    module = blueprint("resnet18")
    taps_of(module, (64, 64))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert {tensor.device.type for tensor in module.parameters()} == {"meta"}


def test_blueprints_leave_the_random_state():
    state = torch.get_rng_state()
    default_layers("repvit_m0_9")
    assert torch.equal(torch.get_rng_state(), state)


PARITY = [
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "convnext_atto",
    "vit_tiny_patch16_224",
]
HEAVY = [
    "densenet121",
    "resnet18",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "resnetv2_18",
    "mobilenetv2_050",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "beit_base_patch16_224",
    "xcit_nano_12_p8_224",
    "repvit_m0_9",
]


@pytest.mark.parametrize("name", [*PARITY, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)])
def test_parity_with_timm(name):
    layers = default_layers(name, THREE)
    extractor = FeatureExtractor(name, layers, weights=None, seed=1)
    record = [entry["module"] for entry in extractor.module.feature_info]
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = extractor.module.forward_intermediates(
            images, indices=[record.index(layer) for layer in layers], intermediates_only=True
        )
    for found, right in zip(extractor(images), expected, strict=True):
        assert found.shape == right.shape
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))


# Behind the last norm


NORMED = ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"]
NORMED_HEAVY = [
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "deit_tiny_distilled_patch16_224",
]


@pytest.mark.parametrize(
    "name", [*NORMED, *(pytest.param(name, marks=pytest.mark.slow) for name in NORMED_HEAVY)]
)
def test_normed_layers_are_timms(name):
    layers = ("blocks.2:normed", "blocks.2", "norm", "blocks.11:normed")
    extractor = FeatureExtractor(name, layers, weights=None, seed=1)
    norm = extractor.module.norm
    norm.weight.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    norm.bias.data.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(2))
    images = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        early, last = extractor.module.forward_intermediates(
            images, indices=[2, 11], norm=True, intermediates_only=True
        )
    found = extractor(images)
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    for own, expected in zip(found, (early, None, last, last), strict=True):
        if expected is not None:
            torch.testing.assert_close(own, expected, **tolerance)
    assert not torch.allclose(found[0], found[1])


def test_normed_layers_need_the_norms_weights():
    layers = ("blocks.1:normed",)
    whole = FeatureExtractor("vit_tiny_patch16_224", layers, weights=None, seed=1)
    state = whole.state_dict()
    assert {"norm.weight", "norm.bias"} < state.keys()
    assert not any(name.startswith("blocks.2.") for name in state)
    again = FeatureExtractor("vit_tiny_patch16_224", layers, weights=state)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images)[0], whole(images)[0])
    without = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    with pytest.raises(ValueError, match=r"norm\.(weight|bias)"):
        FeatureExtractor("vit_tiny_patch16_224", layers, weights=without)


def test_normed_layers_are_refused_where_there_is_no_such_norm():
    with pytest.raises(ValueError, match=r"ResNet has no last norm, which 'layer2:normed' needs"):
        FeatureExtractor("resnet18", ("layer2:normed",), weights=None)
    extractor = FeatureExtractor("swin_tiny_patch4_window7_224", ("layers.0:normed",), weights=None)
    with pytest.raises(ValueError, match=r"'layers\.0:normed' needs a network whose last norm fits"):
        extractor(torch.zeros(1, 3, 224, 224))
    with pytest.raises(ValueError, match=r"no layer 'blocks\.99:normed'"):
        FeatureExtractor("vit_tiny_patch16_224", ("blocks.99:normed",), weights=None)
