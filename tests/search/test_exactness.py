"""Exact search against float64, on data for which sums of products cancel, overflow or vanish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ensemblead.search import products
from ensemblead.search.exact import ExactIndex
from ensemblead.search.neighbors import Excluded
from ensemblead.search.products import ProductSearch

Maker = Callable[[np.random.Generator, int, int], np.ndarray]


def _clusters(apart: float) -> Maker:
    """Two tight clusters, so many spreads apart."""

    def make(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
        side = np.where(rng.integers(2, size=(count, 1)) == 0, -0.5, 0.5)
        direction = np.random.default_rng(5).normal(size=dims)
        return side * apart * direction + rng.normal(size=(count, dims))

    return make


def _huge_dimension(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
    values = rng.normal(size=(count, dims))
    values[:, dims // 2] = rng.choice([-1e7, 0.0, 1e7], size=count)
    return values


def _repeated(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
    return np.random.default_rng(8).normal(size=(9, dims))[rng.integers(9, size=count)]


def _scaled(scale: float) -> Maker:
    return lambda rng, count, dims: scale * rng.normal(size=(count, dims))


def _mixed_lengths(rng: np.random.Generator, count: int, dims: int) -> np.ndarray:
    return rng.normal(size=(count, dims)) * 10.0 ** rng.uniform(-8, 8, size=(count, 1))


DATA: dict[str, Maker] = {
    "noise": _scaled(1.0),
    **{f"clusters {apart:.0e} apart": _clusters(apart) for apart in (1e2, 1e3, 1e4, 1e5, 1e6)},
    "offset": lambda rng, count, dims: rng.normal(size=(count, dims)) + 1e4,
    "huge dimension": _huge_dimension,
    "repeated": _repeated,
    "denormals": _scaled(1e-39),
    "tiny": _scaled(1e-24),
    "large": _scaled(1e17),
    "mixed lengths": _mixed_lengths,
}


def _check(rows: torch.Tensor, queries: torch.Tensor, k: int, images: Any, own: Any, index: Any) -> None:
    """What is found is what float64 finds, but for what float32 cannot tell apart."""
    excluded = None if own is None else Excluded.of(torch.from_numpy(images), own)
    distances, found = (part.numpy() for part in index.search(queries, k, excluded))
    wide = (queries.numpy().astype(np.float64)[:, None] - rows.numpy().astype(np.float64)[None]) ** 2
    exact = wide.sum(2)
    if own is not None:
        exact[np.broadcast_to(own, len(queries))[:, None] == images[None]] = np.inf
    best = np.sort(exact, axis=1)[:, :k]
    taken = np.take_along_axis(exact, found, 1)
    # A sum of D squares in float32 is off by D / 2 units in the last place at most.
    tolerance = rows.shape[1] * 2.0**-24
    assert (taken <= best * (1 + 2 * tolerance)).all()
    np.testing.assert_allclose(distances, taken, rtol=tolerance, atol=2e-45)
    assert all(len(set(row)) == k for row in found.tolist())
    assert (np.diff(distances, axis=1) >= 0).all()
    # The lower row comes first among equal rows.
    unique, names = np.unique(rows.numpy(), axis=0, return_inverse=True)
    if k == 1 and own is None and len(unique) < len(rows):
        first = np.array([np.flatnonzero(names == name)[0] for name in range(len(unique))])
        assert np.array_equal(found[:, 0], first[names[found[:, 0]]])


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("num_rows", "dims"), [(300, 24), (700, 130)])
def test_what_is_found_is_what_float64_finds(name: str, k: int, num_rows: int, dims: int) -> None:
    rng = np.random.default_rng(abs(hash((k, dims))) % 1000)
    make = DATA[name]
    rows = torch.from_numpy(make(rng, num_rows, dims).astype(np.float32))
    queries = torch.from_numpy(make(rng, 60, dims).astype(np.float32))
    queries[:10] = rows[50:60]
    images, own = np.arange(num_rows) % 5, np.arange(60) % 6
    for excluded in (None, own, np.array(3)):
        _check(rows, queries, k, images, excluded, ExactIndex(rows))


@pytest.mark.parametrize("apart", [0.0, 1e2, 1e4, 1e6])
def test_the_cores_search_is_exact_as_well(apart: float) -> None:
    rng = np.random.default_rng(0)
    # Few directions carry the spread, so that the core searches by them.
    data = np.arange(1, 257) ** -1.5 * rng.normal(size=(1300, 256))
    data[:, 0] += apart * rng.choice([-0.5, 0.5], size=1300)
    points = torch.from_numpy(data.astype(np.float32))
    index = ExactIndex(points[:1200])
    assert index._sketched is not None
    for k in (1, 3):
        _check(points[:1200], points[1200:], k, None, None, index)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_over_many_tiles(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of a GPU, in torch."""
    monkeypatch.setattr(ProductSearch, "_ordered", ProductSearch._by_tiles)
    monkeypatch.setattr(products, "_QUERY_TILE", 16)
    monkeypatch.setattr(products, "_ROW_TILE", 100)
    monkeypatch.setattr(products, "_SETTLED", 2000)
    rng = np.random.default_rng(1)
    for name in ("clusters 1e+04 apart", "repeated", "noise"):
        rows = torch.from_numpy(DATA[name](rng, 333, 20).astype(np.float32))
        queries = torch.from_numpy(DATA[name](rng, 50, 20).astype(np.float32))
        _check(rows, queries, k, np.arange(333) % 4, np.arange(50) % 4, ExactIndex(rows))


