"""kill -9 of `watch` at chosen and at random moments: nothing is lost, and nothing is doubled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from support import watched


def killed(folder: Path, trials: int, seed: int) -> dict[str, int]:
    command = [sys.executable, watched.__file__, str(folder), str(trials), str(seed)]
    above = str(Path(watched.__file__).parent.parent)
    paths = os.pathsep.join([above, *filter(None, [os.environ.get("PYTHONPATH")])])
    outcome = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    assert outcome.returncode == 0, outcome.stderr
    found: dict[str, int] = json.loads(outcome.stdout)
    assert found.pop("scored") == watched.PER_TRIAL * trials
    assert found.pop("failed") == trials
    return found


def test_a_kill_at_every_chosen_moment(tmp_path: Path) -> None:
    found = killed(tmp_path, len(watched.MOMENTS), seed=0)
    assert found == {f"{moment}: killed": 1 for moment in watched.MOMENTS}


@pytest.mark.slow
def test_many_kills(tmp_path: Path) -> None:
    found = killed(tmp_path, 40 if os.environ.get("ENSEMBLEAD_BRIEF") != "1" else 20, seed=1)
    assert found["from outside: killed"] > 0
