"""weighted_top_k beside torch: a weighted sum of the blocks and `topk`, combination after combination.

    python -m pytest benchmarks/bench_weighted.py

Blocks are cosine similarities of drawn embeddings of 50 classes, with which neighbouring combinations
retrieve much the same, as with real ones. Blocks of independent noise are the worst case.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from common import interleaved, ratio  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402

THREADS = 2
DIMS = (128, 160, 96)
CLASSES = 50
SQUARES = np.array(list(itertools.product(range(1, 6), repeat=3)), np.float32) ** 2


def drawn(queries: int, columns: int, noise: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if noise:
        return [torch.randn(queries, columns, generator=generator) for _ in DIMS]
    labels = torch.arange(columns) % CLASSES
    blocks = []
    for dims in DIMS:
        rows = torch.randn(columns, dims, generator=generator)
        rows = rows + 0.7 * torch.randn(CLASSES, dims, generator=generator)[labels]
        rows = torch.nn.functional.normalize(rows)
        blocks.append((rows[:queries] @ rows.T).contiguous())
    return blocks


def by_torch(blocks: list[torch.Tensor], squares: np.ndarray, k: int) -> list[torch.Tensor]:
    found = []
    for row in squares:
        total = blocks[0] * float(row[0])
        for weight, block in zip(row[1:], blocks[1:], strict=True):
            total.add_(block, alpha=float(weight))
        found.append(total.topk(k).values)
    return found


@pytest.mark.parametrize(
    ("queries", "columns", "combinations", "k", "noise"),
    [
        (256, 5000, 125, 50, False),
        (256, 1345, 125, 50, False),
        (64, 50_000, 25, 50, False),
        (256, 5000, 125, 10, False),
        (256, 5000, 1, 50, False),
        (256, 5000, 125, 50, True),
    ],
)
def test_weighted(
    figures: FiguresOf, queries: int, columns: int, combinations: int, k: int, noise: bool
) -> None:
    torch.set_num_threads(THREADS)
    blocks, squares = drawn(queries, columns, noise), SQUARES[:combinations]
    timings = interleaved(
        {
            "ours": functools.partial(ead.weighted_top_k, blocks, squares, k),
            "torch": functools.partial(by_torch, blocks, squares, k),
        }
    )
    ours, expected = ead.weighted_top_k(blocks, squares, k)[0], torch.stack(by_torch(blocks, squares, k))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    kind = "noise" if noise else "similarities"
    figures.add(
        f"{combinations} combinations, {queries} x {columns}, k = {k}, {kind}: torch / ours",
        ratio(timings["torch"], timings["ours"]),
        "x",
        note=f"{timings['ours'].median * 1e6 / queries / combinations:.2f} us per query and combination",
        timings=timings,
    )
