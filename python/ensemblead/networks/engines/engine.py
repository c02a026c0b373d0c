"""An engine runs a network as far as its layers. Each is compared with eager torch when it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# A layer's name with this behind it stands for the input of the layer.
INPUT_SUFFIX = ":input"
# With this behind it, for the layer's output behind the network's last norm.
NORMED_SUFFIX = ":normed"

Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class Quantized:
    """A network in int8, as OpenVINO's two files: a graph in XML, and its constants. Neither holds code.

    Attributes:
        layers: what it puts out, in this order.
        weights: SHA-256 of the weights that it was made from, see `digest_of`.
        images: how many images its ranges were read from.
        probe: one of them, normalised, float16 `[1, 3, H, W]`: what engines are compared with torch on.
    """

    layers: tuple[str, ...]
    weights: str
    images: int
    graph: bytes
    constants: bytes
    probe: Tensor = field(compare=False)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the two files."""
        return hashlib.sha256(self.graph + self.constants).hexdigest()


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """A network as far as some of its layers, in eval mode, where it is and in the dtype that it has.

    Attributes:
        layers: names of submodules, each with or without `INPUT_SUFFIX` or `NORMED_SUFFIX`.
        name: the network's, for errors.
        precision: the one to compute in. It differs from the module's dtype where an engine rounds by itself,
            as int8 engines do.
        quantized: the network in int8, for that precision.
    """

    module: nn.Module
    layers: tuple[str, ...]
    name: str
    device: torch.device
    dtype: torch.dtype
    precision: str
    quantized: Quantized | None = None


class Engine(Protocol):
    """One way of running one `Part`."""

    def run(self, images: Tensor) -> Outputs:
        """Normalised images `[B, 3, H, W]`, of the part's device and dtype -> every layer's output by name.

        Tensors have the part's device and dtype, and nothing changes them later.
        """


@dataclass(frozen=True)
class EngineKind:
    """The properties of an engine that are known before it is made.

    Attributes:
        build: makes the engine from a part and from what `watch` saw; None where it would gain nothing.
        precisions: the names of the precisions that it computes in.
        device_types: the devices that it runs on.
        tolerance: the largest deviation from eager torch, relative to the largest absolute value of a layer.
        whole_batch: the sample is the first batch, not its first image: for engines made per batch size.
        mismatch: the error for outputs that are not those of eager torch; None: eager torch is used instead.
        strict: it compares itself with eager torch, raises, and never gives way to it.
        watch: around the run of eager torch that the engine is compared with.
    """

    name: str
    build: Callable[[Part, Any], Engine | None]
    precisions: tuple[str, ...]
    device_types: tuple[str, ...]
    tolerance: Callable[[Part], float]
    whole_batch: bool = False
    mismatch: Callable[[Part], Exception] | None = None
    strict: bool = False
    watch: Callable[[Part], AbstractContextManager[Any]] = lambda _part: nullcontext()

    def make(
        self, part: Part, sample: Tensor, eager: Engine, check: Callable[[Outputs], object]
    ) -> tuple[Engine, Outputs | None]:
        """The engine, compared with eager torch, and what it puts out for the sample if it was run."""
        with self.watch(part) as seen:
            expected = eager.run(sample.clone())  # it may write into its input
        check(expected)
        engine = self.build(part, seen)
        if engine is None:
            return eager, expected
        if self.strict:
            return engine, None
        found = engine.run(sample.clone())
        if same_outputs(found, expected, self.tolerance(part)):
            return engine, found
        if self.mismatch is not None:
            raise self.mismatch(part)
        return eager, expected


def same_outputs(found: Outputs, expected: Outputs, tolerance: float) -> bool:
    """Whether every layer's output is the expected one. Outputs that are not finite are not compared."""
    return all(_same(found.get(name), output, tolerance) for name, output in expected.items())


def _same(found: Any, expected: Any, tolerance: float) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    scale = float(expected.abs().max())
    if not scale < float("inf"):
        return True  # `require_finite` speaks of it
    return bool((found - expected).abs().max() <= tolerance * max(scale, 1e-30))


def input_of(layer: str, names: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The submodule whose input `layer` stands for; None where it stands for an output."""
    return _without(INPUT_SUFFIX, layer, names)


def normed_of(layer: str, names: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The submodule whose normed output `layer` stands for; None where it stands for something else."""
    return _without(NORMED_SUFFIX, layer, names)


def _without(suffix: str, layer: str, names: Sequence[str] | Mapping[str, Any]) -> str | None:
    base = layer.removesuffix(suffix)
    return base if base != layer and layer not in names and base in names else None


def last_norm(module: nn.Module) -> nn.LayerNorm | None:
    """The norm behind a transformer's last block, `norm` in timm's; None where there is none."""
    norm = getattr(module, "norm", None)
    return norm if isinstance(norm, nn.LayerNorm) else None
