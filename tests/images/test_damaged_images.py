"""A campaign: 1,000 damaged images through everything that reads files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
from support.campaigns import trials

SCRIPT = Path(__file__).resolve().parents[1] / "support/damaged_images.py"
COUNT = trials(1000)
SEED = 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_images_are_errors_that_name_them(tmp_path: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is limited on Linux alone")
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(COUNT), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for name, number in sorted(found["counts"].items()):
        print(f"{number:5d}  {name}")
    print({name: found[name] for name in ("seen", "skipped", "raised")})
    assert found["unexpected"] == []
    assert found["unnamed"] == []
    assert sum(found["counts"].values()) == 3 * COUNT
    assert found["seen"] + found["skipped"] == COUNT
    assert found["raised"] == found["skipped"]
    assert min(found["seen"], found["skipped"]) > COUNT // 10
