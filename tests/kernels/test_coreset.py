"""select_coreset and project: what they compute; how they are called is left to test_coreset_calls.py.

Small integers as features make every distance exact in float32, so the picks have to be those of the float64
loop one for one. Everything else is replayed: in float64 every pick's value has to be within 1e-4 of the
largest at its turn.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.coresets import (
    KINDS,
    LARGE,
    STARTS,
    TOLERANCE,
    clustered,
    cluttered,
    core_picks,
    initial_values,
    integers,
    low_rank,
    shortfall_by_products,
    start_options,
)
from support.instruction_sets import skip_without

from ensemblead import _core
from ensemblead.kernels import coreset
from ensemblead.kernels.coreset import project, random_projection, select_coreset

Array = np.ndarray[Any, Any]


# --- exactness: small integers, against the float64 loop ------------------------------------------


def check_exact(
    features: Array,
    size: int,
    *,
    first: int | None = None,
    bank: Array | None = None,
    radius: float | None = None,
) -> None:
    """The loop, the core by blocks and the core pick by pick agree; `first` is the row of start="row"."""
    starts = None if first is None else [first]
    expected = reference.select_coreset(
        features, size, start="row", start_rows=starts, bank=bank, radius=radius
    )
    got = select_coreset(
        features,
        size=size,
        start="row",
        start_indices=None if starts is None else np.array(starts),
        bank=bank,
        radius=radius,
        projection_dim=None,
    )
    assert got.dtype == np.int64
    assert got.tolist() == expected
    plain = core_picks(
        features,
        size,
        start="row",
        start_rows=starts or [0],
        bank=bank,
        radius=-1.0 if radius is None else radius,
        plain=True,
    )
    assert plain.tolist() == expected


@st.composite
def exact_problems(
    draw: st.DrawFn, rows: st.SearchStrategy[int], dims: st.SearchStrategy[int]
) -> dict[str, Any]:
    n, d, seed = draw(rows), draw(dims), draw(st.integers(0, 999))
    spread = draw(st.integers(1, 6))
    features = integers(n, d, spread=spread, distinct=draw(st.none() | st.integers(1, n)), seed=seed)
    problem: dict[str, Any] = {"features": features, "size": draw(st.integers(1, min(n, 300)))}
    if draw(st.booleans()):
        problem["first"] = draw(st.integers(0, n - 1))
    else:
        bank = integers(draw(st.integers(1, 40)), d, spread=spread, seed=seed + 1)
        known = draw(st.integers(0, min(n, 10)))  # rows that the bank holds already
        problem["bank"] = np.concatenate([bank, features[:known]])
    # Halves: exact, also when squared.
    problem["radius"] = draw(st.none() | st.integers(0, 8 * spread).map(lambda halves: halves / 2))
    return problem


@given(exact_problems(st.integers(1, 300), st.integers(1, 300)))
def test_small_problems_are_exact(problem: dict[str, Any]) -> None:
    check_exact(**problem)


@hypothesis.settings(max_examples=25)
@given(exact_problems(st.integers(4000, 12000), st.integers(1, 8)))
def test_problems_of_many_rows_are_exact(problem: dict[str, Any]) -> None:
    """So many that not all are candidates; of few dimensions, so that most values are equal."""
    check_exact(**problem)


@hypothesis.settings(max_examples=5)
@given(exact_problems(st.integers(1, 60), st.just(4096)))
def test_problems_of_many_dimensions_are_exact(problem: dict[str, Any]) -> None:
    check_exact(**problem)


@pytest.mark.parametrize("name", LARGE)
def test_large_problems_are_exact(name: str) -> None:
    options: dict[str, Any] = dict(LARGE[name])
    size = options.pop("size")
    check_exact(integers(**options), size, first=17)


def test_a_bank_of_several_blocks_is_exact() -> None:
    features, bank = integers(700, 12, spread=4, seed=1), integers(5000, 12, spread=4, seed=2)
    check_exact(features, 700, bank=bank)
    check_exact(features, 700, bank=bank, radius=5.0)


def test_one_row() -> None:
    row = np.array([[3.0, -2.0]], np.float32)
    assert select_coreset(row).tolist() == [0]
    assert select_coreset(row, start="row").tolist() == [0]
    assert select_coreset(row, bank=row + 1).tolist() == [0]
    assert select_coreset(row, bank=row).tolist() == [0]  # the rule repeats row 0, at whatever value
    assert select_coreset(row, bank=row, radius=0.0).tolist() == []


@pytest.mark.parametrize("rows", [7, 5000])
@pytest.mark.parametrize("constant", [0.0, 0.3, -1e20])
def test_constant_features(rows: int, constant: float) -> None:
    features = np.full((rows, 5), constant, np.float32)
    assert select_coreset(features, size=4, start="mean").tolist() == [0, 0, 0, 0]
    assert select_coreset(features, size=4, start="row", start_indices=[3]).tolist() == [3, 0, 0, 0]
    assert select_coreset(features, size=4, bank=features[:1]).tolist() == [0, 0, 0, 0]
    assert select_coreset(features, size=4, start="row", start_indices=[3], radius=0.0).tolist() == [3]


def test_exhausted_duplicates_repeat_the_first_row() -> None:
    features = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    picks = select_coreset(features, fraction=1.0, start="row", start_indices=[5], projection_dim=None)
    assert picks.tolist() == [5, 0, 8] + [0] * 9


def test_all_rows_are_picked_once() -> None:
    features = cluttered(700, 20)
    for start in ("mean", "row"):
        assert sorted(select_coreset(features, fraction=1.0, start=start)) == list(range(700))


@pytest.mark.parametrize(
    ("rows", "fraction", "size"), [(1000, 0.01, 10), (1999, 0.001, 1), (50, 0.01, 1), (7, 0.5, 3), (7, 1, 7)]
)
def test_fraction_rounds_down_to_at_least_one(rows: int, fraction: float, size: int) -> None:
    assert len(select_coreset(cluttered(rows, 4), fraction)) == size


def test_radius_covers_every_row() -> None:
    features = cluttered(2000, 6)
    picks = select_coreset(features, None, radius=2.0, start="row")
    distances = np.stack([reference.euclidean(features, features[pick]) for pick in picks])
    nearest = distances.min(axis=0)
    assert nearest.max() <= 2.0 * (1 + 1e-6)
    assert np.delete(distances, -1, axis=0).min(axis=0).max() > 2.0  # one pick fewer would not do
    assert len(select_coreset(features, 0.001, radius=2.0)) == 2  # whichever ends first


# --- the replay rule ------------------------------------------------------------------------------


def check_replay(features: Array, size: int, start: str, **how: Any) -> Array:
    options = start_options(features, start)
    picks = core_picks(features, size, **options, **how)
    assert len(picks) == size
    if start == "row":
        assert picks[0] == options["start_rows"][0]
    shortfall = reference.coreset_shortfall(features, picks.tolist(), initial_values(features, options))
    assert shortfall <= TOLERANCE
    return picks


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_replay(kind: str, start: str) -> None:
    """Fewer rows than candidates, and more."""
    check_replay(KINDS[kind](1500, 100), 150, start)
    check_replay(KINDS[kind](9000, 24), 150, start)


def test_the_replay_sees_wrong_picks() -> None:
    features = cluttered(400, 10)
    options = start_options(features, "mean")
    values = initial_values(features, options)
    picks = core_picks(features, 200, **options)
    picks[150], picks[170] = picks[170], picks[150]
    slow = reference.coreset_shortfall(features, picks.tolist(), values)
    assert slow > 10 * TOLERANCE
    assert shortfall_by_products(features, picks, values) == pytest.approx(slow, rel=1e-9)


# Enough pairs and dimensions to look for few directions that will do; the last two have none.
SKETCHED = {
    "low rank": lambda: low_rank(20000, 128),
    "low rank, offset 100": lambda: low_rank(20000, 128) + np.float32(100),
    "low rank, many dimensions": lambda: low_rank(9000, 384, noise=0.02),
    "clusters": lambda: clustered(16000, 96),
    "rank 1 and a constant half": lambda: low_rank(12000, 100, rank=1, noise=0.0) * (np.arange(100) < 50),
    "noise": lambda: cluttered(11000, 97),
    "barely too much left out": lambda: low_rank(10000, 128, noise=0.15),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SKETCHED)
def test_selections_worth_a_sketch(kind: str) -> None:
    features = np.ascontiguousarray(SKETCHED[kind](), np.float32)
    size = 20_500_000 // len(features)
    for start in ("mean", "bank"):
        options = start_options(features, start)
        picks = core_picks(features, size, **options)
        assert shortfall_by_products(features, picks, initial_values(features, options)) <= TOLERANCE
    plain = core_picks(features, size // 4, **options, plain=True)
    np.testing.assert_array_equal(picks[: len(plain)], plain)


# --- one result, however it is come by ------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_picks_of_the_plain_loop(kind: str, start: str) -> None:
    for rows, dims, size in ((6000, 33, 400), (600, 130, 600)):
        features = KINDS[kind](rows, dims)
        options = start_options(features, start)
        plain = core_picks(features, size, **options, plain=True)
        np.testing.assert_array_equal(core_picks(features, size, **options), plain)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", ["noise", "clusters", "low rank", "offset 10000"])
def test_any_number_of_threads_gives_the_same_picks(kind: str, start: str) -> None:
    features = KINDS[kind](6000, 40)
    options = start_options(features, start)
    one = core_picks(features, 300, **options, num_threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(core_picks(features, 300, **options, num_threads=threads), one)
    np.testing.assert_array_equal(core_picks(features, 300, **options, num_threads=3, plain=True), one)


def test_threads_agree_where_a_sketch_is_used() -> None:
    features = low_rank(20000, 128)
    options = start_options(features, "mean")
    one = core_picks(features, 1025, **options, num_threads=1)
    for threads in (2, 3):
        np.testing.assert_array_equal(core_picks(features, 1025, **options, num_threads=threads), one)


def everything_once() -> None:
    """A round through this file without hypothesis; run on every instruction set."""
    for name in ("whole", "one dimension", "duplicates run out"):
        test_large_problems_are_exact(name)
    rng = np.random.default_rng(5)
    for dims in (*range(1, 70), 127, 128, 129, 1000):
        rows = int(rng.integers(1, 60))
        features = integers(rows, dims, spread=3, seed=dims)
        check_exact(features, rows, first=int(rng.integers(rows)))
        check_exact(features, rows, bank=integers(3, dims, spread=3, seed=dims + 1))
        test_project(rows, dims, int(rng.integers(1, 150)))
    for kind in ("noise", "clusters", "tight clusters far apart", "offset 10000", "scaled by 1e-25"):
        plain = check_replay(KINDS[kind](4500, 70), 100, "mean", plain=True)
        np.testing.assert_array_equal(check_replay(KINDS[kind](4500, 70), 100, "mean"), plain)
    features = SKETCHED["low rank, offset 100"]()
    options = start_options(features, "mean")
    picks = core_picks(features, 1025, **options)
    assert shortfall_by_products(features, picks, initial_values(features, options)) <= TOLERANCE
    test_rows_are_projected_on_their_own(128)


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", ["baseline", "x86-64-v3"])
def test_every_instruction_set(instruction_set: str) -> None:
    skip_without(instruction_set)
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']\n"
        "import test_coreset\n"
        "assert test_coreset._core.instruction_set() == sys.argv[2]\n"
        "test_coreset.everything_once(); print('all done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), instruction_set],
        env={**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all done"


# --- projection -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "dims", "out_dims"), [(1, 1, 1), (5, 3, 7), (100, 64, 32), (333, 1000, 129), (29, 4096, 33)]
)
def test_project(rows: int, dims: int, out_dims: int) -> None:
    features, weights = cluttered(rows, dims), random_projection(dims, out_dims, 2)
    got = project(features, weights)
    assert got.dtype == np.float32
    assert got.shape == (rows, out_dims)
    bound = np.abs(features).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    error = np.abs(got - reference.project(features, weights))
    assert (error <= (dims + 2) * np.finfo(np.float32).eps * bound).all()
    assert error.max() <= 1e-5 * bound.max()


def test_projection_of_integers_is_exact() -> None:
    features, weights = integers(77, 300, spread=5), integers(50, 300, spread=4, seed=1)
    np.testing.assert_array_equal(project(features, weights), reference.project(features, weights))


@pytest.mark.parametrize("out_dims", [1, 33, 128])
def test_rows_are_projected_on_their_own(out_dims: int) -> None:
    """In batches of any size, by any number of threads, wherever they lie: the same bits."""
    features, weights = cluttered(203, 150), random_projection(150, out_dims, 0)
    whole = project(features, weights)
    for batch in (1, 2, 7, 64, 202):
        parts = [project(features[i : i + batch], weights) for i in range(0, len(features), batch)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for threads in (1, 2, 3, 16):
        out = np.full_like(whole, np.nan)
        _core.project_rows(features, weights, out, num_threads=threads)
        np.testing.assert_array_equal(out, whole)


def test_the_random_map_follows_its_seed_alone() -> None:
    np.random.seed(1)  # noqa: NPY002 - the state that must not matter
    weights = random_projection(400, 30, 5)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(random_projection(400, 30, 5), weights)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert weights.dtype == np.float32
    assert weights.shape == (30, 400)
    assert not np.array_equal(random_projection(400, 30, 6), weights)
    # Uniform in +-1/20: the extremes, the mean and the variance of 12,000 draws.
    assert 0.0499 < np.abs(weights).max() <= 0.05
    assert abs(weights.mean()) < 4 * 0.05 / np.sqrt(3 * weights.size)
    assert weights.var() == pytest.approx(0.05**2 / 3, rel=0.05)


@pytest.mark.parametrize("start", ["mean", "row"])
def test_rows_are_projected_before_they_are_picked(start: str) -> None:
    features = low_rank(900, 200)
    weights = random_projection(200, 40, 7)
    options: dict[str, Any] = {"size": 80, "start": start, "seed": 7}
    by_seed = select_coreset(features, projection_dim=40, **options)
    np.testing.assert_array_equal(select_coreset(features, projection=weights, **options), by_seed)
    transposed = np.ascontiguousarray(weights.T)
    np.testing.assert_array_equal(select_coreset(features, projection=transposed, **options), by_seed)
    beforehand = select_coreset(project(features, weights), projection_dim=None, **options)
    np.testing.assert_array_equal(beforehand, by_seed)
    assert not np.array_equal(select_coreset(features, projection_dim=None, **options), by_seed)
    assert not np.array_equal(select_coreset(features, projection_dim=40, **{**options, "seed": 8}), by_seed)


def test_the_default_projects_wide_rows_only() -> None:
    narrow, wide = cluttered(300, 128), cluttered(300, 129)
    unprojected = select_coreset(narrow, 0.1, projection_dim=None)
    np.testing.assert_array_equal(select_coreset(narrow, 0.1), unprojected)
    by_hand = select_coreset(wide, 0.1, projection=random_projection(129, 128, 0))
    np.testing.assert_array_equal(select_coreset(wide, 0.1), by_hand)


def test_integers_under_a_map_of_integers_are_exact() -> None:
    features, weights = integers(500, 60, spread=2), integers(9, 60, spread=1, seed=1)
    bank = integers(30, 60, spread=2, seed=2)
    expected = reference.select_coreset(features, 200, bank=bank, projection=weights)
    assert select_coreset(features, size=200, bank=bank, projection=weights).tolist() == expected
    expected = reference.select_coreset(features, 200, start="row", start_rows=[9], projection=weights)
    got = select_coreset(features, size=200, start="row", start_indices=[9], projection=weights)
    assert got.tolist() == expected


@pytest.mark.parametrize("offset", [0, 100])
def test_replay_of_projected_rows(offset: float) -> None:
    """In float64 from the projection on."""
    features = cluttered(3000, 1024) + np.float32(offset)
    starts = np.arange(0, 3000, 300)
    picks = select_coreset(features, size=100, start_indices=starts, seed=4)
    projected = reference.project(features, random_projection(1024, 128, 4))
    values = reference.coreset_start_values(projected, start_rows=starts.tolist())
    assert reference.coreset_shortfall(projected, picks.tolist(), values) <= TOLERANCE


# --- starts and banks -----------------------------------------------------------------------------


def test_start_rows_follow_the_seed() -> None:
    features = cluttered(500, 16)
    for start in ("mean", "row"):
        picks = select_coreset(features, 0.2, start=start, seed=1)
        np.testing.assert_array_equal(select_coreset(features, 0.2, start=start, seed=1), picks)
        others = [select_coreset(features, 0.2, start=start, seed=seed) for seed in range(2, 12)]
        assert any(not np.array_equal(other, picks) for other in others)
    firsts = {int(select_coreset(features, size=1, start="row", seed=seed)[0]) for seed in range(40)}
    assert len(firsts) > 25


@pytest.mark.parametrize(("num_starts", "rows"), [(1, 50), (10, 50), (10, 4), (50, 50)])
def test_mean_of_random_start_rows(num_starts: int, rows: int) -> None:
    """Which rows they are is the seed's secret, but every pick has to follow from some choice of them."""
    features = integers(rows, 9, spread=9, seed=2)
    drawn = coreset._start_rows(rows, "mean", num_starts, None, 6)
    assert len(set(drawn.tolist())) == len(drawn) == min(num_starts, rows)
    picks = select_coreset(features, size=rows, num_starts=num_starts, seed=6)
    values = reference.coreset_start_values(features, start_rows=drawn.tolist())
    assert reference.coreset_shortfall(features, picks.tolist(), values) <= 1e-6


