"""Batch normalisation folded into the convolution before it: the same features with less memory traffic."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ensemblead.networks.engines.eager import EagerEngine
from ensemblead.networks.engines.engine import EngineKind, Part
from ensemblead.networks.structure import NormAct

_Convolution = TypeVar("_Convolution", nn.Conv2d, nn.ConvTranspose2d)
Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


def fold_batch_norms(
    module: nn.Module, pairs: Sequence[Pair], keep: Collection[str] = ()
) -> nn.Module | None:
    """A twin of `module` whose batch norms are folded into the convolutions before them, which then put out
    what their batch norm did; None where there is nothing to fold.

    `pairs` are those that `watched_norms` saw. Whether the twin computes the same is for the caller to see.
    All other tensors are shared with the original, which stays as it is. Convolutions named in `keep` put
    out what they did.
    """
    names = {part: name for name, part in module.named_modules()}
    pairs = [pair for pair in pairs if names[pair[0]] not in keep]
    if not pairs:
        return None
    tensors = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for convolution, norm in pairs:
        first = fused(convolution, norm)
        first.training = False
        _replace(twin, names[convolution], first)
        _replace(twin, names[norm], _without_norm(twin.get_submodule(names[norm])))
    return twin


def _build(part: Part, pairs: Sequence[Pair]) -> EagerEngine | None:
    twin = fold_batch_norms(part.module, pairs, part.layers)
    return None if twin is None else EagerEngine(part, twin)


@contextmanager
def watched_norms(module: nn.Module) -> Iterator[list[Pair]]:
    """Around one run of a network. It shows which batch norm reads which convolution, so no structure of the
    network is taken for granted.

    Yields a list, filled at the end: every convolution, called once, whose output itself is what a batch
    norm, called once, reads.
    """
    caller = threading.get_ident()
    calls: dict[nn.Module, int] = {}
    # The outputs are kept, so that no later tensor can take the place in memory by which they are known.
    outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    seen: list[Pair] = []
    pairs: list[Pair] = []

    def after(convolution: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() != caller:
            return
        calls[convolution] = calls.get(convolution, 0) + 1
        if isinstance(convolution, nn.Conv2d) and isinstance(output, Tensor):
            outputs[id(output)] = (convolution, output, output._version)

    def before(norm: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != caller:
            return
        calls[norm] = calls.get(norm, 0) + 1
        source = outputs.get(id(inputs[0])) if len(inputs) == 1 else None
        if source is not None and isinstance(norm, nn.BatchNorm2d) and source[1]._version == source[2]:
            seen.append((source[0], norm))

    with _hooked(module, after, before):
        yield pairs
    read = Counter(convolution for convolution, _ in seen)
    pairs += [pair for pair in seen if calls[pair[0]] == calls[pair[1]] == read[pair[0]] == 1]


@contextmanager
def _hooked(module: nn.Module, after: Any, before: Any) -> Iterator[None]:
    handles = []
    for part in module.modules():
        if type(part) is nn.Conv2d and not part._forward_hooks:
            handles.append(part.register_forward_hook(after))
        elif _is_foldable(part):
            handles.append(part.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_foldable(part: nn.Module) -> bool:
    """Batch norm by statistics of its own, or timm's, which has its activation in it."""
    known = type(part) is nn.BatchNorm2d or _has_activation(part)
    return (
        known
        and isinstance(part, nn.BatchNorm2d)
        and part.running_mean is not None
        and not part._forward_hooks
        and not part._forward_pre_hooks
    )


def _has_activation(part: nn.Module) -> bool:
    from_timm = type(part).__name__ == "BatchNormAct2d" and type(part).__module__.startswith("timm.")
    return from_timm or type(part) is NormAct


def _without_norm(norm: nn.Module) -> nn.Module:
    if not _has_activation(norm):
        return nn.Identity()
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act")).eval()


def fused(convolution: _Convolution, norm: nn.BatchNorm2d) -> _Convolution:
    """A convolution, or a transposed one without groups, that puts out what the batch norm behind it does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias.double()
    scale = gain / torch.sqrt(variance + norm.eps)
    weight = convolution.weight
    # The channels that a convolution puts out come first in its weights, those of a transposed one second.
    rows = scale.view((1, -1, 1, 1) if isinstance(convolution, nn.ConvTranspose2d) else (-1, 1, 1, 1))
    folded = copy.copy(convolution)
    folded._parameters = {
        "weight": nn.Parameter((weight.double() * rows).to(weight.dtype), False),
        "bias": nn.Parameter(((bias - mean) * scale + shift).to(weight.dtype), False),
    }
    return folded


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)


FOLDED = EngineKind(
    name="folded",
    build=_build,
    precisions=("float32",),
    device_types=("cpu", "cuda"),
    tolerance=lambda _part: 1e-4,  # some rounding
    watch=lambda part: watched_norms(part.module),
)
