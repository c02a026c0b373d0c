"""Folded batch norms: the same outputs, whatever way a network is put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from support.engines import LAYERS, Normed
from torch import nn

from ensemblead.networks import FeatureExtractor
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.folded import fold_batch_norms, watched_norms

timm = pytest.importorskip("timm")
SEED = 3


def _trained(module: nn.Module) -> nn.Module:
    """Statistics as after training, so that a batch norm is more than the identity."""
    generator = torch.Generator().manual_seed(SEED)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module.eval()


def _images(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(SEED))


def _made(extractor: FeatureExtractor) -> nn.Module:
    """The network that runs in place of the extractor's, or that one itself."""
    (engine,) = extractor._engines._made.values()
    assert isinstance(engine, EagerEngine)
    return engine.module


def _num_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize(
    ("name", "layers", "folded"),
    [
        ("resnet18", ("layer2", "layer3"), 15),
        (
            "resnet18",
            ("layer1.0.bn1", "layer1.0.conv1"),
            1,
        ),  # what a folded convolution puts out is not its own
        ("densenet121", ("features.denseblock1",), 7),  # timm's norms have their activation in them
        ("efficientnet_b0", ("blocks.2",), 15),
        ("mobilenetv3_small_100", ("blocks.2",), None),
    ],
)
def test_outputs_are_the_networks_own(name: str, layers: tuple[str, ...], folded: int | None) -> None:
    module = _trained(timm.create_model(name, pretrained=False))
    plain = FeatureExtractor(module, layers)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    expected = plain(_images())
    twin = FeatureExtractor(module, layers).fold()
    for ours, theirs in zip(twin(_images()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    made = _made(twin)
    assert made is not module
    if folded is not None:
        assert _num_norms(module) - _num_norms(made) == folded
    # The original is what it was, and so is what a model stores.
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert twin.state_dict().keys() == plain.state_dict().keys()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


class Odd(nn.Module):
    """Ways in which a batch norm behind a convolution cannot be folded, and one in which it can."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=kind != "no statistics")
        self.other = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(images)
        if self.kind == "changed in place":
            out.relu_()
        normed = self.norm(out)
        if self.kind == "read twice":
            normed = normed + out
        if self.kind == "two norms":
            normed = normed + self.other(out)
        if self.kind == "called twice":
            normed = normed + self.conv(normed)
        result: torch.Tensor = self.last(normed)
        return result


@pytest.mark.parametrize(
    "kind", ["plain", "changed in place", "read twice", "two norms", "called twice", "no statistics"]
)
def test_what_cannot_be_folded_is_left_alone(kind: str) -> None:
    torch.manual_seed(SEED)
    module = Odd(kind).eval()
    for part in (module.norm, module.other):
        if part.running_mean is not None:
            part.running_mean.uniform_(-1, 1)
    plain, extractor = FeatureExtractor(module, ("last",)), FeatureExtractor(module, ("last",)).fold()
    expected: Any = plain(_images(16))
    torch.testing.assert_close(extractor(_images(16)), expected, rtol=1e-5, atol=1e-5)
    assert (_made(extractor) is module) == (kind != "plain")


def test_half_precision_and_a_move() -> None:
    module = _trained(torchvision.models.resnet18(weights=None))
    extractor = FeatureExtractor(module, ("layer1",)).fold()
    first = extractor(_images())[0]
    extractor.to("cpu", torch.bfloat16)
    assert extractor._engines._made == {}
    assert extractor(_images())[0].dtype == torch.bfloat16
    assert extractor._engines._made == {}
    extractor.to("cpu", torch.float32)
    assert float((extractor(_images())[0] - first).abs().max()) < 0.1 * float(first.abs().max())
    assert _made(extractor) is not module


def test_nothing_to_fold() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with watched_norms(module) as pairs:
        module(_images(16))
    assert fold_batch_norms(module, pairs) is None


def test_the_first_image_is_run_once_by_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it is, watched and compared with, and once folded, which gives the outputs."""
    run, modules = EagerEngine.run, []

    def counted(self: EagerEngine, images: torch.Tensor) -> dict[str, Any]:
        modules.append((self.module, len(images)))
        return run(self, images)

    monkeypatch.setattr(EagerEngine, "run", counted)
    module = _trained(torchvision.models.resnet18(weights=None))
    extractor = FeatureExtractor(module, ("layer1",)).fold()
    first = extractor(_images()[:1])[0]
    assert modules == [(module, 1), (_made(extractor), 1)]
    assert torch.equal(extractor(_images()[:1])[0], first)
    several = FeatureExtractor(module, ("layer1",)).fold()
    del modules[:]
    several(_images())
    assert modules == [(module, 1), (_made(several), 1), (_made(several), 2)]


@pytest.mark.parametrize("engine", ["folded", "openvino"])
def test_the_first_batch_of_a_network_that_writes_into_its_input(engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")

    class Writing(Normed):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.sub_(0.5).mul_(2))

    module, given = Writing(), torch.rand(3, 3, 16, 16)
    plain, quick = FeatureExtractor(module, LAYERS), FeatureExtractor(module, LAYERS).run_by(engine)
    expected = plain(given.clone())
    for _ in range(2):
        torch.testing.assert_close(quick(given.clone()), expected, rtol=1e-4, atol=1e-5)
