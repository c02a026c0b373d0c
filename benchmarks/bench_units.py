"""Fits on an executor: what it costs beyond the longest unit of work, and what two workers gain over one.

Two equal members, each on one thread, on Dask workers that have imported everything: on one worker, on two,
in turns. The overhead is the time of the whole fit less that of the longest member as its worker measured it:
listing and hashing, sending, saving, loading, and joining. ENSEMBLEAD_BENCH_IMAGES sets another number of
images, for a quick trial.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import Timing
from PIL import Image
from record import FiguresOf

import ensemblead as ead

pytest.importorskip("distributed")
from distributed import Client, LocalCluster

SIDE, ROUNDS = 224, 3
IMAGES = int(os.environ.get("ENSEMBLEAD_BENCH_IMAGES", "400"))


def _draw(folder: Path, count: int) -> list[str]:
    """Coarse coloured squares, in files."""
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        coarse = np.random.default_rng(i).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))).save(path)
    return [str(path) for path in paths]


def _ensemble() -> ead.BackboneEnsemble:
    common: dict[str, Any] = {"weights": None, "resize": None, "image_size": SIDE, "device": "cpu"}
    members = [
        ead.PatchCore("resnet18", ("layer2", "layer3"), target_dim=384, seed=seed, **common)
        for seed in (0, 1)
    ]
    return ead.BackboneEnsemble(members)


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0") as one,
        Client(one) as client,
    ):
        client.wait_for_workers(workers)
        yield client.get_executor()


def _fit(executor: Any, paths: list[str]) -> tuple[float, float]:
    """Seconds of a fit, and of its longest member."""
    from ensemblead.store import read_folder

    ensemble = _ensemble().load_networks()  # the caller has them, as for a fit in its own process
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ensemble.fit(paths, executor=executor, workdir=folder)
        wall = time.perf_counter() - start
        readers = [read_folder(one) for one in Path(folder).glob("member*")]
        return wall, max(reader.state["seconds"] for reader in readers if reader is not None)


def test_two_equal_members(figures: FiguresOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    paths = _draw(tmp_path / "images", IMAGES)
    walls: dict[str, list[float]] = {"one worker": [], "two workers": []}
    overheads: list[float] = []
    with _cluster(1) as one, _cluster(2) as two:
        for executor in (one, two):
            _fit(executor, paths[:16])
        for _ in range(ROUNDS):
            for name, executor in zip(walls, (one, two), strict=True):
                wall, longest = _fit(executor, paths)
                walls[name].append(wall)
                if executor is two:
                    overheads.append(wall - longest)
    timings = {name: Timing(tuple(seconds)) for name, seconds in walls.items()}
    ratios = [a / b for a, b in zip(*walls.values(), strict=True)]
    what = f"{IMAGES} images, two members, one thread each, Dask"
    figures.add(
        f"{what}: one worker / two workers",
        statistics.median(ratios),
        "x",
        at_least=1.6,
        note=f"{timings['one worker'].median:.0f} s and {timings['two workers'].median:.0f} s",
        timings=timings,
    )
    figures.add(
        f"{what}: beyond the longest member",
        statistics.median(overheads),
        "s",
        at_most=3.0,
        overheads=overheads,
    )