def test_ordinary_queries_are_settled_by_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    rows, queries = (torch.from_numpy(rng.normal(size=(n, 64)).astype(np.float32)) for n in (2000, 500))
    counts = {"_compared": 0, "_settled": 0}

    def counted(name: str) -> Any:
        real = getattr(ProductSearch, name)

        def search(self: Any, queries: torch.Tensor, *rest: Any, **options: Any) -> Any:
            counts[name] += len(queries)
            return real(self, queries, *rest, **options)

        return search

    for name in counts:
        monkeypatch.setattr(ProductSearch, name, counted(name))
    ProductSearch(rows).search(queries, 1, None)
    assert counts["_compared"] < 25
    assert counts["_settled"] == 0


def test_half_precision_rows_are_searched_as_they_are() -> None:
    rng = np.random.default_rng(6)
    halves, queries = (torch.from_numpy(rng.normal(size=(n, 40)).astype(np.float16)) for n in (500, 60))
    here = ExactIndex(halves).search(queries.float(), 4, None)
    there = ExactIndex(halves.float()).search(queries.float(), 4, None)
    for own, wanted in zip(here, there, strict=True):
        assert torch.equal(own, wanted)
    _check(halves.float(), queries.float(), 4, None, None, ExactIndex(halves))


def test_the_path_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that lie apart are told from each other by the spare ones; others are settled."""
    rng = np.random.default_rng(3)
    for name, separated in (("noise", True), ("clusters 1e+05 apart", False), ("repeated", False)):
        rows = torch.from_numpy(DATA[name](rng, 400, 48).astype(np.float32))
        queries = torch.from_numpy(DATA[name](rng, 90, 48).astype(np.float32))
        search = ProductSearch(rows)
        assert search.is_separated is separated
        for wait in {True, not separated}:
            for images, own in ((None, None), (np.arange(400) % 3, np.arange(90) % 3)):

                class Index:
                    def search(self, queries: torch.Tensor, k: int, excluded: Any) -> Any:
                        return search._compared(queries, k, excluded, wait=wait)  # noqa: B023

                _check(rows, queries, 2, images, own, Index())
    assert ProductSearch(torch.ones(1, 4)).is_separated


@pytest.mark.parametrize("value", [1e20, 3e38])
def test_distances_beyond_float32_are_refused(value: float) -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.full((3, 8), value)
    for k in (1, 40):
        with pytest.raises(ValueError, match=r"squared distances? .*beyond float32"):
            ExactIndex(rows).search(queries, k, None)
    # Near each other out there they are found.
    far = rows * 1e17 + value
    assert torch.equal(ExactIndex(far).search(far, 1, None)[0], torch.zeros(50, 1))


def test_queries_that_are_not_finite_get_no_distance() -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    queries = torch.zeros(3, 8)
    queries[1, 2] = torch.nan
    queries[2, 3] = torch.inf
    distances, found = ExactIndex(rows).search(queries, 2, None)
    assert torch.isfinite(distances).tolist() == [[True, True], [False, False], [False, False]]
    assert bool(torch.isnan(distances[1]).all())
    assert bool(((found >= 0) & (found < 50)).all())


@pytest.mark.parametrize("k", [5, 19, 20])
def test_fewer_rows_than_neighbours_are_left_in(k: int) -> None:
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    excluded = Excluded.of((torch.arange(20) > 2).long(), np.array(1))
    distances, found = ExactIndex(rows).search(rows[:4], k, excluded)
    assert (found >= 0).sum(1).tolist() == [3] * 4
    assert torch.isposinf(distances[:, 3:]).all()


def test_all_rows_but_one_are_ordered_by_differences() -> None:
    rows = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    distances, found = ExactIndex(rows).search(torch.tensor([[0.0, 1.0]]), 2, None)
    assert (found.tolist(), distances.tolist()) == ([[1, 0]], [[1.0, 5.0]])
    rng = np.random.default_rng(0)
    for count in range(2, 40):
        rows = torch.from_numpy(rng.integers(-2, 3, (count, 3)).astype(np.float32))
        queries = torch.from_numpy(rng.integers(-2, 3, (20, 3)).astype(np.float32))
        exact = (queries[:, None].double() - rows.double()).square().sum(2)
        expected = exact.sort(dim=1, stable=True).indices[:, : count - 1]
        assert torch.equal(ExactIndex(rows).search(queries, count - 1, None)[1], expected)
