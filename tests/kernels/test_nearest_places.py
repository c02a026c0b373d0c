"""The nearest rows among those near a query's place, against a float64 brute force."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import INSTRUCTION_SETS, skip_without
from support.places import Case, by_brute_force, check, make_case

from ensemblead import _core
from ensemblead.kernels.nearest import nearest_rows


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("radius", [0, 1, 3, 40])
@pytest.mark.parametrize(("rows", "grid"), [(700, (12, 9)), (45, (5, 5)), (300, (1, 64))])
def test_it_finds_the_nearest_within_the_radius(
    rows: int, grid: tuple[int, int], radius: int, k: int
) -> None:
    check(make_case(rows, grid, images=3, radius=radius), k)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 120),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    images=st.integers(1, 3),
    k=st.integers(1, 4),
    leave_out=st.booleans(),
)
def test_any_case(seed: int, rows: int, grid: tuple[int, int], images: int, k: int, leave_out: bool) -> None:
    """Few rows, radii that differ from query to query, places without rows and rows without places near."""
    case = make_case(rows, grid, images=images, radius=None, seed=seed, leave_out=leave_out)
    check(case, min(k, rows))


def test_a_place_without_rows_has_no_nearest() -> None:
    case = make_case(40, (4, 4), images=1, radius=0)
    case.places["query_places"][:] = 9
    distances, found = nearest_rows(case.queries, case.sketched(), 2, **case.conditions())
    assert (found == -1).all()
    assert np.isinf(distances).all()


def test_queries_that_are_not_finite_or_huge() -> None:
    case = make_case(300, (6, 6), images=2, radius=1)
    case.queries[3, 5], case.queries[20], case.queries[40] = np.nan, 1e18, np.inf
    distances, found = nearest_rows(case.queries, case.sketched(), 2, **case.conditions())
    assert np.isnan(distances[3]).all()
    assert np.isinf(distances[40]).all()
    inside = case.allowed()
    for query in (3, 20, 40):
        assert inside[query, found[query]].all()
    usual = np.setdiff1d(np.arange(len(found)), [3, 20, 40])
    expected, order = by_brute_force(case, 2)
    np.testing.assert_array_equal(found[usual], order[usual])
    np.testing.assert_allclose(distances[usual], expected[usual], rtol=1e-5)


def test_few_rows_are_looked_at() -> None:
    """Of noise nothing is ruled out by distance: what is compared is what lies near."""
    case = make_case(1600, (9, 9), images=2, radius=1, noise=True)
    near = case.allowed().sum()
    distances = np.empty((len(case.queries), 1), np.float32)
    found = np.empty((len(case.queries), 1), np.int64)
    sketched = case.sketched()
    compared = _core.nearest_rows(
        case.queries,
        case.rows,
        sketched.middle,
        sketched.packed,
        sketched.num_directions,
        distances=distances,
        indices=found,
        **{"row_images": None, "query_images": None, **case.conditions()},
        num_threads=2,
    )
    assert compared <= near
    np.testing.assert_array_equal(found, by_brute_force(case, 1)[1])


def test_neither_grouping_nor_threads_change_a_bit() -> None:
    torch = pytest.importorskip("torch")
    case = make_case(500, (7, 9), images=3, radius=2, leave_out=True)
    sketched, threads = case.sketched(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = nearest_rows(case.queries, sketched, 3, **case.conditions())
        torch.set_num_threads(5)
        for found, wanted in zip(
            nearest_rows(case.queries, sketched, 3, **case.conditions()), expected, strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    finally:
        torch.set_num_threads(threads)
    shuffled = np.random.default_rng(1).permutation(len(case.queries))
    for some in (shuffled, shuffled[:17], np.array([5])):
        part = case.part(some)
        for found, wanted in zip(
            nearest_rows(part.queries, sketched, 3, **part.conditions()), expected, strict=True
        ):
            np.testing.assert_array_equal(found, wanted[some])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"row_places": None}, ValueError, "query_places and query_radii must be given together"),
        ({"query_radii": None}, ValueError, "query_places and query_radii must be given together"),
        ({"row_places": np.zeros((29, 2), np.int64)}, ValueError, r"row_places .*\(29, 2\)"),
        ({"row_places": np.zeros(30, np.int64)}, ValueError, "row_places"),
        ({"row_places": np.zeros((30, 2), np.int32)}, TypeError, "row_places .*int32"),
        ({"query_places": np.zeros((3, 3), np.int64)}, ValueError, r"query_places .*\(3, 3\)"),
        ({"query_radii": np.zeros(2, np.int64)}, ValueError, r"query_radii .*\(2,\)"),
        ({"query_radii": np.full(3, -1)}, ValueError, r"query_radii .* 0 to 65536, got -1"),
        ({"query_places": np.full((3, 2), 2**62)}, ValueError, r"query_places .* 0 to 65536, got 46"),
        (
            {"row_places": np.arange(60)[::-1].reshape(30, 2).copy()},
            ValueError,
            r"row_places must ascend, got",
        ),
    ],
)
def test_bad_places_are_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    case = make_case(30, (3, 1), images=1, radius=0)
    with pytest.raises(error, match=words):
        nearest_rows(case.queries, case.sketched(), 1, **{**case.conditions(), **change})


CHECK = """
import sys, numpy as np
from ensemblead.kernels.nearest import SketchedRows, nearest_rows
data = dict(np.load(sys.argv[1]))
expected, order = data.pop("expected"), data.pop("order")
sketched = SketchedRows.of(data.pop("rows"), data.pop("middle"), data.pop("axes"))
distances, found = nearest_rows(data.pop("queries"), sketched, 2, **data)
np.testing.assert_array_equal(found, order)
np.testing.assert_allclose(distances, expected, rtol=1e-5)
"""


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_instruction_set(instruction_set: str, tmp_path: Any) -> None:
    skip_without(instruction_set)
    case: Case = make_case(397, (8, 10), images=2, radius=2, leave_out=True)
    expected, order = by_brute_force(case, 2)
    middle, axes = case.directions()
    arrays = {"rows": case.rows, "queries": case.queries, "middle": middle, "axes": axes}
    np.savez(tmp_path / "data.npz", **arrays, **case.conditions(), expected=expected, order=order)
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    command = [sys.executable, "-c", CHECK, str(tmp_path / "data.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
