"""The exact search of a memory bank on the CPU, beside a product over all rows and FAISS's exact index.

    python -m pytest benchmarks/bench_nearest.py --data FOLDER --weights FOLDER [-k "large and not 200000"]

Bottles through ResNet18's layer2 and layer3 (384 dimensions), a coreset of 1 % of all training patches,
every 20th test image as queries, image by image. The effective rate is 2 * Q * M * D / time: the work of
computing every distance once. In a bank of noise, and for queries of noise on a bank of features, sketches
rule out little, and codes of whole rows are compared.

`test_large_banks` and `test_large_noise` are of the size of today's banks: 20,000 to 200,000 rows of 384, 768
and 1,280 dimensions, batches of 1,024 and 8,192 queries, one thread. Banks are coresets of the bottles'
patches, as many rows as there are at most. Beside FAISS stands `torch.cdist` with its minimum, which other
tools search by.
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
from real_features import bottle_features, patches_of  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402
from ensemblead.search.exact import ExactIndex  # noqa: E402

THREADS = 2
EVERY_TEST = 20
# Of the bottles at 256 x 256 pixels: a network, its layers, and how they are pooled.
LARGE = {
    384: ("resnet18", ("layer2", "layer3"), {"pretrain_dim": "auto"}),
    768: ("efficientnet_lite0", ("blocks.2", "blocks.4"), {"pretrain_dim": 384, "target_dim": 768}),
    1280: ("efficientnet_lite0", ("blocks.2", "blocks.4"), {"pretrain_dim": 640, "target_dim": 1280}),
}
BATCHES = (1024, 8192)
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


def _compare_large(figures: FiguresOf, what: str, rows: Any, queries: Any, target: float) -> None:
    """One thread, one batch of queries a call; `target`: of FAISS's time by ours."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    ours = ExactIndex(rows)
    flat = faiss.IndexFlatL2(rows.shape[1])
    flat.add(rows.numpy())
    # Another opponent, such as cuVS on a GPU, is another line here.
    searches = {
        "ours": lambda: ours.search(queries, 1, None),
        "FAISS": lambda: flat.search(queries.numpy(), 1),
        "cdist": lambda: torch.cdist(queries, rows).min(1),
    }
    timings = interleaved(searches, repeats=3)
    distances, found = ours.search(queries, 1, None)
    other = torch.from_numpy(flat.search(queries.numpy(), 1)[1])[:, 0]
    # FAISS's expanded products round: by differences in float64 its row is never nearer than ours.
    exact = (queries.double() - rows[other].double()).square().sum(1)
    assert bool((distances[:, 0].double() <= exact * (1 + 1e-5)).all())
    columns = {
        "ms": timings["ours"].median * 1e3,
        "cdist / ours": ratio(timings["cdist"], timings["ours"]),
        "same row as FAISS": float((found[:, 0] == other).float().mean()),
    }
    value = ratio(timings["FAISS"], timings["ours"])
    figures.add(what, value, "x FAISS", at_least=target, timings=timings, columns=columns)


@pytest.mark.parametrize("size", [20_000, 50_000, 200_000])
@pytest.mark.parametrize("dims", LARGE)
def test_large_banks(figures: FiguresOf, material: tuple[Path, Path], dims: int, size: int) -> None:
    network, layers, how = LARGE[dims]
    train, test = patches_of(*material, network, layers, 256, **how)
    bank = ead.MemoryBank(coreset_size=size, memory_budget=8 << 30)
    bank.add(train.flatten(0, 1), copy=False)
    del train
    rows, queries = bank.fit().rows_, test.flatten(0, 1)
    what = f"bottles, {network}, {len(rows)} rows of {rows.shape[1]}"
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        some = queries[:batch].contiguous()
        _compare_large(figures, f"{what}, {len(some)} queries", rows, some, 4.0)
        noise = float(some.std()) * torch.randn(some.shape, generator=generator) + some.mean()
        _compare_large(figures, f"{what}, {len(some)} queries of noise", rows, noise, 0.9)


@pytest.mark.parametrize("size", [20_000, 200_000])
@pytest.mark.parametrize("dims", LARGE)
def test_large_noise(figures: FiguresOf, dims: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(size, dims, generator=generator)
    queries = torch.randn(BATCHES[0], dims, generator=generator)
    _compare_large(figures, f"noise, {size} rows of {dims}, {len(queries)} queries", rows, queries, 0.9)
