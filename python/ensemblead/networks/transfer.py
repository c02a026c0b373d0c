"""Copies from the device to the host that avoid synchronisation, and checks of values that arrive later.

A GPU works through a queue while the program goes on. Reading a number from it (`bool`, `item`, `tolist`)
waits until the queue is empty; nothing in `fit` and `predict` does so for every batch. Results are copied by
the queue itself, and read when the next batch is queued behind them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.errors import NonFiniteFeaturesError

Item = TypeVar("Item")
Made = TypeVar("Made")


class HostCopy:
    """Tensors on their way to the host. A CPU's are there already, and are not copied.

    Page-locked memory takes what comes from a GPU. It is scarce, so callers get their values in memory of
    their own, and torch hands the page-locked one out again.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._held = [(tensor, False) for tensor in tensors]
        places = list(dict.fromkeys(tensor.device for tensor in tensors if is_asynchronous(tensor.device)))
        for i, tensor in enumerate(tensors):
            if tensor.device in places:
                self._held[i] = (_pinned_like(tensor).copy_(tensor, non_blocking=True), True)
        self._arrivals = [_arrival(place) for place in places]

    def wait(self) -> list[npt.NDArray[Any]]:
        """The values, as NumPy arrays, in the order that they were given in."""
        for arrival in self._arrivals:
            arrival.synchronize()
        return [np.array(held.numpy()) if scarce else held.numpy() for held, scarce in self._held]


class FiniteChecks:
    """Flags of embeddings, still on their devices, and what to say of those that are not finite."""

    def __init__(self) -> None:
        self._flags: list[torch.Tensor] = []
        self._messages: list[str] = []
        self._copy: HostCopy | None = None

    def __len__(self) -> int:
        return len(self._flags)

    def add(self, flag: torch.Tensor, message: str) -> None:
        self._flags.append(flag)
        self._messages.append(message)

    def start(self) -> FiniteChecks:
        """Send the flags to the host; returns self."""
        self._copy = HostCopy(self._flags)
        return self

    def verify(self) -> None:
        """Raise NonFiniteFeaturesError for the first flag that is down."""
        if self._copy is None:
            self.start()
        assert self._copy is not None
        for flag, message in zip(self._copy.wait(), self._messages, strict=True):
            if not flag:
                raise NonFiniteFeaturesError(message)


_deferred: ContextVar[FiniteChecks | None] = ContextVar("deferred", default=None)


@contextmanager
def deferred_checks() -> Iterator[FiniteChecks]:
    """Inside, the checks of embeddings on a GPU are collected; the caller then calls `verify` on them."""
    checks = FiniteChecks()
    token = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(token)


def verified(items: Iterator[Item], embed: Callable[[Item], Made]) -> Iterator[tuple[Item, Made]]:
    """Items and their embeddings by `embed`, checked to be finite, in order. Those on a GPU come when the
    next are queued behind them, so that the GPU has work while their flags are waited for.
    """
    queued: deque[tuple[Item, Made, FiniteChecks]] = deque()
    for item in items:
        with deferred_checks() as checks:
            made = embed(item)
        queued.append((item, made, checks.start()))
        del item, made  # else they would outlive the next ones
        if len(queued) > 1 or not queued[0][2]:
            yield _checked(*queued.popleft())
    while queued:
        yield _checked(*queued.popleft())


def _checked(item: Item, made: Made, checks: FiniteChecks) -> tuple[Item, Made]:
    checks.verify()
    return item, made


def check_finite(embeddings: torch.Tensor, message: str) -> None:
    """Raise NonFiniteFeaturesError with this message for NaN or infinity: at once, or, on a GPU inside
    `deferred_checks`, when those are verified.
    """
    # One pass and one number: a finite sum has finite terms, and embeddings are far from overflowing one.
    flag = torch.isfinite(embeddings.sum(dtype=torch.float32))
    checks = _deferred.get()
    if checks is not None and is_asynchronous(embeddings.device):
        checks.add(flag, message)
    elif not bool(flag):
        raise NonFiniteFeaturesError(message)


def is_asynchronous(device: torch.device) -> bool:
    """Whether work on this device goes on while the program does."""
    return device.type == "cuda"


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def _arrival(device: torch.device) -> Any:
    """An event behind all that is queued on this device's current stream."""
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
