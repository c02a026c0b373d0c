"""Memory of the process: its peak, and free memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

resource: Any = None  # as on Windows
with contextlib.suppress(ImportError):
    resource = importlib.import_module("resource")


def peak_memory_mb() -> float:
    """The peak resident size of this process, since it started or since `reset_peak_memory`; on Windows
    NaN.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024.0
    if resource is None:
        return float("nan")
    # Linux counts it in kilobytes, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1e6 if sys.platform == "darwin" else 1024.0)


def reset_peak_memory() -> bool:
    """Let the peak begin anew at what is in use now; whether that could be done (on Linux alone)."""
    gc.collect()
    return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function, or None: other C libraries have none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


def return_free_memory() -> None:
    """Give free pages of the C heap back.

    glibc keeps what lies below anything that is still in use. Where much is allocated and freed around little
    that stays, over and over (a memory bank out of its embeddings, at one tile location after the other), the
    process comes to hold several times what it uses.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
