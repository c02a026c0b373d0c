"""Hundreds of requests at once, good and bad, by a client of another library."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("python_multipart")
pytest.importorskip("httpx")

import httpx
from support.serving import Client, serving, wait_for

Files = list[tuple[str, bytes]]
CLIENTS, REQUESTS = 8, 240


def test_everybody_is_answered_and_rightly(detector: Any, pixels: np.ndarray, files: Files) -> None:
    exact = dict(zip([name for name, _ in files], detector.predict(pixels).anomaly_score, strict=True))
    with serving(detector, max_queue=12, max_bytes=50_000, max_batch=8) as running:
        shared = httpx.Client(base_url=running.url, timeout=60, limits=httpx.Limits(max_connections=CLIENTS))

        def request(number: int) -> str:
            rng = random.Random(number)
            kind = rng.choice(["one", "one", "several", "bad", "large", "form", "gone"])
            if kind == "gone":
                Client(running, files[0]).socket.close()
                return kind
            chosen = {
                "one": [rng.choice(files)],
                "several": rng.sample(files, 3),
                "bad": [rng.choice(files), ("bad.png", b"none")],
                "large": [("large.png", bytes(60_000))],
                "form": [],
            }[kind]
            if kind == "form":
                answer = shared.post("/predict", content=b"--", headers={"Content-Type": "image/png"})
            else:
                answer = shared.post("/predict", files=[("files", one) for one in chosen])
            if answer.status_code == 503:
                assert answer.headers["Retry-After"] == "1"
                return "busy"
            if kind in ("large", "form"):
                assert answer.status_code == (413 if kind == "large" else 422)
                return kind
            assert answer.status_code == 200
            images = answer.json()["images"]
            assert [image["name"] for image in images] == [name for name, _ in chosen]
            for image in images:
                if image["name"] == "bad.png":
                    assert image["error"]["status"] == 422
                else:
                    # The batch decides the last bits of a score, not more.
                    assert image["score"] == pytest.approx(exact[image["name"]], rel=1e-4)
            return kind

        with shared, ThreadPoolExecutor(CLIENTS) as pool:
            counts = Counter(pool.map(request, range(REQUESTS)))
        assert counts.total() == REQUESTS
        assert set(counts) >= {"one", "several", "bad", "large", "form", "gone"}
        batches, images = (running.metric(f"ensemblead_batch_images_{one}") for one in ("count", "sum"))
        assert images > batches, "nothing was batched"
        wait_for(lambda: running.service.is_idle)
