"""Exact search by cosine similarity: float64 decides, in whatever chunks and blocks it is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblead.search import cosine  # noqa: E402
from ensemblead.search.cosine import most_similar, ordered_by_similarity, similar_pairs  # noqa: E402


def unit(shape: tuple[int, int], seed: int, dtype: str = "float32") -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(dtype)


def reference(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    wide = queries.astype(np.float64)[:, None] * rows.astype(np.float64)
    similarities = wide.sum(2).astype(np.float32)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), order


@pytest.fixture(params=[(4 << 20, 32 << 20, 256), (1 << 10, 1 << 10, 3)])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual chunks, and such that there are many."""
    for name, value in zip(("CHUNK_BYTES", "_BLOCK_BYTES", "_QUERIES"), request.param, strict=True):
        monkeypatch.setattr(cosine, name, value)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_finds_what_float64_finds(dtype: str) -> None:
    rows, queries = unit((500, 16), 0, dtype), unit((7, 16), 1)
    for k in (1, 20, 500):
        similarities, found = most_similar(queries, rows, k)
        expected, order = reference(queries, rows, k)
        np.testing.assert_array_equal(found, order)
        np.testing.assert_array_equal(similarities, expected)


@pytest.mark.usefixtures("chunks")
def test_only_the_rows_named_are_searched() -> None:
    rows, queries = unit((300, 8), 2), unit((4, 8), 3)
    for numbers in (np.arange(0, 300, 7), np.arange(40, 90), np.array([5])):
        similarities, found = most_similar(queries, rows, min(10, len(numbers)), numbers)
        expected, order = reference(queries, rows[numbers], min(10, len(numbers)))
        np.testing.assert_array_equal(found, numbers[order])
        np.testing.assert_array_equal(similarities, expected)


@pytest.mark.usefixtures("chunks")
def test_rows_too_alike_for_float32_are_told_apart() -> None:
    """300 rows within the rounding of a product in float32, more than are kept for a second look."""
    rng = np.random.default_rng(4)
    rows = np.tile(unit((1, 64), 5), (300, 1))
    rows += rng.uniform(-3e-8, 3e-8, rows.shape).astype(np.float32)
    queries = unit((1, 64), 5)
    similarities, found = most_similar(queries, rows, 40)
    expected, order = reference(queries, rows, 40)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(similarities, expected)


def test_of_equal_rows_the_lower_comes_first() -> None:
    rows = np.tile(unit((1, 8), 6), (200, 1))
    _, found = most_similar(rows[:2], rows, 60)
    np.testing.assert_array_equal(found, np.tile(np.arange(60), (2, 1)))


def test_of_equal_rows_few_are_kept_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them reach the limit; only those of one chunk are looked at together."""
    monkeypatch.setattr(cosine, "CHUNK_BYTES", 4 * 8 * 50)  # 50 rows
    looked_at: list[int] = []

    def ordered(queries: np.ndarray, rows: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        looked_at.append(found.shape[1])
        return ordered_by_similarity(queries, rows, found)

    monkeypatch.setattr(cosine, "ordered_by_similarity", ordered)
    rows = np.tile(unit((1, 8), 6), (400, 1))
    _, found = most_similar(rows[:2], rows, 10)
    np.testing.assert_array_equal(found, np.tile(np.arange(10), (2, 1)))
    assert max(looked_at) == 50
    parts = [len(first) for first, _ in similar_pairs(rows, np.arange(400), 0.5)]
    assert sum(parts) == 400 * 399 / 2
    assert max(parts) <= 256 * 50


def test_missing_candidates_stay_last() -> None:
    rows, queries = unit((5, 8), 7), unit((2, 8), 8)
    similarities, found = ordered_by_similarity(queries, rows, np.array([[-1, 3, 1], [-1, -1, -1]]))
    assert set(found[0, :2]) == {1, 3}
    assert found[:, 2].tolist() == [-1, -1]
    assert similarities[0, 0] >= similarities[0, 1] > similarities[0, 2] == -np.inf


def pairs(*arguments: Any) -> list[tuple[int, int]]:
    return sorted(
        pair
        for parts in similar_pairs(*arguments)
        for pair in zip(*map(np.ndarray.tolist, parts), strict=True)
    )


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_rows_have_a_cosine_of_one(dtype: str) -> None:
    """Rounded to float16 their lengths differ from 1, and so do their products with themselves."""
    rows = np.tile(unit((40, 16), 10, dtype), (2, 1))
    assert pairs(rows, np.arange(80), 1.0) == [(i, i + 40) for i in range(40)]
    assert pairs(np.concatenate([rows[:40], -rows[:40]]), np.arange(80), 1.0) == []
    assert len(pairs(rows, np.arange(80), -1.0)) == 80 * 79 / 2


@pytest.mark.usefixtures("chunks")
def test_every_pair_is_compared_once() -> None:
    rows = unit((90, 3), 9)  # crowded: many pairs are near
    numbers = np.flatnonzero(np.arange(90) % 10)
    said: list[tuple[int, int]] = []
    found = pairs(rows, numbers, 0.9, lambda done, total: said.append((done, total)))
    wide = rows.astype(np.float64) @ rows.astype(np.float64).T
    near = wide.astype(np.float32) >= np.float32(0.9)
    expected = [(i, j) for i in numbers for j in numbers if i < j and near[i, j]]
    assert len(expected) > 50
    assert found == expected
    assert said[-1] == (81, 81)
