"""Torch's modes and generator, which would change a network's result, and how they are left for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_SEEDS = 1 << 64  # that torch's generators tell apart; NumPy's take any whole number
_lock = threading.Lock()
_drawing = threading.RLock()
_entered = 0
_left_behind: torch.dtype | None = None


@contextmanager
def default_modes() -> Iterator[None]:
    """Inside, torch computes as it does in a fresh program, and without gradients.

    Left are autocast, inference mode, a default dtype other than float32 and a default device. Inference mode
    is left because its tensors can neither be changed nor folded later.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _entered or torch.get_default_dtype() != torch.float32:
            stack.enter_context(_float32_by_default())
        yield


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Float32 as the default dtype. It is the process's: the last thread to leave puts the old one back."""
    global _entered, _left_behind
    with _lock:
        if _entered == 0:
            _left_behind = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if _entered == 0 and _left_behind is not None:
                torch.set_default_dtype(_left_behind)
                _left_behind = None


@contextmanager
def own_generator(seed: int) -> Iterator[None]:
    """Initialisers draw from torch's global CPU generator: seed it for them, then put it back.

    One thread at a time: of two, each would draw what the other has seeded.
    """
    with _drawing:
        state = torch.default_generator.get_state()
        # Not torch.manual_seed, which would reseed the GPUs' generators as well.
        torch.default_generator.manual_seed(seed % _SEEDS)
        try:
            yield
        finally:
            torch.default_generator.set_state(state)
