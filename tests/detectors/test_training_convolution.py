"""Convolutions of networks that are trained: equal to torch's, whichever kernel runs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional

from ensemblead.detectors.training import convolution
from ensemblead.detectors.training.convolution import SameConv2d, same_conv2d


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that the core's kernel was asked for."""
    found: list[tuple[int, ...]] = []
    own = convolution.convolve

    def counted(images: Any, taps: Any, *others: Any, **options: Any) -> Any:
        found.append(tuple(images.shape))
        return own(images, taps, *others, **options)

    monkeypatch.setattr(convolution, "convolve", counted)
    return found


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(source: int, target: int, kernel: int = 3) -> SameConv2d:
    layer = SameConv2d(source, target, kernel)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=number))
    return layer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_and_gradients_are_torchs(calls: list[Any], layout: torch.memory_format) -> None:
    layer = network(16, 32)
    exact = copy.deepcopy(layer).double()
    values = drawn(3, 16, 19, 24).contiguous(memory_format=layout).requires_grad_()
    expected = values.detach().double().requires_grad_()
    factors = drawn(3, 32, 19, 24, seed=9)
    found = layer(values)
    (found.mul_(2.0) * factors).sum().backward()  # in place, as ReLU is
    wanted = exact(expected)
    (2.0 * wanted * factors).sum().backward()
    assert calls == [(3, 19, 24, 16), (3, 19, 24, 32)]  # forward, and the gradient by the values
    pairs = [(found, 2.0 * wanted.detach()), (values.grad, expected.grad)]
    pairs += [(own.grad, one.grad) for own, one in zip(layer.parameters(), exact.parameters(), strict=True)]
    for own, one in pairs:
        assert own is not None
        assert one is not None
        most = 3e-5 * float(one.abs().max())
        torch.testing.assert_close(own.double(), one.detach(), rtol=0.0, atol=most)


def test_what_needs_no_gradient_has_none(calls: list[Any]) -> None:
    layer = network(16, 16).requires_grad_(False)
    values = drawn(2, 16, 32, 32).requires_grad_()
    layer(values).sum().backward()
    assert values.grad is not None
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is None
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (network(16, 16, 1), (2, 16, 32, 32)),
        (network(12, 16), (2, 12, 32, 32)),
        (network(16, 24), (2, 16, 32, 32)),
        (network(16, 16), (1, 16, 28, 32)),  # 56 tiles
        (network(16, 16).double(), (2, 16, 32, 32)),
    ],
)
def test_others_are_torchs_own(calls: list[Any], layer: SameConv2d, shape: tuple[int, ...]) -> None:
    values = drawn(*shape).to(layer.weight.dtype)
    padding = layer.kernel_size[0] // 2
    expected = functional.conv2d(values, layer.weight, layer.bias, padding=padding)
    torch.testing.assert_close(layer(values), expected)
    assert not calls


def test_without_gradients_or_in_half_precision_torch_runs(calls: list[Any]) -> None:
    layer, values = network(16, 16), drawn(2, 16, 32, 32)
    with torch.no_grad():
        layer(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(values).dtype == torch.bfloat16
    same_conv2d(values, layer.weight.detach(), None)
    assert not calls


def test_traced_and_exported_networks_hold_torchs_convolution(calls: list[Any]) -> None:
    """With gradients on, as whoever exports may have them."""
    layer, values = network(16, 16), drawn(2, 16, 32, 32)
    expected = functional.conv2d(values, layer.weight, layer.bias, padding=1)
    for strict in (False, True):
        exported = torch.export.export(layer, (values,), strict=strict)
        torch.testing.assert_close(exported.module()(values), expected)
    with warnings.catch_warnings():
        for category in (
            DeprecationWarning,
            FutureWarning,
        ):  # of torch, whose newer releases speak of another
            warnings.simplefilter("ignore", category)
        traced = torch.jit.trace(layer, values)
    torch.testing.assert_close(traced(2.0 * values), layer(2.0 * values), rtol=0.0, atol=1e-3)
    assert len(calls) == 1


def test_gradients_may_be_kept_for_others_but_not_differentiated() -> None:
    layer, values = network(16, 16), drawn(2, 16, 32, 32).requires_grad_()
    wanted = torch.autograd.grad(layer(values).square().sum(), values)[0]
    found = torch.autograd.grad(layer(values).square().sum(), values, create_graph=True)[0]
    assert torch.equal(found, wanted)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()


def test_one_image_without_a_batch_is_torchs(calls: list[Any]) -> None:
    layer, values = network(16, 16), drawn(16, 40, 40)
    torch.testing.assert_close(layer(values), functional.conv2d(values, layer.weight, layer.bias, padding=1))
    assert not calls


def test_another_default_device_changes_nothing() -> None:
    layer, values = network(16, 16), drawn(2, 16, 32, 32).requires_grad_()
    with torch.device("meta"):
        result = layer(values)
        result.sum().backward()
    assert torch.equal(result, layer(values))
    assert values.grad is not None
    assert values.grad.device.type == "cpu"
