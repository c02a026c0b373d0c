"""The indexes of a memory bank on real features: how often they find the nearest row, and how fast.

    python -m pytest benchmarks/bench_index.py --data FOLDER --weights FOLDER

Bottles at 256 x 256 through ResNet18's layer2 and layer3: 384 dimensions, 1,024 queries per image. Recall@1
is the share of queries whose nearest row was found, over every fourth test image. FAISS's own exact index
stands beside ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
faiss = pytest.importorskip("faiss")

from common import interleaved, ratio  # noqa: E402
from real_features import bottle_features  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402
from ensemblead.metrics import auroc  # noqa: E402

INDEXES = ("flat", "ivf", "ivfpq", "hnsw", "sq16")
THREADS = 2
TIMED_IMAGES = 4
JUDGED = 4  # recall is taken on every fourth test image
Features = tuple[Any, Any, list[bool]]


@pytest.fixture(scope="module")
def features(pytestconfig: pytest.Config) -> Features:
    """Rows of the training images, `[images, patches, D]` of the test images, and which are defective."""
    data, weights = pytestconfig.getoption("--data"), pytestconfig.getoption("--weights")
    if data is None or weights is None or not (data / "mvtec_bottle").is_dir():
        pytest.skip("measures on real features: give --data FOLDER (with mvtec_bottle) and --weights FOLDER")
    return bottle_features(data, weights, 256)


def _each(search: Callable[[Any], Any], images: Sequence[Any]) -> None:
    for queries in images:
        search(queries)


@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_indexes(figures: FiguresOf, features: Features, fraction: float) -> None:
    train, test, labels = features
    torch.set_num_threads(THREADS)
    banks = {}
    for name in INDEXES:
        banks[name] = ead.MemoryBank(fraction, index=name)
        banks[name].add(train, copy=False)
        banks[name].fit()
    rows = banks["flat"].rows_
    exact = faiss.IndexFlatL2(rows.shape[1])
    exact.add(rows.numpy())
    faiss.omp_set_num_threads(THREADS)
    test, labels = test[::JUDGED], labels[::JUDGED]
    timed = list(test[:: len(test) // TIMED_IMAGES][:TIMED_IMAGES])
    searches: dict[str, Any] = {name: bank.search for name, bank in banks.items()}
    searches["FAISS's exact"] = lambda queries: exact.search(queries.numpy(), 1)
    timings = interleaved(
        {name: functools.partial(_each, search, timed) for name, search in searches.items()}
    )
    queries = test.flatten(0, 1)
    nearest, truth = banks["flat"].search(queries)
    for name, search in searches.items():
        distances, found = (torch.as_tensor(part) for part in search(queries))
        patches = distances.reshape(len(test), -1)
        columns = {
            "recall@1": float((found == truth).float().mean()),
            "distance / nearest": float((distances / nearest.clamp_min(1e-12)).mean()),
            "image AUROC": auroc(patches.amax(1).numpy(), np.array(labels)),
            "ms per image": timings[name].median / TIMED_IMAGES * 1e3,
            "flat / this": ratio(timings["flat"], timings[name]),
        }
        figures.add(
            f"bottle, {len(rows)} rows: {name}",
            columns["recall@1"],
            "recall@1",
            timings={name: timings[name]},
            columns=columns,
        )
