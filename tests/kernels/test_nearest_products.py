"""The rows that float32 products put first, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import skip_without
from support.places import by_brute_force, make_case

from ensemblead import _core
from ensemblead.kernels.nearest import nearest_by_products


def _squares(rows: np.ndarray, middle: np.ndarray) -> np.ndarray:
    squares: np.ndarray = ((rows.astype(np.float64) - middle) ** 2).sum(1).astype(np.float32)
    return squares


def _values(queries: np.ndarray, rows: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """`|p|^2 - 2 x.p` in float64, `[Q, N]`."""
    x, p = queries.astype(np.float64) - middle, rows.astype(np.float64) - middle
    values: np.ndarray = (p**2).sum(1) - 2.0 * x @ p.T
    return values


def _noise(rows: int, queries: int, dims: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, q = (rng.normal(size=(count, dims)).astype(np.float32) for count in (rows, queries))
    return x, q, x.mean(0)


def _search(queries: np.ndarray, rows: np.ndarray, middle: np.ndarray, k: int, **conditions: Any) -> Any:
    return nearest_by_products(queries, rows, middle, _squares(rows, middle), k, **conditions)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 90),
    queries=st.integers(1, 80),
    dims=st.integers(1, 40),
    k=st.integers(1, 90),
    images=st.integers(0, 3),
    half=st.booleans(),
)
def test_whole_numbers_are_ordered_exactly(
    seed: int, rows: int, queries: int, dims: int, k: int, images: int, half: bool
) -> None:
    """Every value is exact, and many are equal: the lower row comes first."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=(rows, dims)).astype(np.float16 if half else np.float32)
    q = rng.integers(-2, 3, size=(queries, dims)).astype(np.float32)
    middle = rng.integers(-1, 2, size=dims).astype(np.float32)
    k = min(k, rows)
    conditions = {}
    expected = _values(q, x, middle)
    if images:
        conditions = {"row_images": np.arange(rows) % images, "query_images": np.arange(queries) % 4}
        expected[conditions["query_images"][:, None] == conditions["row_images"]] = np.inf
    values, found = _search(q, x, middle, k, **conditions)
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    wanted = np.take_along_axis(expected, order, 1)
    np.testing.assert_array_equal(values, wanted)
    np.testing.assert_array_equal(found, np.where(np.isinf(wanted), -1, order))
    assert values.dtype == np.float32
    assert found.dtype == np.int64


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("dims", [1, 64, 130, 1024])
def test_values_are_off_by_their_rounding_alone(dims: int, k: int) -> None:
    x, q, middle = _noise(250, 70, dims)
    values, found = _search(q, x, middle, k)
    exact = _values(q, x, middle)
    # A sum of D products, and the sum with the square; docs/design/search.md.
    x_length, reach = (np.linalg.norm(part - middle, axis=1) for part in (q, x))
    error = 2.0**-23 * ((dims + 8) * x_length * reach.max() + 2 * (x_length + reach.max()) ** 2)[:, None]
    assert (np.abs(values - np.take_along_axis(exact, found, 1)) <= error).all()
    assert (np.diff(values, axis=1) >= 0).all()
    # No row that was left is better than the last one by more than rounding.
    np.put_along_axis(exact, found, np.inf, 1)
    assert (exact.min(1) >= values[:, -1] - 2 * error[:, 0]).all()


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("k", [1, 4])
def test_rows_far_from_a_querys_place_are_left_out(leave_out: bool, k: int) -> None:
    case = make_case(300, (6, 7), images=2, radius=None, leave_out=leave_out)
    expected, order = by_brute_force(case, k)
    values, found = _search(case.queries, case.rows, case.rows.mean(0), k, **case.conditions())
    np.testing.assert_array_equal(found, np.where(np.isinf(expected), -1, order))
    assert np.array_equal(np.isinf(values), found < 0)


def _by_core(queries: np.ndarray, rows: np.ndarray, middle: np.ndarray, k: int, threads: int) -> Any:
    values, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    names = ("row_images", "query_images", "row_places", "query_places", "query_radii")
    _core.nearest_by_products(
        queries,
        rows,
        middle,
        _squares(rows, middle),
        values=values,
        indices=found,
        **dict.fromkeys(names),
        num_threads=threads,
    )
    return values, found


