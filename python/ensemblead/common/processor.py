"""What this machine's processor computes in."""

from __future__ import annotations

import platform
from pathlib import Path

# Flags of processors that multiply bfloat16: Intel's and AMD's vectors, Intel's matrices, Arm's.
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as it calls itself, else its architecture.

    Args:
        cpuinfo: Linux's description of the processors.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the CPU multiplies bfloat16, where `precision="bfloat16"` is faster than float32; None where
    the system does not say.

    Args:
        cpuinfo: Linux's description of the processors.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    # "flags" on x86, "Features" on Arm.
    flags = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return any(_BFLOAT16 & set(one) for one in flags) if flags else None
