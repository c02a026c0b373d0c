"""The pruned search of nearest rows against a float64 brute force, and its directions."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from support.instruction_sets import INSTRUCTION_SETS, skip_without

from ensemblead import _core
from ensemblead.kernels.nearest import SketchedRows, nearest_rows

Data = tuple[np.ndarray, np.ndarray]
DIMS = 130  # no multiple of any vector


def _low_rank(rows: int, queries: int, seed: int = 0, dims: int = DIMS, rank: int = 20) -> Data:
    """Rows and queries whose variance lies along a few directions, neighbouring queries near each other."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(rank, dims))
    walk = np.cumsum(0.3 * rng.normal(size=(queries, rank)), axis=0)
    draw = [rng.normal(size=(rows, rank)), walk]
    both = [(x @ axes + 0.2 * rng.normal(size=(len(x), dims))).astype(np.float32) for x in draw]
    return both[0], both[1]


def _sketched(rows: np.ndarray, directions: int = 24) -> SketchedRows:
    middle = rows.mean(0)
    axes = np.linalg.svd((rows - middle).astype(np.float64))[2]
    return SketchedRows.of(rows, middle, np.ascontiguousarray(axes[:directions], dtype=np.float32))


def _squared(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return np.stack([((query - wide) ** 2).sum(1) for query in queries.astype(np.float64)])


def _by_brute_force(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    squared = _squared(queries, rows)
    found = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squared, found, 1), found


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize(("rows", "queries"), [(9, 1), (33, 15), (700, 613)])
@pytest.mark.parametrize("directions", [24, 9, 8, 1, 130])
def test_it_finds_the_nearest(rows: int, queries: int, k: int, directions: int) -> None:
    x, q = _low_rank(rows, queries)
    distances, found = nearest_rows(q, _sketched(x, directions), k)
    expected, order = _by_brute_force(q, x, k)
    assert distances.dtype == np.float32
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def _compared(queries: np.ndarray, rows: np.ndarray, threads: int = 2) -> float:
    """The share of pairs whose distance is computed; what is found is compared with brute force."""
    sketched = _sketched(rows)
    distances, found = np.empty((len(queries), 1), np.float32), np.empty((len(queries), 1), np.int64)
    compared = _core.nearest_rows(
        queries,
        rows,
        sketched.middle,
        sketched.packed,
        24,
        distances=distances,
        indices=found,
        row_images=None,
        query_images=None,
        row_places=None,
        query_places=None,
        query_radii=None,
        num_threads=threads,
    )
    expected, order = _by_brute_force(queries, rows, 1)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    return compared / (len(queries) * len(rows))


@pytest.mark.slow
def test_most_pairs_are_ruled_out() -> None:
    x, q = _low_rank(3000, 600)
    assert 1 / 3000 <= _compared(q, x) < 0.02


def _elsewhere(queries: int, seed: int = 5) -> np.ndarray:
    """Queries that lie off the rows' directions: their sketches rule out little."""
    return (5.0 * np.random.default_rng(seed).normal(size=(queries, DIMS))).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("queries", [300, 1024])
def test_products_over_all_dimensions_rule_out_what_sketches_do_not(queries: int, threads: int) -> None:
    x, _ = _low_rank(800, 1)
    assert _compared(_elsewhere(queries), x, threads) < 0.1


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("leave_out", [False, True])
def test_queries_off_the_directions(k: int, leave_out: bool) -> None:
    x, _ = _low_rank(397, 1)  # the last panel is not full, whatever its width
    x[390] *= np.float32(1e18)  # too long for products
    q = _elsewhere(500)
    q[7, 3], q[100] = np.nan, 1e18
    images, own = (np.arange(397) % 5, np.arange(500) % 6) if leave_out else (None, None)
    distances, found = nearest_rows(q, _sketched(x), k, row_images=images, query_images=own)
    usual = np.setdiff1d(np.arange(500), [7, 100])
    squared = _squared(q[usual], x)
    if images is not None and own is not None:
        squared[own[usual][:, None] == images] = np.inf
    np.testing.assert_array_equal(found[usual], np.argsort(squared, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(distances[usual], np.sort(squared, axis=1)[:, :k], rtol=1e-5)
    assert np.isnan(distances[7]).all()


@pytest.mark.parametrize("k", [1, 3])
def test_equal_distances_come_in_order_of_index(k: int) -> None:
    """Small integers: every distance is exact, and most are equal to others."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, size=(900, 40)).astype(np.float32)
    x[:, 4:] = 0.0
    q = rng.integers(0, 2, size=(200, 40)).astype(np.float32)
    axes = np.eye(40, dtype=np.float32)[:8]
    sketched = SketchedRows.of(x, x.mean(0), axes)
    distances, found = nearest_rows(q, sketched, k)
    expected, order = _by_brute_force(q, x, k)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_array_equal(distances, expected.astype(np.float32))


def test_rows_of_the_querys_own_image_are_left_out() -> None:
    x, q = _low_rank(500, 120)
    q[:50] = x[:50]  # whose nearest row is the one left out
    images, own = np.arange(500) % 7, np.arange(120) % 9
    own[:50] = images[:50]
    distances, found = nearest_rows(q, _sketched(x), 2, row_images=images, query_images=own)
    squared = _squared(q, x)
    squared[own[:, None] == images] = np.inf
    np.testing.assert_array_equal(found, np.argsort(squared, axis=1, kind="stable")[:, :2])
    assert (distances > 0.0).all()
    np.testing.assert_allclose(distances, np.sort(squared, axis=1)[:, :2], rtol=1e-5)


def test_too_few_rows_left_in() -> None:
    x, q = _low_rank(40, 5)
    images = np.zeros(40, np.int64)
    images[11] = 1
    distances, found = nearest_rows(q, _sketched(x), 2, row_images=images, query_images=np.zeros(5, np.int64))
    assert found.tolist() == [[11, -1]] * 5
    assert np.isfinite(distances[:, 0]).all()
    assert np.isinf(distances[:, 1]).all()


@pytest.mark.slow
def test_neither_grouping_nor_threads_change_a_bit() -> None:
    torch = pytest.importorskip("torch")
    x, q = _low_rank(2000, 700, seed=2)
    sketched = _sketched(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = nearest_rows(q, sketched, 3)
        for count in (2, 5):
            torch.set_num_threads(count)
            for found, wanted in zip(nearest_rows(q, sketched, 3), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
    finally:
        torch.set_num_threads(threads)
    for first, last in ((0, 1), (17, 300), (699, 700)):
        for found, wanted in zip(nearest_rows(q[first:last], sketched, 3), expected, strict=True):
            np.testing.assert_array_equal(found, wanted[first:last])


def test_far_from_the_origin() -> None:
    x, q = _low_rank(800, 100)
    x, q = x + np.float32(1000.0), q + np.float32(1000.0)
    q[:10] = x[100:110] + np.float32(0.01)
    distances, found = nearest_rows(q, _sketched(x))
    expected, order = _by_brute_force(q, x, 1)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)


def test_any_directions_and_none_give_the_same() -> None:
    x, q = _low_rank(400, 60)
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(DIMS, 12)))[0].T.astype(np.float32)
    expected = nearest_rows(q, _sketched(x), 4)
    for some in (np.ascontiguousarray(axes), np.ascontiguousarray(axes[:5]), None):
        found = nearest_rows(q, SketchedRows.of(x, np.zeros(DIMS, np.float32), some), 4)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def _hard(kind: str, rows: int, seed: int) -> np.ndarray:
    """Rows of which whole numbers of eight bits say little."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, DIMS))
    if kind == "nearly equal":
        return x[:1] + 1e-4 * x
    if kind == "tight clusters":
        return 100.0 * x[rng.integers(0, 5, rows)] + 0.01 * x
    if kind == "many clusters":
        return 10.0 * x[rng.integers(0, 40, rows)] + 0.01 * x
    if kind == "heavy tails":
        return x / np.abs(rng.normal(size=x.shape))
    if kind == "one dimension":
        x[:, 7] *= 1e4
    if kind == "lengths":
        x *= 10.0 ** rng.uniform(-6, 6, size=(rows, 1))
    return x


@pytest.mark.parametrize("directions", [None, 8, 40])
@pytest.mark.parametrize(
    "kind", ["nearly equal", "tight clusters", "many clusters", "heavy tails", "one dimension", "lengths"]
)
def test_rows_that_are_hard_to_tell_apart(kind: str, directions: int | None) -> None:
    both = _hard(kind, 700, 3).astype(np.float32)
    x, q = np.split(both, [400])
    q = np.concatenate([q, x[::9], x[5:60] * np.float32(1.0 + 1e-6)])
    axes = np.linalg.svd((x - x.mean(0)).astype(np.float64))[2][: directions or 0]
    some = None if directions is None else np.ascontiguousarray(axes, dtype=np.float32)
    distances, found = nearest_rows(q, SketchedRows.of(x, x.mean(0), some), 3)
    squared = _squared(q, x)
    expected = np.sort(squared, axis=1)[:, :3]
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(squared, found, 1), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e12, 1e15])
def test_any_scale(scale: float) -> None:
    x, q = _low_rank(300, 40)
    x, q = x * np.float32(scale), q * np.float32(scale)
    distances, found = nearest_rows(q, _sketched(x))
    with np.errstate(under="ignore"):
        expected = _squared(q, x)
    taken = np.take_along_axis(expected, found, 1)[:, 0]
    # Squares below float32's range are all zero, and any row is the nearest.
    np.testing.assert_allclose(taken, expected.min(1), rtol=1e-5, atol=1e-36)
    np.testing.assert_allclose(distances[:, 0], expected.min(1), rtol=1e-5, atol=1e-36)


def test_queries_that_are_not_finite_or_huge() -> None:
    x, q = _low_rank(300, 30)
    q[3, 5], q[7, 0], q[8, 1], q[20] = np.nan, np.inf, -np.inf, 1e18
    distances, found = nearest_rows(q, _sketched(x), 2)
    assert np.isnan(distances[3]).all()
    assert np.isinf(distances[[7, 8]]).all()
    assert ((found >= 0) & (found < 300)).all()
    assert (found[:, 0] != found[:, 1]).all()
    others = np.setdiff1d(np.arange(30), [3, 7, 8, 20])
    expected, order = _by_brute_force(q[others], x, 2)
    np.testing.assert_array_equal(found[others], order)
    np.testing.assert_allclose(distances[others], expected, rtol=1e-5)


def test_rows_at_the_end_of_the_range() -> None:
    x = np.zeros((40, 128), np.float32)
    x[:20, 0], x[20:, 0] = -1.817e19, 1.87e19
    q = np.zeros((1, 128), np.float32)
    q[0, 0] = 0.9e18
    axes = np.eye(8, 128, dtype=np.float32)
    distances, found = nearest_rows(q, SketchedRows.of(x, np.zeros(128, np.float32), axes))
    assert found.tolist() == [[20]]
    np.testing.assert_allclose(distances, [[(1.87e19 - 0.9e18) ** 2]], rtol=1e-5)


def test_no_queries() -> None:
    x, _ = _low_rank(20, 1)
    distances, found = nearest_rows(np.empty((0, DIMS), np.float32), _sketched(x), 3)
    assert distances.shape == found.shape == (0, 3)


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    x, q = _low_rank(200, 20)
    plain = _sketched(x)
    axes = np.linalg.svd((x - plain.middle).astype(np.float64), full_matrices=False)[2][:24]
    sketched = SketchedRows.of(
        torch.from_numpy(x), torch.from_numpy(plain.middle), torch.from_numpy(axes).float().contiguous()
    )
    found = nearest_rows(torch.from_numpy(q), sketched, 2)
    assert isinstance(found[0], torch.Tensor)
    for one, wanted in zip(found, nearest_rows(q, plain, 2), strict=True):
        np.testing.assert_array_equal(one.numpy(), wanted)


@pytest.mark.parametrize("k", [1, 4])
def test_rows_in_half_precision_are_searched_as_they_are(k: int) -> None:
    """With every way a row is read: sketched, by all dimensions, one by one, and in a message."""
    x, q = _low_rank(700, 60)
    halves = x.astype(np.float16)
    halves[5, :4] = [6e-8, -6e-8, 3e-5, 0.0]  # below float16's normal numbers
    q = np.concatenate([q, _elsewhere(300), halves[5:6].astype(np.float32)])
    q[3, 0] = 1e18  # has no sketch
    middle = x.mean(0)
    axes = np.linalg.svd((x - middle).astype(np.float64))[2][:24].astype(np.float32)
    given = [SketchedRows.of(rows, middle, axes) for rows in (halves, halves.astype(np.float32))]
    here, there = (nearest_rows(q, rows, k) for rows in given)
    for own, wanted in zip(here, there, strict=True):
        np.testing.assert_array_equal(own, wanted)
    assert (here[1][-1, 0], here[0][-1, 0]) == (5, 0.0)
    with pytest.raises(
        ValueError, match=r"squared distance of queries\[0\] and rows\[.*\] is beyond float32"
    ):
        nearest_rows(np.full((1, DIMS), 3e38, np.float32), given[0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rows": np.zeros((5, 3, 2), np.float32)}, ValueError, r"rows must be 2-D"),
        ({"rows": np.zeros((0, DIMS), np.float32)}, ValueError, "rows"),
        ({"rows": np.zeros((5, DIMS))}, TypeError, "rows .*float64"),
        ({"middle": np.zeros(7, np.float32)}, ValueError, r"middle .*\(7,\)"),
        ({"directions": np.zeros((4, 7), np.float32)}, ValueError, r"directions .*\(4, 7\)"),
        ({"directions": np.zeros(DIMS, np.float32)}, ValueError, "directions must be 2-D"),
        ({"directions": np.eye(131, DIMS, dtype=np.float32)}, ValueError, "between 0 and the 130 dim.* 131"),
        ({"rows": np.zeros((1, 131073), np.float32), "directions": None}, ValueError, "at most 131072 dim"),
    ],
)
def test_bad_rows_are_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {
        "rows": np.zeros((5, DIMS), np.float32),
        "middle": np.zeros(DIMS, np.float32),
        "directions": np.eye(4, DIMS, dtype=np.float32),
    }
    with pytest.raises(error, match=words):
        SketchedRows.of(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"queries": np.zeros((3, 7), np.float32)}, ValueError, r"queries .*\(3, 7\)"),
        ({"queries": np.zeros((3, DIMS))}, TypeError, "queries .*float64"),
        ({"queries": np.zeros((DIMS, 6), np.float32).T}, ValueError, "queries is not contiguous"),
        ({"k": 0}, ValueError, "k must be between 1 and the 30 rows, got 0"),
        ({"k": 31}, ValueError, "k must be between 1 and the 30 rows, got 31"),
        ({"row_images": np.zeros(29, np.int64)}, ValueError, "row_images"),
        ({"row_images": np.zeros(30, np.int32)}, TypeError, "row_images .*int32"),
        ({"query_images": np.zeros(2, np.int64)}, ValueError, "query_images"),
        ({"query_images": None}, ValueError, "query_images must be given together"),
        ({"row_images": None}, ValueError, "query_images must be given together"),
        ({"queries": np.zeros((0, 7), np.float32)}, ValueError, r"queries must be \[Q, 130\] .*\(0, 7\)"),
        ({"queries": np.zeros(0, np.float32)}, ValueError, r"queries must be \[Q, 130\]"),
    ],
)
def test_bad_queries_are_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    x, q = _low_rank(30, 3)
    given: dict[str, Any] = {
        "queries": q,
        "k": 1,
        "row_images": np.zeros(30, np.int64),
        "query_images": np.ones(3, np.int64),
        **change,
    }
    with pytest.raises(error, match=words):
        nearest_rows(given.pop("queries"), _sketched(x), **given)


