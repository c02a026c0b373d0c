"""Image sizes that networks cannot take are refused with sizes that they can."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

import ensemblead as ead  # noqa: E402
from ensemblead.networks.extractor import FeatureExtractor  # noqa: E402
from ensemblead.networks.layers import default_layers  # noqa: E402
from ensemblead.networks.sizes import sizes_taken  # noqa: E402

DINO = "vit_small_patch14_dinov2"


@pytest.mark.parametrize(
    ("name", "size", "taken", "step"),
    [
        ("resnet18", (230, 17), ((230, 17),), None),
        ("gabor", (230, 17), ((230, 17),), None),
        ("convnext_atto", (230, 250), ((230, 250),), None),
        (DINO, (224, 224), ((224, 224),), None),
        (DINO, (230, 230), ((224, 224), (238, 238)), 14),
        (DINO, (224, 250), ((224, 238), (224, 252)), 14),
        (DINO, (8, 8), ((14, 14),), 14),
        ("swin_tiny_patch4_window7_224", (256, 320), ((256, 320),), None),
        ("swin_tiny_patch4_window7_224", (230, 230), ((228, 228), (232, 232)), 4),
        ("dla34", (250, 234), ((224, 224), (256, 256)), 32),
        ("levit_128", (256, 256), ((224, 224),), None),
        ("vit_b_16", (256, 256), ((224, 224),), None),
        ("no_such_network", (256, 256), ((256, 256),), None),
    ],
)
def test_sizes(name, size, taken, step):
    layers = () if name == "no_such_network" else default_layers(name)
    assert sizes_taken(name, layers, size) == (taken, step)


@pytest.mark.parametrize("size", [(64, 96), (56, 84), (70, 70), (64, 64), (100, 60)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_network_agrees(name, size):
    layers = default_layers(name)
    extractor = FeatureExtractor(name, layers, weights=None)
    taken, _ = sizes_taken(name, layers, size)
    if size not in taken:
        with pytest.raises(ValueError, match=f"{name} cannot take images of {size[0]} x {size[1]} pixels"):
            extractor(torch.zeros(1, 3, *size))
    for one in taken:
        extractor(torch.zeros(1, 3, *one))


def test_detectors_refuse_at_construction():
    with pytest.raises(
        ValueError, match=r"image_size: .* 230 x 230 pixels: 224 x 224 or 238 x 238 would do; .* of 14"
    ):
        ead.PatchCore(DINO, weights=None, image_size=230)
    with pytest.raises(ValueError, match=r"resize: .* 230 x 224 pixels: 224 x 224 or 238 x 224 would do"):
        ead.PaDiM(DINO, weights=None, resize=(230, 224), image_size=None)
    member = ead.PatchCore(DINO, weights=None)
    with pytest.raises(ValueError, match=r"tile_size: .* 64 x 64 pixels: 56 x 56 or 70 x 70 would do"):
        ead.TiledEnsemble(member, tile_size=64, stride=32, image_size=128)


def test_normed_layers_take_the_sizes_of_their_network():
    assert sizes_taken(DINO, ("blocks.5:normed", "norm"), (230, 230)) == (((224, 224), (238, 238)), 14)


def test_detectors_refuse_images_as_they_are():
    detector = ead.PatchCore(
        "vit_tiny_patch16_224", weights=None, resize=None, image_size=None, coreset_fraction=0.5, device="cpu"
    )
    images = np.random.default_rng(0).integers(0, 255, (3, 50, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"images: .* 50 x 64 pixels: 48 x 64 or 64 x 64 would do"):
        detector.fit(images)
    assert not detector.is_fitted
