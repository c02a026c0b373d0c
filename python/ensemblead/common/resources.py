"""How much memory this process has needed."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory_mb() -> float:
    """The peak resident size of this process, since it started or since `reset_peak_memory`."""
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024.0
    # Linux counts it in kilobytes, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1e6 if sys.platform == "darwin" else 1024.0)


def reset_peak_memory() -> bool:
    """Let the peak begin anew at what is resident now; whether that could be done (on Linux alone)."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