def test_the_start_rows_of_a_mean_are_not_picked_themselves() -> None:
    line = np.array([[0.0], [1.0], [10.0]], np.float32)
    assert select_coreset(line, size=1, start_indices=[2]).tolist() == [0]  # as far as can be from row 2
    assert select_coreset(line, size=3, start_indices=[1, 2]).tolist() == [0, 2, 1]


def test_the_start_rows_may_be_any_integers() -> None:
    features = cluttered(60, 5)
    for start_indices in ([1, 4], (1, 4), np.array([1, 4], np.int32), np.array([9, 1, 9, 4, 9])[1::2]):
        np.testing.assert_array_equal(
            select_coreset(features, 0.5, start_indices=start_indices),
            select_coreset(features, 0.5, start_indices=np.array([1, 4])),
        )


@pytest.mark.parametrize("projection_dim", [None, 16])
def test_extending_a_bank_continues_the_selection(projection_dim: int | None) -> None:
    """A selection cut in two gives the picks of the whole, for start="row" leaves no trace but its picks."""
    features = low_rank(3000, 60)
    options: dict[str, Any] = {"projection_dim": projection_dim, "seed": 3}
    whole = select_coreset(features, size=300, start="row", **options)
    rest = select_coreset(features, size=200, bank=features[whole[:100]], **options)
    np.testing.assert_array_equal(rest, whole[100:])


