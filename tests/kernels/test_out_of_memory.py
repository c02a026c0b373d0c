"""Every kernel where memory runs out at any of its allocations: a MemoryError, and the next call is right.

An allocation that fails within a parallel loop must not end the process. The kernels run in a child process.
Its C++ allocator (failing_allocator.cpp) fails at the call that it is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.compiler import compiler_or_skip

HERE = Path(__file__).resolve().parents[1] / "support"

CHILD = """
import ctypes, sys
import numpy as np
from ensemblead.kernels import arrays, convolution, coreset, nearest, patches, tiling

allocator = ctypes.CDLL(sys.argv[1])
allocator.stop_failing.restype = ctypes.c_long
for module in (arrays, convolution, coreset, nearest):
    module.num_threads = lambda: 2
random = np.random.default_rng(0)

def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)

rows = normal(14_000, 8) @ normal(8, 100) + np.float32(0.05) * normal(14_000, 100)
directions = np.linalg.svd(rows[:500], full_matrices=False)[2][:24].copy()
weights = normal(20, 100)
maps = [normal(2, 24, 40, 40), normal(2, 40, 20, 20)]
images = normal(2, 3, 300, 300)
tiles = tiling.tile(images, 96, 40)
batch, gradients, taps = normal(4, 40, 40, 32), normal(4, 40, 40, 48), normal(3, 3, 32, 48)

def search():
    prepared = nearest.SketchedRows.of(rows[:3000], rows.mean(0), directions)
    return np.concatenate(nearest.nearest_rows(rows[3000:5000], prepared, 2))

def products():
    squares = np.square(rows[:3000]).sum(1)
    middle = np.zeros(100, np.float32)
    return np.concatenate(nearest.nearest_by_products(rows[3000:3700], rows[:3000], middle, squares, 2))

KERNELS = {
    "select_coreset": lambda: coreset.select_coreset(rows, size=1500, projection_dim=None),
    "select_coreset_bank": lambda: coreset.select_coreset(rows, size=9, bank=rows[:40], projection_dim=64),
    "project": lambda: coreset.project(rows, weights),
    "nearest_rows": search,
    "nearest_by_products": products,
    "convolve": lambda: convolution.convolve(batch, taps),
    "taps_gradient": lambda: convolution.taps_gradient(batch, gradients),
    "aggregate_patches": lambda: patches.aggregate_patches(maps, pretrain_dim=30, target_dim=48),
    "tile": lambda: tiling.tile(images, 96, 40),
    "untile": lambda: tiling.untile(tiles, 300, 40),
    "smooth_seams": lambda: tiling.smooth_seams(images, 96, 40),
    "smooth_seams_float16": lambda: tiling.smooth_seams(images.astype(np.float16), 96, 40),
}
kernel = KERNELS[sys.argv[2]]
expected = kernel().tobytes()

def attempt(number):
    allocator.fail_allocation(ctypes.c_long(number))
    try:
        right = kernel().tobytes() == expected
    except MemoryError:
        right = False
        assert allocator.allocation_failed(), f"a MemoryError, though allocation {number} did not fail"
    count = allocator.stop_failing()
    assert right or allocator.allocation_failed(), f"a wrong result, allocation {number}"
    assert not (right and allocator.allocation_failed()), f"allocation {number} failed and no one noticed"
    return count

count = attempt(10**9)
most = int(sys.argv[3])
numbers = sorted({number * count // most for number in range(most)} if count > most else range(count))
failures = 0
for number in numbers:
    attempt(number)
    failures += allocator.allocation_failed()
    assert kernel().tobytes() == expected, f"a wrong result after allocation {number} had failed"
# With two threads the number of allocations may vary a little from call to call.
assert failures >= 0.8 * len(numbers) and failures > 0, (failures, len(numbers))
print(f"{failures} of {count} allocations failed")
"""


@pytest.fixture(scope="module")
def allocator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the sanitizer has an allocator of its own")
    if sys.platform != "linux":
        pytest.skip("elsewhere than on Linux a library does not replace the allocator of others")
    compiler = compiler_or_skip("failing_allocator.cpp")
    path = tmp_path_factory.mktemp("allocator") / "failing_allocator.so"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, str(HERE / "failing_allocator.cpp"), "-o", str(path)], check=True)
    return path


@pytest.mark.parametrize(
    "kernel",
    [
        "select_coreset",
        "select_coreset_bank",
        "project",
        "nearest_rows",
        "nearest_by_products",
        "convolve",
        "taps_gradient",
        "aggregate_patches",
        "tile",
        "untile",
        "smooth_seams",
        "smooth_seams_float16",
    ],
)
def test_memory_runs_out_at_any_allocation(allocator: Path, kernel: str) -> None:
    most = 24 if kernel.startswith("select_coreset") else 60
    outcome = subprocess.run(
        [sys.executable, "-c", CHILD, str(allocator), kernel, str(most)],
        env={**os.environ, "LD_PRELOAD": str(allocator)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(outcome.stdout)
    assert outcome.returncode == 0, f"exit status {outcome.returncode}: {outcome.stderr[-2000:]}"
