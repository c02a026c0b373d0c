"""A cold start: seconds of fresh processes that load a saved model and score one photograph.

    python -m pytest benchmarks/bench_start.py [--images N]

Every run is a process of its own, with the files in the system's cache, and with compiled files of Python, as
pip makes them when it installs. `--images` is the number of rounds, 7 if absent. Beside the models stands
`import torch`, below which no start can be, once more without compiled files; and `import timm`, which models
needed before they described their networks. All take turns, round after round. Weights are random ones,
stored in the models.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

from record import FiguresOf

import ensemblead as ead

ROUNDS = 7
AT_MOST = 3.0  # seconds, on two cores
PREDICT = """
import sys
import numpy as np
import ensemblead as ead
ead.load(sys.argv[1]).predict(np.zeros((1, 256, 256, 3), np.uint8))
"""
BACKBONES = ("gabor", "resnet18", "wide_resnet50_2")


def seconds_of(compiled: Path | None, code: str, *arguments: str) -> tuple[float, float]:
    """Seconds of a process, and those of processors. Its compiled files of Python are in a folder; None: it
    has none.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = os.devnull if compiled is None else str(compiled)
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
    taken, after = time.perf_counter() - start, os.times()
    return taken, after.children_user + after.children_system - before.children_user - before.children_system


def saved(folder: Path, backbone: str) -> str:
    images = np.random.default_rng(0).integers(90, 110, (20, 256, 256, 3), dtype=np.uint8)
    options = {} if backbone == "gabor" else {"weights": None}
    ead.PatchCore(backbone, device="cpu", **options).fit(images).save(folder / backbone)
    return str(folder / backbone)


def test_cold_start(figures: FiguresOf, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    kept = tmp_path / "compiled"
    programs: dict[str, tuple[Any, ...]] = {
        "import torch, no compiled files": (None, "import torch"),
        "import torch": (kept, "import torch"),
        "import torch, timm": (kept, "import torch, timm"),
    }
    programs |= {f"load and predict, {name}": (kept, PREDICT, saved(tmp_path, name)) for name in BACKBONES}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(-1, pytestconfig.getoption("--images") or ROUNDS):
        for name, program in programs.items():
            found = seconds_of(*program)
            if number >= 0:  # the first round fills the cache
                runs[name].append(found)
    for name, pairs in runs.items():
        seconds, busy = (list(column) for column in zip(*pairs, strict=True))
        limit = AT_MOST if name.startswith("load") else None
        note = f"{statistics.median(busy):.1f} s of processors"
        figures.add(
            name, statistics.median(seconds), "s", at_most=limit, note=note, seconds=seconds, busy=busy
        )
