"""Embedding ensembles for image search: the grid search over weights, fusion, image indexes, embedding.

    python -m pytest benchmarks/bench_retrieval.py -k grid
    python -m pytest benchmarks/bench_retrieval.py -k "fusion or build" --data FOLDER --weights FOLDER
    python -m pytest benchmarks/bench_retrieval.py -k "index and 1e5" [--cache FOLDER]

grid: 125 combinations of three networks' drawn embeddings, 2048 + 2560 + 1536 dimensions, 5,000 items. The
naive way joins, normalises, multiplies and ranks anew for every combination. It and the way by torch alone
(products once, then a sum and `topk` for every combination) are timed on a few combinations and their times
are multiplied; the note says so.

fusion and build: see retrieval_fusion.py; index: see retrieval_index.py. What they have measured is kept in
`--cache`, and not measured again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import retrieval_fusion  # noqa: E402
import retrieval_index  # noqa: E402
from common import Timing, interleaved, ratio  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402

THREADS = 2

# --- grid -----------------------------------------------------------------------------------------

ITEMS, CLASSES, DEPTH = 5000, 100, 50
DIMS = (2048, 2560, 1536)
NOISE = (1.0, 0.8, 0.9)
GRID = list(itertools.product(range(1, 6), repeat=3))
TIMED = [(1, 2, 3), (5, 3, 2)]  # of the slow ways


def networks() -> tuple[list[torch.Tensor], np.ndarray]:
    """float32 [N, D_k] of three networks, and labels [N]: classes overlap, as they do in ImageNet."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ITEMS) % CLASSES
    found = []
    for dims, noise in zip(DIMS, NOISE, strict=True):
        centres = torch.randn(CLASSES, dims, generator=generator)
        rows = torch.randn(ITEMS, dims, generator=generator)
        found.append(0.11 / noise * centres[labels] + rows)
    return found, labels.numpy()


def mean_average_precision(top: torch.Tensor, labels: torch.Tensor, relevant: int) -> float:
    hits = labels[top] == labels[:, None]
    ranks = torch.arange(1, top.shape[1] + 1)
    gains = hits * hits.cumsum(1) / ranks
    return float((gains.sum(1) / min(relevant, top.shape[1])).double().mean())


def naive(
    parts: Sequence[torch.Tensor], labels: torch.Tensor, combinations: Sequence[tuple[int, ...]]
) -> list[float]:
    found = []
    for weights in combinations:
        units = [torch.nn.functional.normalize(part) for part in parts]
        joined = torch.cat([weight * unit for weight, unit in zip(weights, units, strict=True)], dim=1)
        joined = torch.nn.functional.normalize(joined)
        similarities = (joined @ joined.T).fill_diagonal_(-torch.inf)
        top = similarities.topk(DEPTH).indices
        found.append(mean_average_precision(top, labels, ITEMS // CLASSES - 1))
    return found


def products(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    units = [torch.nn.functional.normalize(part) for part in parts]
    return [(unit @ unit.T).fill_diagonal_(-torch.inf) for unit in units]


def sums(
    blocks: Sequence[torch.Tensor], labels: torch.Tensor, combinations: Sequence[tuple[int, ...]]
) -> None:
    for weights in combinations:
        total = sum(weight**2 * block for weight, block in zip(weights, blocks, strict=True))
        mean_average_precision(total.topk(DEPTH).indices, labels, ITEMS // CLASSES - 1)


def times(timing: Timing, factor: float) -> Timing:
    return Timing(tuple(factor * seconds for seconds in timing.seconds))


def test_grid(figures: FiguresOf) -> None:
    torch.set_num_threads(THREADS)
    parts, labels = networks()
    truth = torch.from_numpy(labels)
    search = functools.partial(ead.search_weights, parts, labels, k=DEPTH, holdout=0)
    blocks = products(parts)
    timings = interleaved(
        {
            "ours": search,
            "naive, some": functools.partial(naive, parts, truth, TIMED),
            "products": functools.partial(products, parts),
            "torch sums, some": functools.partial(sums, blocks, truth, TIMED),
        },
        repeats=3,
    )
    rows = {row.weights: row.map for row in search().rows}
    expected = dict(zip(TIMED, naive(parts, truth, TIMED), strict=True))
    difference = max(abs(rows[weights] - value) for weights, value in expected.items())
    factor = len(GRID) / len(TIMED)
    all_naive, all_sums = times(timings["naive, some"], factor), times(timings["torch sums, some"], factor)
    by_torch = timings["products"].median + all_sums.median
    figures.add(
        f"grid: 125 combinations, {ITEMS} items of {'+'.join(map(str, DIMS))}: naive / ours",
        ratio(all_naive, timings["ours"]),
        "x",
        at_least=30.0,
        note=f"ours {timings['ours'].median:.1f} s; naive timed on {len(TIMED)} of 125 combinations; "
        f"products once and topk in torch: {by_torch / timings['ours'].median:.1f}x",
        timings=timings,
    )
    figures.add("grid: largest difference of mAP to naive", difference, at_most=1e-6)


# --- fusion, build, index -------------------------------------------------------------------------


def test_fusion(figures: FiguresOf, material: tuple[Path, Path], pytestconfig: pytest.Config) -> None:
    retrieval_fusion.fusion(figures, *material, pytestconfig.getoption("--cache"))


def test_build(figures: FiguresOf, material: tuple[Path, Path]) -> None:
    retrieval_fusion.build(figures, *material)


@pytest.mark.parametrize("kind", retrieval_index.KINDS)
@pytest.mark.parametrize("count", [100_000, 1_000_000], ids=["1e5", "1e6"])
def test_index(figures: FiguresOf, count: int, kind: str, pytestconfig: pytest.Config) -> None:
    for row in retrieval_index.measure(pytestconfig.getoption("--cache"), count, [kind]):
        what = f"index: {row['kind']}, {count} x {row['dim']}"
        columns = {name: value for name, value in row.items() if name not in ("kind", "count", "dim")}
        figures.add(what, row["recall"], "recall@10", columns=columns)
