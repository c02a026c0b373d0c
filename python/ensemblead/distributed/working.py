"""On a worker: one unit of work at a time, with its share of the cores, its warnings kept for the caller."""

from __future__ import annotations

import importlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ensemblead.common.threads import available_cores
from ensemblead.common.warnings import SlowPredictWarning, ThresholdWarning, warn
from ensemblead.config.names import registered_class
from ensemblead.images import BitDepthWarning

# A process has one set of warnings and of threads, so threads of one process take turns.
_turn = threading.Lock()
# Warnings of the library, by name. All others are the worker's own.
KINDS: dict[str, type[Warning]] = {
    one.__name__: one for one in (UserWarning, ThresholdWarning, SlowPredictWarning, BitDepthWarning)
}


class Work:
    """What a worker has to say of its units."""

    def __init__(self, caught: list[warnings.WarningMessage]) -> None:
        self._caught = caught
        self._start = time.perf_counter()

    def record(self) -> dict[str, Any]:
        """Where and how long, and the warnings, since the last record."""
        own = [one for one in self._caught if one.category in KINDS.values()]
        seconds, self._start = time.perf_counter() - self._start, time.perf_counter()
        self._caught[:] = [one for one in self._caught if one not in own]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": round(seconds, 3),
            "warnings": [[one.category.__name__, str(one.message)] for one in own],
        }


@contextmanager
def at_work(sharing: int, modules: Sequence[str] = ()) -> Iterator[Work]:
    """Around the work of a task. `sharing`: how many workers share the cores; `modules`: to be imported, for
    the classes that they register.
    """
    with _turn, _threads(sharing):
        for name in modules:
            importlib.import_module(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield Work(caught)
        for one in caught:
            if one.category not in KINDS.values():
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


@contextmanager
def _threads(sharing: int) -> Iterator[None]:
    """The cores that a quota leaves, divided by the workers, unless OMP_NUM_THREADS says how many threads
    there are.
    """
    before = torch.get_num_threads()
    if sharing > 1 and not os.environ.get("OMP_NUM_THREADS"):
        # The kernels follow torch, which knows no quota.
        torch.set_num_threads(max(1, min(before, available_cores()) // sharing))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def repeat_warnings(records: Sequence[dict[str, Any]]) -> None:
    """Issue what workers were warned of, each message once."""
    messages = dict.fromkeys((kind, message) for one in records for kind, message in one["warnings"])
    for kind, message in messages:
        warn(message, KINDS.get(kind, UserWarning))


def modules_of(description: Any) -> list[str]:
    """The modules that a worker must import to know the classes in a description: those of the user alone."""
    names = dict.fromkeys(registered_class(name).__module__ for name in _types(description))
    return [name for name in names if name.split(".")[0] not in ("ensemblead", "__main__", "__mp_main__")]


def _types(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("type"), str):
            yield value["type"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _types(item)


def no_progress(stage: str, done: int, total: int) -> None:
    """The caller is not here."""
