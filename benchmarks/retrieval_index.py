"""The kinds of an image index: recall, latency, memory, and how soon an index is open. The part "index" of
bench_retrieval.py.

Vectors are synthetic and clustered, 512 dimensions: there are count / 100 centres from a standard normal
distribution, a row is a random centre plus noise of the same distribution, scaled to length 1. Queries are
made in the same way and are not in the index. Two rows of one centre have a cosine similarity of about .5.
Everything follows from the seed.

Every kind is measured in a process of its own, and its row is kept in `--cache` as JSON: a run that was
interrupted goes on with the next kind. The index itself is kept there too: where its row is missing, its
searches alone are measured again.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import PeakMemory, in_child

from ensemblead.common.files import write_atomically

KINDS = ("flat", "ivf", "hnsw", "pq", "usearch")
DIM, SEED, QUERIES, TOP = 512, 0, 1000, 10
SINGLE = 100  # queries that are timed one by one
_CHUNK = 50_000


def measure(folder: Path, count: int, kinds: Sequence[str] = KINDS, threads: int = 1) -> list[dict[str, Any]]:
    """One row per kind: what was measured, and what is in the table of `bench_retrieval.py`.

    Columns: kind, count, dim, threads, build_s (rows, catalogue and structure; processor time), open_ms,
    first_ms (the first search of one query, which reads the structure), query_ms (median of 100 queries, one
    by one), batch_ms (per query, 1,000 together), recall (share of the ten nearest that are among ten hits),
    memory_mb (peak beyond what the process had before opening, over all searches), disk_mb.
    """
    place = folder / f"{count}x{DIM}"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "vectors.npy").exists():
        _draw(place / "vectors.npy", count)
    rows = []
    for kind in ("flat", *(kind for kind in kinds if kind != "flat")):  # flat finds the truth
        result = place / f"{kind}.{threads}.json"
        if not result.exists():
            write_atomically(result, json.dumps(in_child(_measure_kind, place, count, kind, threads)))
        rows.append(json.loads(result.read_text()))
    return [row for row in rows if row["kind"] in kinds]


def _chunks(count: int, part: int) -> Iterator[np.ndarray]:
    """Rows of length 1, float32. `part` is 0 for the index, 1 for the queries."""
    centres = np.random.default_rng(SEED).standard_normal((max(1, count // 100), DIM), dtype=np.float32)
    total = QUERIES if part else count
    for a in range(0, total, _CHUNK):
        rng = np.random.default_rng([SEED, part, a])
        size = min(_CHUNK, total - a)
        rows = rng.standard_normal((size, DIM), dtype=np.float32)
        rows += centres[rng.integers(len(centres), size=size)]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield rows


def _draw(path: Path, count: int) -> None:
    unfinished = path.with_suffix(".tmp")
    rows = np.lib.format.open_memmap(unfinished, "w+", np.float16, (count, DIM))
    start = 0
    for chunk in _chunks(count, 0):
        rows[start : start + len(chunk)] = chunk
        start += len(chunk)
    rows.flush()
    os.replace(unfinished, path)


def _measure_kind(place: Path, count: int, kind: str, threads: int) -> dict[str, Any]:
    import torch

    import ensemblead as ead

    torch.set_num_threads(threads)
    names = [f"{i:08}" for i in range(count)]
    vectors = np.load(place / "vectors.npy", mmap_mode="r")
    out = place / kind
    took = place / f"{kind}.{threads}.build"  # written once the index is whole
    if not took.exists():
        shutil.rmtree(out, ignore_errors=True)
        start = time.process_time()
        ead.ImageIndex.from_vectors(names, vectors, out, kind=kind, seed=SEED).close()
        write_atomically(took, str(time.process_time() - start))
    built = float(took.read_text())
    del names, vectors
    queries = next(_chunks(count, 1))
    memory = PeakMemory()
    index, opened = _timed(lambda: ead.ImageIndex.open(out))
    with index:
        _, first = _timed(lambda: index.search(queries[0], top=TOP))
        single = [_timed(lambda q=query: index.search(q, top=TOP))[1] for query in queries[:SINGLE]]
        hits, batch = _timed(lambda: index.search(queries, top=TOP))
    peak = memory.read()
    if kind == "flat":
        write_atomically(place / "truth.json", json.dumps(hits.ids.tolist()))
    truth = json.loads((place / "truth.json").read_text())
    found = [len(set(near) & set(ids)) / TOP for near, ids in zip(truth, hits.ids.tolist(), strict=True)]
    disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "kind": kind,
        "count": count,
        "dim": DIM,
        "threads": threads,
        "build_s": round(built, 1),
        "open_ms": round(opened * 1e3, 2),
        "first_ms": round(first * 1e3, 1),
        "query_ms": round(statistics.median(single) * 1e3, 2),
        "batch_ms": round(batch / QUERIES * 1e3, 3),
        "recall": round(float(np.mean(found)), 4),
        "memory_mb": round(peak / 1e6),
        "disk_mb": round(disk / 1e6),
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
