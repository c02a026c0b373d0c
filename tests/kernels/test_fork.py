"""Kernels in a process that was forked after they had been used: one thread works there, to the same result.

Threads do not survive a fork, and a team in the child would wait for them for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os, sys
import numpy as np
from ensemblead import _core
from ensemblead.kernels import convolution, coreset, nearest, patches, tiling

random = np.random.default_rng(0)

def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)

rows = normal(20_000, 64)
maps = [normal(2, 24, 40, 40), normal(2, 40, 20, 20)]
images = normal(2, 3, 300, 300)
batch, gradients, taps = normal(4, 40, 40, 32), normal(4, 40, 40, 48), normal(3, 3, 32, 48)

def run_all():
    prepared = nearest.SketchedRows.of(rows[:3000], rows.mean(0), np.eye(64, dtype=np.float32)[:24].copy())
    tiles = tiling.tile(images, 96, 40)
    results = [
        coreset.select_coreset(rows, size=50, projection_dim=None),
        coreset.project(rows, rows[:20].copy()),
        *nearest.nearest_rows(rows[3000:5000], prepared, 2),
        patches.aggregate_patches(maps, pretrain_dim=30, target_dim=48),
        convolution.convolve(batch, taps),
        convolution.taps_gradient(batch, gradients),
        tiles,
        tiling.untile(tiles, 300, 40),
        tiling.smooth_seams(images, 96, 40),
    ]
    return [result.tobytes() for result in results]

def forked(function):
    process = os.fork()
    if process == 0:
        status = 1
        try:
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

expected = run_all()
assert _core.default_threads() > 1
same = lambda: run_all() == expected and _core.default_threads() == 1
assert forked(same) == 0, "a child"
assert forked(lambda: forked(same) == 0) == 0, "a child of a child"
assert run_all() == expected and _core.default_threads() > 1, "the parent afterwards"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_after_use() -> None:
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD],
        env={**os.environ, "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr[-2000:]
