"""Free memory goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from ensemblead.common.memory import return_free_memory

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
