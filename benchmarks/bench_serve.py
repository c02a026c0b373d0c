"""A service beside the bare detector: latency of one client, throughput of several, one and two processes.

    python -m pytest benchmarks/bench_serve.py [--weights FOLDER] [--images N]

PatchCore with ResNet18 at 256 x 256 on drawn photographs of 640 x 480 pixels, JPEG; with `--weights` (the
folder of bench_detection.py) the published weights, without it random ones, whose speed is the same. The
detector runs here, and services in processes of their own, with as many threads each. All candidates take
turns, round after round. Clients are threads of this process and share the machine with the services.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from PIL import Image
from record import FiguresOf

import ensemblead as ead
from ensemblead.images import EncodedImage

CLIENTS = (1, 4, 8)
# Images of a candidate in a round, and rounds.
IMAGES, ROUNDS = 32, 3
Call = Callable[[list[bytes]], list[float]]


def photographs(count: int) -> list[bytes]:
    """JPEG files of 480 x 640 pixels."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        noise = rng.integers(0, 255, (60, 80, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


@contextmanager
def served(model: Path, processes: int) -> Iterator[int]:
    """The port at which so many processes serve a model."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ensemblead", "serve", str(model), "--port", str(port), "--reuse-port"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(processes)]
    try:
        for process in running:
            assert process.stderr is not None
            assert any(" is served at " in line for line in process.stderr), "a service has ended"
        yield port
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.communicate()


def ask(port: int, images: list[bytes]) -> list[float]:
    """Seconds of every request of one client, one image each, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    seconds = []
    for image in images:
        start = time.perf_counter()
        connection.request("POST", "/predict", image, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        body = answer.read()
        seconds.append(time.perf_counter() - start)
        assert answer.status == 200, body
    connection.close()
    return seconds


def by_clients(port: int, clients: int) -> Call:
    def call(images: list[bytes]) -> list[float]:
        parts = [images[number::clients] for number in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            return [one for part in pool.map(lambda part: ask(port, part), parts) for one in part]

    return call


def bare(detector: Any, batch: int) -> Call:
    """The detector without a service, so many images a call; an image's latency is its call's."""

    def call(images: list[bytes]) -> list[float]:
        seconds = []
        for first in range(0, len(images), batch):
            chosen = [EncodedImage("image", data) for data in images[first : first + batch]]
            start = time.perf_counter()
            detector.predict(chosen)
            seconds += [time.perf_counter() - start] * len(chosen)
        return seconds

    return call


def test_service(figures: FiguresOf, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    limit, folder = pytestconfig.getoption("--images"), pytestconfig.getoption("--weights")
    count, rounds = (IMAGES, ROUNDS) if limit is None else (limit, 2)
    weights = None if folder is None else folder / "resnet18.safetensors"
    files = photographs(count)
    model = tmp_path / "model"
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files[:16]])
    detector = ead.PatchCore("resnet18", weights=weights, device="cpu", batch_size=8)
    detector.fit(pixels).save(model, include_backbone=True)
    candidates: dict[str, Call] = {"bare, 1 image a call": bare(detector, 1)}
    candidates["bare, 8 images a call"] = bare(detector, 8)
    seconds: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        for processes in (1, 2):
            port = stack.enter_context(served(model, processes))
            for clients in CLIENTS[processes - 1 :]:  # one client has one connection, to one process
                what = f"serve, {processes} process{'es' * (processes > 1)}, {clients} client"
                candidates[f"{what}{'s' * (clients > 1)}"] = by_clients(port, clients)
        for number in range(-1, rounds):
            for what, call in candidates.items():
                start = time.perf_counter()
                found = call(files)
                if number >= 0:  # the first round warms up
                    seconds.setdefault(what, []).extend(found)
                    rates.setdefault(what, []).append(count / (time.perf_counter() - start))
    report(figures, seconds, rates)


def report(figures: FiguresOf, seconds: dict[str, list[float]], rates: dict[str, list[float]]) -> None:
    best = rates["bare, 8 images a call"]
    for what, found in seconds.items():
        low, high = np.quantile(found, (0.5, 0.99)) * 1e3
        share = statistics.median(own / base for own, base in zip(rates[what], best, strict=True))
        columns = {
            "p50 ms": float(low),
            "p99 ms": float(high),
            "images/s": statistics.median(rates[what]),
            "of bare in batches": share,
        }
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        figures.add(
            what, columns["images/s"], "images/s", columns=columns, threads=threads, rates=rates[what]
        )
