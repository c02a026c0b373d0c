"""Eager torch: the network as it is written, watched by hooks and left at the last layer needed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemblead.networks.engines.engine import Part, input_of, last_norm, normed_of


class EagerEngine:
    """Runs `module` (or the part's own), ended by an exception from the hook of the last layer needed.

    Hooks are there during a pass alone, so the module may be used and changed between passes.
    """

    def __init__(self, part: Part, module: nn.Module | None = None) -> None:
        self._part = part
        self.module = part.module if module is None else module

    def run(self, images: Tensor) -> dict[str, Any]:
        """See `Engine.run`. Raises ValueError for layers that the forward pass never calls."""
        layers = self._part.layers
        outputs: dict[str, Any] = {}
        caller = threading.get_ident()

        def keep(layer: str, output: Any) -> None:
            # Another thread may be running the same network.
            if layer in outputs or threading.get_ident() != caller:
                return
            last = len(outputs) == len(layers) - 1
            # Later layers may write into this tensor (ReLU in place); behind the last one nothing runs.
            outputs[layer] = output if last or not isinstance(output, Tensor) else output.clone()
            if last:
                raise _Reached

        with evaluating(self.module), _uncompiled(self.module):
            handles = attach(self.module, layers, keep)
            try:
                self.module(images)
            except _Reached:
                return outputs
            finally:
                for handle in handles:
                    handle.remove()
        unreached = [layer for layer in layers if layer not in outputs]
        raise ValueError(
            f"layers: {unreached} exist in {self._part.name} but its forward pass never calls them"
        )


class _Reached(BaseException):
    """Ends a forward pass. No Exception, lest a network that catches those swallows it."""


def attach(module: nn.Module, layers: tuple[str, ...], keep: Callable[[str, Any], None]) -> list[Any]:
    """Hooks that call `keep(layer, tensor)` for the output, the normed one, or the first input of layers."""
    parts = dict(module.named_modules())

    def hook_for(layer: str) -> Any:
        base = input_of(layer, parts)
        if (normed := normed_of(layer, parts)) is not None:
            return parts[normed].register_forward_hook(
                lambda _part, _inputs, output: keep(layer, _normed(module, layer, output))
            )
        if base is None:
            return parts[layer].register_forward_hook(lambda _part, _inputs, output: keep(layer, output))
        return parts[base].register_forward_pre_hook(
            lambda _part, inputs: keep(layer, inputs[0] if inputs else None)
        )

    return [hook_for(layer) for layer in layers]


def _normed(module: nn.Module, layer: str, output: Any) -> Any:
    """A layer's output behind the network's last norm, which is not called: it may be watched itself."""
    norm = last_norm(module)
    shape = tuple(output.shape) if isinstance(output, Tensor) else None
    if norm is None or shape is None or shape[-1:] != tuple(norm.normalized_shape):
        raise ValueError(
            f"layers: {layer!r} needs a network whose last norm fits that layer, as a transformer's of one "
            f"width; its output has shape {shape}"
        )
    return functional.layer_norm(output, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


# Modules that are being run, by how many passes, and their parts that were in training mode before.
_running: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = weakref.WeakKeyDictionary()
_running_lock = threading.Lock()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, so that no batch norm counts these images.

    Every flag is put back when the last of the passes that run at once ends.
    """
    with _running_lock:
        passes, training = _running.get(module, (0, []))
        training = training + [part for part in module.modules() if part.training]
        for part in training:
            part.training = False
        _running[module] = (passes + 1, training)
    try:
        yield
    finally:
        with _running_lock:
            passes, training = _running.pop(module)
            if passes > 1:
                _running[module] = (passes - 1, training)
            else:
                for part in training:
                    part.training = True


def _uncompiled(module: nn.Module) -> AbstractContextManager[Any]:
    """Run compiled parts as written: a compiled graph has no hooks on its layers and cannot be left early."""
    compiled = any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
    if not compiled:
        return nullcontext()
    if not hasattr(torch.compiler, "set_stance"):
        raise TypeError("backbone must not be compiled: this torch (before 2.6) cannot run it uncompiled")
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
