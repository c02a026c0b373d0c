"""The emulation itself: that its threads, warps and blocks work as those of a device, and what it finds."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ensemblead
from ensemblead import _core

PROBE = ctypes.CDLL(os.environ["ENSEMBLEAD_EMULATION_PROBE"])
SANITIZED = b"__asan" in Path(_core.__file__).read_bytes()


def probe(name: str, *arguments: object) -> str | None:
    """Calls a probe; what went wrong, or None."""
    function = getattr(PROBE, f"probe_{name}")
    function.restype = ctypes.c_char_p
    converted = [
        ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else value for value in arguments
    ]
    message = function(*converted)
    return None if message is None else message.decode()


@pytest.fixture(autouse=True, params=[0, 1, 5], ids=["ascending", "descending", "shuffled"])
def probe_order(request):
    PROBE.ensemblead_emulation_reset()
    PROBE.ensemblead_emulation_order(request.param)
    yield request.param
    PROBE.ensemblead_emulation_reset()


def test_it_is_no_device():
    """Nobody is ever sent to the emulation, and no test that needs a GPU takes it for one."""
    assert _core.cuda_decision == "emulated on the CPU, for tests"
    assert not ensemblead.cuda_available()


def test_sums():
    values, total = np.arange(1000, dtype=np.float32), np.zeros(1, np.float32)
    assert probe("sum", values, 1000, total) is None
    assert total[0] == 499500


def test_warp_functions():
    out, lane = np.empty((8, 32), np.int32), np.arange(32)
    assert probe("warp", out) is None
    odd = lane % 2 == 1
    expected = [
        np.full(32, 5),
        np.where(lane % 8 < 3, lane, lane - 3),
        np.where(lane + 3 < 32, lane + 3, lane),
        lane ^ 1,
        np.full(32, 0xAAAAAAAA, np.uint32).view(np.int32),
        np.where(odd, lane[odd].sum(), 30),
        np.full(32, 1),
        (0xFF << (lane // 8 * 8)).astype(np.uint32).view(np.int32),
    ]
    np.testing.assert_array_equal(out, expected)


def test_votes_of_a_block():
    out = np.empty(96, np.int32)
    assert probe("vote", out) is None
    np.testing.assert_array_equal(out, 40 * 4 + 1)


def test_a_missing_barrier_shows_in_some_order(probe_order):
    values = np.arange(64, dtype=np.int32)
    assert probe("reverse", values, 64, True, ctypes.c_size_t(256)) is None
    np.testing.assert_array_equal(values, np.arange(64)[::-1])
    assert probe("reverse", values, 64, False, ctypes.c_size_t(256)) is None
    assert not np.array_equal(values, np.arange(64))


def test_shared_memory_is_rubbish_at_first():
    out = np.zeros(64, np.uint32)
    assert probe("fresh", out) is None
    np.testing.assert_array_equal(out, 0xFFFFFFFF)


def test_copies_arrive_when_waited_for():
    source, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    assert probe("pipeline", source, out, True) is None
    np.testing.assert_array_equal(out, source[::-1])
    assert probe("pipeline", source, out, False) is None
    np.testing.assert_array_equal(out, -1)


@pytest.mark.parametrize(
    ("which", "threads", "message"),
    [
        ("ended", 32, r"divergent barrier in block \(0, 0, 0\).*has ended"),
        ("two_barriers", 64, r"divergent barrier.*__syncthreads at .*probe.cu:\d+ while"),
        ("mixed", 64, "divergent barrier.*__syncwarp"),
        ("absent_lane", 32, r"divergent barrier.*__ballot_sync.*has ended"),
        ("short_warp", 20, "mask that names lanes which its warp lacks"),
        ("thrower", 32, "out of the kernel"),
    ],
)
def test_what_would_hang_throws(which, threads, message):
    error = probe("wrong", which.encode(), 1, threads)
    assert error is not None
    assert re.search(message, error), error
    test_sums()  # and the next launch works


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_launches_that_a_device_refuses(blocks, threads):
    message = probe("wrong", b"ended", blocks, threads)
    assert message is not None
    assert "ended_kernel failed on the CUDA device: cudaErrorInvalidConfiguration" in message


@pytest.mark.skipif(not SANITIZED, reason="this core was built without sanitizers")
def test_misaligned_vectors_are_found():
    """UndefinedBehaviorSanitizer ends the process."""
    code = f"""
import ctypes, numpy as np
probe = ctypes.CDLL({os.environ["ENSEMBLEAD_EMULATION_PROBE"]!r})
values = np.zeros(64, np.float32)
probe.probe_misaligned(ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(values.ctypes.data))
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode != 0
    assert "misaligned address" in outcome.stderr


def test_shared_memory_has_a_limit():
    values = np.arange(32, dtype=np.int32)
    assert probe("reverse", values, 32, True, ctypes.c_size_t(100 * 1024)) is None
    message = probe("reverse", values, 32, True, ctypes.c_size_t(300 * 1024))
    assert message is not None
    assert "reverse_kernel failed" in message


def test_devices_that_there_are_not():
    assert probe("device", 1) is None
    message = probe("device", 2)
    assert message is not None
    assert "cudaErrorInvalidDevice" in message


def test_fast_division_is_exact():
    """The divisors around powers of two, and random ones; the dividends around their multiples."""
    rng = np.random.default_rng(0)
    limit = 2**31
    divisors = {d for k in range(31) for d in (2**k - 1, 2**k, 2**k + 1) if 1 <= d < limit}
    divisors |= {int(2 ** rng.uniform(0, 31)) for _ in range(200)} | {limit - 1}
    for divisor in sorted(divisors):
        multiples = rng.integers(0, limit // divisor + 1, 200) * divisor
        near = np.concatenate([multiples - 1, multiples, multiples + 1, [0, limit - 1]])
        dividends = near[(near >= 0) & (near < limit)].astype(np.uint32)
        quotients = np.zeros_like(dividends)
        arguments = (dividends, len(dividends), ctypes.c_uint(divisor), quotients)
        assert probe("divide", *arguments) is None
        np.testing.assert_array_equal(quotients, dividends // np.uint32(divisor))