@pytest.mark.parametrize(("queries", "k"), [(1, 3), (40, 1), (700, 5), (90, 400)])
def test_neither_grouping_nor_threads_change_a_bit(queries: int, k: int) -> None:
    x, q, middle = _noise(1500, queries, 20)
    x[700:] = x[:800]  # equal rows in other parts
    expected = _by_core(q, x, middle, k, 1)
    for threads in (2, 3, 16):
        for found, wanted in zip(_by_core(q, x, middle, k, threads), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    for first, last in ((0, 1), (queries // 3, queries), (queries - 1, queries)):
        for found, wanted in zip(_by_core(q[first:last], x, middle, k, 2), expected, strict=True):
            np.testing.assert_array_equal(found, wanted[first:last])


def test_too_few_rows_left_in() -> None:
    x, q, middle = _noise(40, 5, 9)
    images = np.zeros(40, np.int64)
    images[11] = 1
    values, found = _search(q, x, middle, 2, row_images=images, query_images=np.zeros(5, np.int64))
    assert found.tolist() == [[11, -1]] * 5
    assert np.isfinite(values[:, 0]).all()
    assert np.isinf(values[:, 1]).all()


def test_queries_that_are_not_finite_find_nothing_and_spoil_nothing() -> None:
    x, q, middle = _noise(100, 40, 9)
    expected = _search(q, x, middle, 2)
    strange = q.copy()
    strange[3, 5] = strange[17] = np.nan
    strange[20], strange[21] = np.inf, 3e38 * np.sign(x[0] - middle)
    values, found = _search(strange, x, middle, 2)
    assert (found[[3, 17]] == -1).all()
    assert np.isinf(values[[3, 17]]).all()
    assert not np.isneginf(values).any()
    usual = np.setdiff1d(np.arange(40), [3, 17, 20, 21])
    np.testing.assert_array_equal(values[usual], expected[0][usual])
    np.testing.assert_array_equal(found[usual], expected[1][usual])


def test_rows_beyond_the_range_are_left_out() -> None:
    x, q, middle = _noise(30, 3, 8)
    x[4] = 3e38
    with np.errstate(over="ignore"):
        squares = _squares(x, middle)
    assert np.isinf(squares[4])
    _, found = nearest_by_products(q, x, middle, squares, 30)
    assert (np.sort(found, axis=1)[:, 1:] == np.setdiff1d(np.arange(30), 4)).all()
    assert (found[:, -1] == -1).all()


def test_no_queries() -> None:
    x, q, middle = _noise(20, 0, 4)
    values, found = _search(q, x, middle, 3)
    assert values.shape == found.shape == (0, 3)


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    x, q, middle = _noise(200, 20, 30)
    arrays = [torch.from_numpy(array) for array in (q, x, middle, _squares(x, middle))]
    found = nearest_by_products(*arrays, 2)
    assert isinstance(found[0], torch.Tensor)
    for one, wanted in zip(found, _search(q, x, middle, 2), strict=True):
        np.testing.assert_array_equal(one.numpy(), wanted)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"queries": np.zeros((3, 7), np.float32)}, ValueError, r"queries must be \[Q, 8\] .*\(3, 7\)"),
        ({"queries": np.zeros((3, 8))}, TypeError, "queries .*float64"),
        ({"queries": np.zeros((8, 6), np.float32).T[:, :8]}, ValueError, "queries is not contiguous"),
        ({"rows": np.zeros(8, np.float32)}, ValueError, r"rows must be 2-D \[N, D\]"),
        ({"rows": np.zeros((30, 8))}, TypeError, "rows .*float64"),
        ({"middle": np.zeros(7, np.float32)}, ValueError, r"middle .*\(7,\)"),
        ({"squares": np.zeros(29, np.float32)}, ValueError, r"squares .*\(29,\)"),
        ({"squares": np.zeros(30)}, TypeError, "squares .*float64"),
        ({"k": 0}, ValueError, "k must be between 1 and the 30 rows, got 0"),
        ({"k": 31}, ValueError, "k must be between 1 and the 30 rows, got 31"),
        ({"row_images": np.zeros(30, np.int64)}, ValueError, "query_images must be given together"),
        ({"query_radii": np.zeros(3, np.int64)}, ValueError, "query_radii must be given together"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {
        "queries": np.zeros((3, 8), np.float32),
        "rows": np.zeros((30, 8), np.float32),
        "middle": np.zeros(8, np.float32),
        "squares": np.zeros(30, np.float32),
        "k": 1,
    }
    with pytest.raises(error, match=words):
        nearest_by_products(**{**good, **change})


CHECK = """
import sys, numpy as np
from ensemblead.kernels.nearest import nearest_by_products
data = dict(np.load(sys.argv[1]))
values, found = nearest_by_products(data["q"], data["x"], data["middle"], data["squares"], 5)
np.testing.assert_array_equal(values, data["expected"])
np.testing.assert_array_equal(found, data["order"])
"""


@pytest.mark.parametrize("instruction_set", ["baseline", "x86-64-v3"])
def test_every_instruction_set(instruction_set: str, tmp_path: Path) -> None:
    skip_without(instruction_set)
    rng = np.random.default_rng(4)
    x, q = (rng.integers(-9, 10, size=(count, 37)).astype(np.float32) for count in (211, 67))
    middle = np.ones(37, np.float32)
    exact = _values(q, x, middle)
    order = np.argsort(exact, axis=1, kind="stable")[:, :5]
    arrays = {"x": x.astype(np.float16), "q": q, "middle": middle, "squares": _squares(x, middle)}
    np.savez(tmp_path / "data.npz", **arrays, expected=np.take_along_axis(exact, order, 1), order=order)
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    command = [sys.executable, "-c", CHECK, str(tmp_path / "data.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