def test_nothing_new_gives_nothing() -> None:
    features = cluttered(400, 7)
    picks = select_coreset(features, radius=0.0, bank=features)
    assert picks.shape == (0,)
    assert picks.dtype == np.int64
    assert len(select_coreset(features, radius=100.0, bank=features[:1])) == 0


def test_rows_on_the_middle_of_all_rows_are_lowered() -> None:
    """Their sketches, and those of the anchors, are 0: only the strictness of the bound lets them through."""
    rows = np.array([[0, 0], [0, 0], [0, 0], [-1, 0], [1, 0], [0, 2], [0, -2]], dtype=np.float32)
    picks = select_coreset(rows, size=6, start="row", start_indices=np.array([2]), projection_dim=None)
    assert picks.tolist() == [2, 5, 6, 3, 4, 0]
    blank = np.full((50, 8), 3, dtype=np.float32)
    for radius in (0.0, 1e6):
        assert select_coreset(blank, None, radius=radius, bank=blank[:1]).tolist() == []


def test_one_far_row_costs_the_others_nothing() -> None:
    """Rounding is allowed for pair by pair, so a far row does not make every product undecided."""
    rows = np.random.default_rng(3).standard_normal((3000, 64)).astype(np.float32)
    rows[1] *= 1000.0
    picks = np.empty(300, dtype=np.int64)
    starts = np.arange(10, dtype=np.int64)
    options = {"start": "mean", "start_rows": starts, "bank": None, "radius": -1.0, "num_threads": 1}
    _, figures = _core.select_coreset(rows, picks, plain=False, progress=None, **options)
    assert figures["direct_pairs"] < 30 * len(rows)
