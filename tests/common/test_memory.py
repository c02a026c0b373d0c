"""Free memory goes back to the system, and the peak of the process begins anew."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ensemblead.common import memory
from ensemblead.common.memory import peak_memory_mb, reset_peak_memory, return_free_memory

SCATTERED = """
from ensemblead.common.memory import return_free_memory

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

blocks = [bytearray(b"x") * 100_000 for _ in range(2_000)]
full = resident()
kept = blocks[-1]  # above all the others
del blocks
before = resident()
return_free_memory()
print(full - before, before - resident(), len(kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is tested is glibc's")
def test_pages_below_what_stays_are_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", SCATTERED], check=True, capture_output=True, text=True)
    by_itself, given_back, kept = map(int, run.stdout.split())
    assert by_itself < 20_000_000
    assert given_back > 150_000_000
    assert kept == 100_000


def test_it_may_be_called_at_any_time() -> None:
    for _ in range(3):
        return_free_memory()


def test_a_system_that_does_not_say_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows, which has neither /proc nor `resource`."""
    monkeypatch.setattr(memory, "resource", None)
    monkeypatch.setattr(memory, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
    assert math.isnan(memory.peak_memory_mb())
    assert not memory.reset_peak_memory()


def test_a_new_peak_counts_nothing_of_the_last_one() -> None:
    if not reset_peak_memory():
        pytest.skip("this system does not let the peak begin anew")
    # A hole in the heap, below an array that stays: what is allocated there does not go back by itself.
    arrays = [np.ones(100_000, np.uint8) for _ in range(1200)]
    stays = arrays.pop()
    del arrays
    assert reset_peak_memory()
    before = peak_memory_mb()
    block = np.ones(80 << 20, np.uint8)
    assert peak_memory_mb() >= before + 60
    del block
    for _ in range(20):  # other threads of the process may hold memory for a moment
        assert reset_peak_memory()
        if peak_memory_mb() < before + 60:
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"the peak stays at {peak_memory_mb():.0f} MB, {before:.0f} before")
    assert stays.all()
