"""Torch's modes around a network, and threads that share it: the result is the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from ensemblead.networks import FeatureExtractor
from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.modes import default_modes, own_generator
from ensemblead.networks.network import Network

pytest.importorskip("timm")


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "bfloat16": lambda: _default_dtype(torch.bfloat16),
    "float64": lambda: _default_dtype(torch.float64),
    "inference": torch.inference_mode,
    "device": lambda: torch.device("meta"),
    "gradients": torch.enable_grad,
}


class InPlace(nn.Module):
    """Writes into its input, and makes tensors of the default dtype."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.weight.data = torch.rand(4, 3, 3, 3, generator=generator)
        self.conv.bias = None
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images.mul_(torch.full((1,), 0.3, device=images.device))
        return torch.relu_(self.norm(self.conv(images)))


def _images(side: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", ["resnet18", "gabor", "module"])
def test_features_are_those_without_the_mode(mode: str, network: str) -> None:
    pixels = _images()
    layers = {"resnet18": ("layer1",), "gabor": ("layer1",), "module": ("norm",)}[network]

    def made() -> Network:
        backbone = InPlace() if network == "module" else network
        weights = None if network == "resnet18" else "default"
        return Network(FeatureExtractor(backbone, layers, weights=weights), "cpu", "float32")

    def features(network: Network) -> torch.Tensor:
        extractor = network.extractor
        return extractor(extractor.normalize(pixels))[0]

    usual = made()
    expected = features(usual)
    assert usual.dtype == torch.float32
    with MODES[mode]():
        within = features(made()) if network != "module" else features(usual)
        fresh = made() if network != "module" else usual
    found = [within, features(usual), features(fresh)]
    for one in found:
        assert one.dtype == torch.float32
        assert not one.is_inference()
        assert not one.requires_grad
        assert torch.equal(one, expected)


def test_inputs_made_in_inference_mode() -> None:
    extractor = FeatureExtractor(InPlace(), ("norm",))
    with torch.inference_mode():
        images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    copy = images.clone()
    expected = extractor(copy.clone())[0]
    assert torch.equal(extractor(images)[0], expected)
    assert torch.equal(images, copy)  # what the network writes goes into a copy


def test_a_module_made_in_inference_mode_can_be_run_and_moved() -> None:
    expected = FeatureExtractor(InPlace(), ("norm",))(torch.ones(1, 3, 16, 16))[0]
    with torch.inference_mode():
        module = InPlace()
    extractor = Network(FeatureExtractor(module, ("norm",)), "cpu", "float32").extractor
    torch.testing.assert_close(extractor(torch.ones(1, 3, 16, 16))[0], expected)


def test_the_default_dtype_comes_back_when_the_last_thread_leaves() -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with default_modes():
            inside.set()
            leave.wait(20)

    with _default_dtype(torch.bfloat16):
        thread = threading.Thread(target=stay)
        thread.start()
        inside.wait(20)
        with default_modes():
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float32  # the other thread still needs it
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.bfloat16


def _crowd(work: Callable[[], Any], size: int = 8) -> list[Any]:
    gate, results = threading.Barrier(size), []

    def enter() -> None:
        gate.wait()
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=enter) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_that_come_first_together_fold_once() -> None:
    pixels = _images()

    def fresh() -> FeatureExtractor:
        return Network(FeatureExtractor("resnet18", ("layer2",), weights=None), "cpu", "float32").extractor

    alone = fresh()
    expected = alone(alone.normalize(pixels))[0]
    for _ in range(3):
        extractor = fresh()
        for found in _crowd(lambda extractor=extractor: extractor(extractor.normalize(pixels))[0]):
            assert torch.equal(found, expected)
        (engine,) = extractor._engines._made.values()
        assert isinstance(engine, EagerEngine)
        left = [name for name, part in engine.module.named_modules() if isinstance(part, nn.BatchNorm2d)]
        assert all(name.startswith(("layer3", "layer4")) for name in left)


def test_threads_that_share_a_module_in_training_mode() -> None:
    class Slow(InPlace):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = super().forward(images)
            assert not self.training
            assert not self.norm.training
            return out

    module = Slow().train()
    extractor = FeatureExtractor(module, ("norm",))
    expected = extractor(torch.ones(1, 3, 16, 16))[0]

    def passes() -> bool:
        return all(torch.equal(extractor(torch.ones(1, 3, 16, 16))[0], expected) for _ in range(20))

    assert _crowd(passes) == [True] * 8
    assert module.training
    assert module.norm.training
    assert int(module.norm.num_batches_tracked) == 0


def test_threads_that_draw_initial_values() -> None:
    before = torch.get_rng_state()

    def drawn() -> list[float]:
        with own_generator(3):
            values = []
            for _ in range(50):
                values.append(float(torch.rand(())))
                time.sleep(0)
            return values

    expected = drawn()
    assert _crowd(drawn) == [expected] * 8
    assert torch.equal(torch.get_rng_state(), before)
