"""The exact search of a memory bank on the CPU, beside a product over all rows and FAISS's exact index.

    python -m pytest benchmarks/bench_nearest.py --data FOLDER --weights FOLDER

Bottles through ResNet18's layer2 and layer3 (384 dimensions), a coreset of 1 % of all training patches,
every 20th test image as queries, image by image. The effective rate is 2 * Q * M * D / time: the work of
computing every distance once. In a bank of noise nothing can be ruled out, and the product over all rows is
what runs; queries of noise on a bank of features are the worst case of ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
faiss = pytest.importorskip("faiss")

from common import Sgemm, interleaved, ratio  # noqa: E402
from real_features import bottle_features  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402
from ensemblead.search.exact import ExactIndex  # noqa: E402

THREADS = 2
EVERY_TEST = 20
NOISE_ROWS, NOISE_QUERIES, NOISE_DIMS = 8_192, 4_096, 384


def _each(search: Callable[[Any], Any], images: Sequence[Any]) -> None:
    for queries in images:
        search(queries)


def _compare(figures: FiguresOf, what: str, rows: Any, images: Sequence[Any], k: int) -> None:
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    ours, product = ExactIndex(rows), ExactIndex(rows)
    product._sketched = None
    exact = faiss.IndexFlatL2(rows.shape[1])
    exact.add(rows.numpy())
    sgemm = Sgemm()
    searches = {
        "ours": lambda queries: ours.search(queries, k, None),
        "product over all rows": lambda queries: product.search(queries, k, None),
        "FAISS": lambda queries: exact.search(queries.numpy(), k),
    }
    timings = interleaved(
        {name: functools.partial(_each, search, images) for name, search in searches.items()}
        | {"sgemm": sgemm}
    )
    found, other = ours.search(images[0], k, None), product.search(images[0], k, None)
    assert torch.equal(found[1], other[1])
    torch.testing.assert_close(found[0], other[0], rtol=1e-4, atol=1e-5)
    work = 2 * sum(len(queries) for queries in images) * rows.shape[0] * rows.shape[1]
    columns = {
        "ms per image": timings["ours"].median / len(images) * 1e3,
        "product over all rows / ours": ratio(timings["product over all rows"], timings["ours"]),
        "FAISS / ours": ratio(timings["FAISS"], timings["ours"]),
    }
    rate = work / timings["ours"].median / sgemm.rate(timings["sgemm"])
    figures.add(f"{what}, k = {k}", rate, "x sgemm", timings=timings, columns=columns)


@pytest.mark.parametrize("size", [256, 512])
def test_bottles(figures: FiguresOf, material: tuple[Path, Path], size: int) -> None:
    train, queries, _ = bottle_features(*material, size, every_test=EVERY_TEST)
    bank = ead.MemoryBank()
    bank.add(train, copy=False)
    bank.fit()
    what = f"bottles at {size} px, {len(bank)} rows"
    for k in (1, 3):
        _compare(figures, what, bank.rows_, list(queries), k)
    generator = torch.Generator().manual_seed(0)
    noise = float(queries.std()) * torch.randn(queries.shape, generator=generator) + queries.mean()
    _compare(figures, f"{what}, queries of noise", bank.rows_, list(noise), 1)


def test_noise(figures: FiguresOf) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(NOISE_ROWS, NOISE_DIMS, generator=generator)
    queries = torch.randn(NOISE_QUERIES, NOISE_DIMS, generator=generator)
    _compare(figures, f"noise, {NOISE_ROWS} rows", rows, [queries], 1)
