"""The instruction set that the SIMD loops take."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CPUINFO = Path("/proc/cpuinfo")
# Linux's names of what the compiler may use.
V3 = {"avx2", "fma", "f16c", "bmi1", "bmi2"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def chosen(wish: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from ensemblead import _core; print(_core.instruction_set())"],
        env={**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": wish},
        capture_output=True,
        text=True,
        check=False,
    )


def expected() -> str:
    if platform.machine() not in ("x86_64", "AMD64"):
        return "baseline"
    if not CPUINFO.exists():
        pytest.skip("the system does not list what the processor has")
    line = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    flags = set(line.partition(":")[2].split())
    if flags >= V4:
        return "x86-64-v4+vnni" if "avx512_vnni" in flags else "x86-64-v4"
    return "x86-64-v3" if flags >= V3 else "baseline"


def test_the_best_that_linux_lists_is_taken() -> None:
    assert chosen().stdout.strip() == expected()


def test_the_baseline_is_always_there() -> None:
    assert chosen("baseline").stdout == "baseline\n"


def test_an_unknown_set_is_refused() -> None:
    outcome = chosen("avx")
    assert outcome.returncode == 1
    assert "ENSEMBLEAD_INSTRUCTION_SET must be baseline, x86-64-v3, x86-64-v4 or" in outcome.stderr
