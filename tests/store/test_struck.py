"""Fits, saves, extensions and suites that are killed, or run out of disk: what was there stays whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.campaigns import trials

SCRIPT = Path(__file__).resolve().parents[1] / "support/struck.py"
TRIALS = {"kill": trials(100), "disk": trials(25)}
_FEWER = {"stream": 2}  # every trial of it writes a large file


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a full disk is a limit of Linux here")
@pytest.mark.parametrize("blow", TRIALS)
@pytest.mark.parametrize("kind", ["save", "stream", "fit", "extend", "suite"])
def test_what_was_there_is_whole(tmp_path: Path, kind: str, blow: str) -> None:
    count = TRIALS[blow] // _FEWER.get(kind, 1)
    call = [sys.executable, str(SCRIPT), kind, blow, str(tmp_path), str(count), "0"]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}, {blow}: {counts}")
    assert {key for key in counts if key.startswith("ended")} == set()
    struck = counts.get("killed" if blow == "kill" else "error", 0)
    assert struck > count // 10, "too few were struck"