CHECK_INSTRUCTION_SET = """
import sys, numpy as np
from ensemblead.kernels.nearest import SketchedRows, nearest_rows
data = np.load(sys.argv[1])
sketched = SketchedRows.of(data["x"], data["middle"], data["axes"])
distances, found = nearest_rows(data["q"], sketched, 3)
np.testing.assert_array_equal(found, data["order"])
np.testing.assert_allclose(distances, data["expected"], rtol=1e-5)
halves = data["x"].astype(np.float16)
both = halves, halves.astype(np.float32)
given = [SketchedRows.of(rows, data["middle"], data["axes"]) for rows in both]
here, there = (nearest_rows(data["q"], rows, 3) for rows in given)
for own, wanted in zip(here, there):
    np.testing.assert_array_equal(own, wanted)
"""


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set(instruction_set: str, tmp_path: Any) -> None:
    skip_without(instruction_set)
    x, q = _low_rank(397, 90)
    q = np.concatenate([q, _elsewhere(700)])
    middle = x.mean(0)
    axes = np.linalg.svd((x - middle).astype(np.float64), full_matrices=False)[2][:24]
    expected, order = _by_brute_force(q, x, 3)
    arrays = {"x": x, "q": q, "middle": middle, "axes": np.ascontiguousarray(axes, dtype=np.float32)}
    np.savez(tmp_path / "data.npz", **arrays, expected=expected, order=order)
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    command = [sys.executable, "-c", CHECK_INSTRUCTION_SET, str(tmp_path / "data.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
