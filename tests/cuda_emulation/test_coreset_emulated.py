"""The CUDA twins of select_coreset and project, emulated: the rules of test_coreset.py at small sizes.

`num_candidates` makes rounds small, so that few rows take many of them.
"""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import emulated, reference
from support.coresets import KINDS, STARTS, TOLERANCE, cluttered, initial_values, integers, start_options
from support.emulated import DeviceArray

from ensemblead import _core
from ensemblead.kernels.coreset import random_projection

Array = np.ndarray[Any, Any]

STREAM = 0x50


def on_device(values: Array, **where: int) -> DeviceArray:
    return DeviceArray(np.ascontiguousarray(values), **where)


def core_select(features: DeviceArray, picks: DeviceArray, **options: Any) -> tuple[int, dict[str, int]]:
    """_core.select_coreset with what a call needs, unless `options` say otherwise."""
    bytes_needed = _core.select_coreset_scratch(*features.values.shape, options.get("num_candidates", 0))
    defaults: dict[str, Any] = {
        "start": "mean",
        "start_rows": np.zeros(1, np.int64),
        "bank": None,
        "radius": -1.0,
        "num_threads": 0,
        "plain": False,
        "progress": None,
        "scratch": DeviceArray.empty((bytes_needed,), "uint8", device=features.device),
        "stream": STREAM,
    }
    given = {**defaults, **options}
    result = _core.select_coreset(features, picks, **given)
    if given["scratch"] is not None:
        given["scratch"].numpy()  # nothing was written beside it
    return result


def device_picks(features: Array, size: int, *, offset: int = 0, device: int = 0, **options: Any) -> Array:
    """The picks of the CUDA twin."""
    rows = on_device(features, offset=offset, device=device)
    picks = DeviceArray.empty((size,), "int64", device=device)
    if options.get("bank") is not None:
        options["bank"] = on_device(options["bank"], offset=offset, device=device)
    if "start_rows" in options:
        options["start_rows"] = np.asarray(options["start_rows"], np.int64)
    count, _ = core_select(rows, picks, **options)
    np.testing.assert_array_equal(rows.numpy(), features)
    return picks.numpy()[:count]


def host_picks(features: Array, size: int, **options: Any) -> Array:
    """The picks of the CPU twin."""
    picks = np.full(size, -1, np.int64)
    options = {"start": "mean", "start_rows": np.zeros(1, np.int64), "bank": None, "radius": -1.0, **options}
    options["start_rows"] = np.asarray(options["start_rows"], np.int64)
    count, _ = _core.select_coreset(features, picks, num_threads=1, plain=False, progress=None, **options)
    return picks[:count]


# --- exactness ------------------------------------------------------------------------------------


def check_exact(
    features: Array,
    size: int,
    *,
    first: int | None = None,
    bank: Array | None = None,
    radius: float | None = None,
    **how: Any,
) -> None:
    """`first` is the row of start="row"."""
    starts = None if first is None else [first]
    expected = reference.select_coreset(
        features, size, start="row", start_rows=starts, bank=bank, radius=radius
    )
    got = device_picks(
        features,
        size,
        start="row",
        start_rows=starts or [0],
        bank=bank,
        radius=-1.0 if radius is None else radius,
        **how,
    )
    assert got.tolist() == expected


@st.composite
def exact_problems(draw: st.DrawFn) -> dict[str, Any]:
    n, d, seed = draw(st.integers(1, 300)), draw(st.integers(1, 40)), draw(st.integers(0, 999))
    spread = draw(st.integers(1, 6))
    features = integers(n, d, spread=spread, distinct=draw(st.none() | st.integers(1, n)), seed=seed)
    problem: dict[str, Any] = {"features": features, "size": draw(st.integers(1, min(n, 60)))}
    if draw(st.booleans()):
        problem["first"] = draw(st.integers(0, n - 1))
    else:
        bank = integers(draw(st.integers(1, 40)), d, spread=spread, seed=seed + 1)
        known = draw(st.integers(0, min(n, 10)))  # rows that the bank holds already
        problem["bank"] = np.concatenate([bank, features[:known]])
    # Halves: exact, also when squared.
    problem["radius"] = draw(st.none() | st.integers(0, 8 * spread).map(lambda halves: halves / 2))
    problem["num_candidates"] = draw(st.sampled_from([0, 10, 40, 300]))
    problem["offset"] = draw(st.integers(0, 4))
    return problem


@hypothesis.settings(max_examples=15)
@given(exact_problems())
def test_small_problems_are_exact(problem: dict[str, Any]) -> None:
    check_exact(**problem)


EXACT = {
    "many rounds": dict(rows=900, dims=5, spread=9, size=150, num_candidates=20),
    "one candidate at a time": dict(rows=200, dims=4, spread=9, size=12, num_candidates=1),
    "whole": dict(rows=300, dims=3, spread=9, size=300, num_candidates=100),
    "equal values fill the candidates": dict(rows=5000, dims=1, spread=2, size=5, num_candidates=9),
    "equal values, in buckets of several rows": dict(rows=9000, dims=1, spread=1, size=3, num_candidates=2),
    "duplicates run out": dict(rows=700, dims=6, spread=1, distinct=30, size=60, num_candidates=25),
    "one dimension": dict(rows=700, dims=1, spread=2000, size=80),
    "several tiles of dimensions": dict(rows=200, dims=131, spread=2, size=30),
    "512 candidates": dict(rows=600, dims=4, spread=20, size=40, num_candidates=512),
    "1024 candidates": dict(rows=300, dims=4, spread=20, size=20, num_candidates=1024),
    "2048 candidates": dict(rows=300, dims=4, spread=20, size=20, num_candidates=2048),
    "wide and narrow tiles of picks": dict(rows=500, dims=40, spread=9, size=400, num_candidates=256),
}


@pytest.mark.parametrize("name", EXACT)
def test_problems_are_exact(name: str) -> None:
    options: dict[str, Any] = dict(EXACT[name])
    size, candidates = options.pop("size"), options.pop("num_candidates", 0)
    check_exact(integers(**options), size, first=17, num_candidates=candidates)


def test_in_any_order_of_threads(order: int) -> None:
    features = integers(300, 6, spread=3, seed=3)
    check_exact(features, 60, first=4, num_candidates=30)
    check_exact(features, 20, bank=features[:5] + 1, radius=2.0, num_candidates=10)


def test_every_width_of_a_tile_of_dimensions() -> None:
    for dims in (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 63):
        features = integers(40, dims, spread=3, seed=dims)
        check_exact(features, 30, first=7, offset=dims % 5)


def test_a_bank_of_several_blocks_is_exact() -> None:
    features, bank = integers(150, 12, spread=4, seed=1), integers(600, 12, spread=4, seed=2)
    check_exact(features, 60, bank=bank, num_candidates=200)
    check_exact(features, 60, bank=bank, radius=5.0, num_candidates=200)


def test_a_radius_is_reached_by_all_rows_and_not_by_candidates_alone() -> None:
    """With two candidates, 1000 and 1001, one pick leaves the other within the radius, but not row 1."""
    features = np.array([[0.0], [500.0], [1000.0], [1001.0], [499.0]], np.float32)
    how: dict[str, Any] = {"first": 0, "num_candidates": 2}
    check_exact(features, 5, radius=10.0, **how)
    check_exact(np.repeat(features, 3, axis=0), 15, radius=0.0, **how)
    check_exact(np.repeat(features, 3, axis=0), 15, **how)


def test_one_row() -> None:
    row = np.array([[3.0, -2.0]], np.float32)
    assert device_picks(row, 1).tolist() == [0]
    assert device_picks(row, 1, start="row").tolist() == [0]
    assert device_picks(row, 1, bank=row + 1).tolist() == [0]
    assert device_picks(row, 1, bank=row).tolist() == [0]  # the rule repeats row 0, at whatever value
    assert device_picks(row, 1, bank=row, radius=0.0).tolist() == []


@pytest.mark.parametrize("rows", [7, 600])
@pytest.mark.parametrize("constant", [0.0, 0.3, -1e20])
def test_constant_features(rows: int, constant: float) -> None:
    features = np.full((rows, 5), constant, np.float32)
    how = {"num_candidates": 100}
    assert device_picks(features, 4, **how).tolist() == [0, 0, 0, 0]
    assert device_picks(features, 4, start="row", start_rows=[3], **how).tolist() == [3, 0, 0, 0]
    assert device_picks(features, 4, bank=features[:1], **how).tolist() == [0, 0, 0, 0]
    assert device_picks(features, 4, start="row", start_rows=[3], radius=0.0, **how).tolist() == [3]


def test_all_rows_are_picked_once() -> None:
    features = cluttered(400, 20)
    for start in ("mean", "row"):
        assert sorted(device_picks(features, 400, start=start, num_candidates=256)) == list(range(400))


# --- the replay rule, and one result however it is come by ----------------------------------------


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_replay(kind: str, start: str) -> None:
    """Also by many rounds, and from an address that allows no vectors: the same picks."""
    features = KINDS[kind](280, 24)
    options = start_options(features, start)
    picks = device_picks(features, 60, **options)
    shortfall = reference.coreset_shortfall(features, picks.tolist(), initial_values(features, options))
    assert shortfall <= TOLERANCE
    if start == "mean":
        again = device_picks(features, 60, **options, num_candidates=25, offset=1)
        np.testing.assert_array_equal(again, picks)


@pytest.mark.parametrize("kind", ["noise", "tight clusters far apart", "offset 10000", "scaled by 1e-25"])
def test_filtered_distances_give_the_picks_of_all_distances(kind: str) -> None:
    features = KINDS[kind](150, 33)
    options = start_options(features, "mean")
    plain = device_picks(features, 15, **options, plain=True)
    np.testing.assert_array_equal(device_picks(features, 15, **options), plain)


@pytest.mark.parametrize("start", STARTS)
def test_both_twins_agree_on_clear_data(start: str) -> None:
    """Their sums differ in the last bits, which decide nothing here."""
    features = KINDS["low rank"](500, 40)
    options = start_options(features, start)
    np.testing.assert_array_equal(device_picks(features, 50, **options), host_picks(features, 50, **options))


def test_many_start_rows() -> None:
    features = cluttered(300, 9)
    starts = np.arange(150) * 2
    picks = device_picks(features, 30, start_rows=starts)
    values = reference.coreset_start_values(features, start_rows=starts.tolist())
    assert reference.coreset_shortfall(features, picks.tolist(), values) <= TOLERANCE


def test_most_pairs_are_only_filtered() -> None:
    """The second look is rare on noise: once or twice per row and round."""
    features = cluttered(500, 64)
    rows, picks = on_device(features), DeviceArray.empty((100,), "int64")
    _, figures = core_select(rows, picks, num_candidates=100)
    assert figures["blocks"] >= 3
    assert figures["product_pairs"] >= 500 * 20
    assert figures["direct_pairs"] <= 3 * 500 * figures["blocks"]


def two_clusters(far: float, offset: float = 0.0) -> Array:
    """Radius 11, and `far` times 11 from the middle."""
    rng = np.random.default_rng(0)
    middles = rng.normal(0, far, (2, 128))[rng.integers(0, 2, 256)]
    return (middles + rng.normal(0, 1, (256, 128)) + offset).astype(np.float32)


@pytest.mark.parametrize("offset", [0, 3000])
def test_clusters_far_from_the_middle_are_filtered_too(offset: float) -> None:
    """The bounds widen with the distance from the middle, not with that from the origin."""
    features = two_clusters(100, offset)
    picks = DeviceArray.empty((48,), "int64")
    options = start_options(features, "mean")
    _, figures = core_select(on_device(features), picks, **options, num_candidates=256)
    assert figures["direct_pairs"] <= 0.2 * figures["product_pairs"]
    plain = device_picks(features, 12, **options, plain=True)
    np.testing.assert_array_equal(picks.numpy()[:12], plain)


def test_integers_in_clusters_far_from_the_middle_are_exact() -> None:
    middles = np.array([[700, -700, 700, 0, 700], [-700, 700, -700, 700, -700], [0, 0, 0, 0, 0]], np.float32)
    for offset in (0, 2048):
        features = integers(300, 5, spread=9) + middles[np.arange(300) % 3] + np.float32(offset)
        check_exact(features, 60, first=4, num_candidates=100)


# --- projection -----------------------------------------------------------------------------------


def device_project(features: Array, weights: Array, *, offset: int = 0, device: int = 0) -> Array:
    out = DeviceArray.empty((len(features), len(weights)), "float32", device=device, offset=offset)
    scratch = DeviceArray.empty((_core.project_rows_scratch(),), "uint8", device=device)
    rows, projection = (on_device(array, offset=offset, device=device) for array in (features, weights))
    _core.project_rows(rows, projection, out, num_threads=0, scratch=scratch, stream=STREAM)
    scratch.numpy()
    return out.numpy()


@pytest.mark.parametrize(
    ("rows", "dims", "out_dims", "offset"),
    [(1, 1, 1, 0), (5, 3, 7, 0), (130, 64, 32, 0), (33, 100, 200, 1), (129, 21, 97, 2), (20, 1000, 33, 0)],
)
def test_project(rows: int, dims: int, out_dims: int, offset: int) -> None:
    features, weights = cluttered(rows, dims), random_projection(dims, out_dims, 2)
    got = device_project(features, weights, offset=offset)
    bound = np.abs(features).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    error = np.abs(got - reference.project(features, weights))
    assert (error <= (dims + 2) * np.finfo(np.float32).eps * bound).all()


@pytest.mark.parametrize("out_dims", [1, 33, 128])
def test_rows_are_projected_on_their_own(out_dims: int) -> None:
    features, weights = cluttered(203, 50), random_projection(50, out_dims, 0)
    whole = device_project(features, weights)
    for batch in (7, 64, 202):
        parts = [device_project(features[i : i + batch], weights) for i in range(0, len(features), batch)]
        np.testing.assert_array_equal(np.concatenate(parts[:3]), whole[: 3 * batch][: len(whole)])
    np.testing.assert_array_equal(device_project(features, weights, offset=1), whole)


# --- as calls -------------------------------------------------------------------------------------


def test_all_work_is_on_the_callers_stream_and_device() -> None:
    emulated.reset()
    features = cluttered(200, 150)
    for device in (0, 1):
        device_picks(features, 20, device=device, bank=features[:3] + 1)
        device_project(features, features[:10], device=device)
    work = emulated.log()
    assert {item.stream for item in work} == {STREAM}
    assert {item.device for item in work} == {0, 1}
    assert emulated.current_device() == 0


def test_the_host_waits_per_rounds_and_not_per_pick() -> None:
    emulated.reset()
    rows, picks = on_device(cluttered(600, 4)), DeviceArray.empty((200,), "int64")
    _, figures = core_select(rows, picks, num_candidates=40)
    waits = [item for item in emulated.log() if item.what == "synchronize"]
    assert figures["blocks"] >= 12
    # One for the check of the values, one for the start, one after the first round, then one in four rounds.
    assert len(waits) <= 4 + figures["blocks"] // 4


@pytest.mark.parametrize("start", STARTS)
def test_progress_rises_to_the_size(start: str) -> None:
    features = cluttered(500, 5)
    options = start_options(features, start)
    seen: list[tuple[int, int]] = []
    picks = device_picks(
        features, 100, **options, num_candidates=20, progress=lambda *call: seen.append(call)
    )
    assert len(picks) == 100
    done = [call[0] for call in seen]
    assert all(total == 100 for _, total in seen)
    assert done == sorted(done)
    assert done[0] <= 1
    assert done[-1] == 100
    assert len(set(done)) > 3


@pytest.mark.parametrize("start", STARTS)
def test_a_callback_that_goes_to_another_device(start: str) -> None:
    """The work goes on where the features are, and the caller's device is the current one again."""
    features = cluttered(300, 5)
    options = start_options(features, start)
    expected = device_picks(features, 60, **options, num_candidates=20)
    for device in (0, 1):
        emulated.reset()
        picks = device_picks(
            features,
            60,
            **options,
            device=device,
            num_candidates=20,
            progress=lambda *_, device=device: emulated.set_device(1 - device),
        )
        np.testing.assert_array_equal(picks, expected)
        assert {item.device for item in emulated.log()} == {device}
        assert emulated.current_device() == 0


def test_a_callback_that_leaves_for_another_device_for_good() -> None:
    def progress(done: int, size: int) -> None:
        emulated.set_device(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device_picks(cluttered(50, 4), 5, progress=progress)
    assert emulated.current_device() == 0


def test_an_exception_in_the_callback_ends_the_selection() -> None:
    features = cluttered(500, 5)
    emulated.reset()

    def progress(done: int, size: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device_picks(features, 400, num_candidates=20, progress=progress)
    kernels = [item for item in emulated.log() if item.what == "kernel"]
    assert len(kernels) < 30
    assert len(device_picks(features, 10)) == 10


def test_a_selection_cannot_be_part_of_a_graph() -> None:
    emulated.set_capturing(True)
    try:
        with pytest.raises(RuntimeError, match="failed on the CUDA device"):
            device_picks(cluttered(50, 4), 5)
    finally:
        emulated.reset()
    assert len(device_picks(cluttered(50, 4), 5)) == 5


def spoilt(value: float, row: int, column: int) -> Array:
    array = cluttered(50, 7)
    array[row, column] = value
    return array


@pytest.mark.parametrize("offset", [0, 1])
def test_what_is_not_finite_is_refused(offset: int) -> None:
    good = cluttered(50, 7)
    both = spoilt(np.nan, 30, 6)
    both[41, 0] = np.inf
    for bad, where in [
        (spoilt(np.nan, 3, 2), r"NaN at \[3, 2\]; every value must be finite"),
        (spoilt(np.inf, 49, 6), r"an infinite value at \[49, 6\]; every value must be finite"),
        (spoilt(-np.inf, 0, 0), r"an infinite value at \[0, 0\]; every value must be finite"),
        (both, r"NaN at \[30, 6\]"),
    ]:
        for call, name in [
            (lambda bad=bad: device_picks(bad, 5, offset=offset), "features"),
            (lambda bad=bad: device_picks(good, 5, bank=bad, offset=offset), "bank"),
            (lambda bad=bad: device_project(bad, good, offset=offset), "features"),
            (lambda bad=bad: device_project(good, bad, offset=offset), "projection"),
        ]:
            with pytest.raises(ValueError, match=f"^{name} contains {where}"):
                call()
    huge = np.full((3, 4), 3e38, np.float32)
    with pytest.raises(
        ValueError, match=r"the projection of features contains an infinite value at \[0, 0\]"
    ):
        device_project(huge, huge)


def test_scratch_is_checked() -> None:
    rows, picks = on_device(cluttered(50, 4)), DeviceArray.empty((5,), "int64")
    needed = _core.select_coreset_scratch(50, 4)
    for scratch, error, message in [
        (None, ValueError, f"scratch must have {needed} bytes, got None"),
        (DeviceArray.empty((needed - 1,), "uint8"), ValueError, f"scratch must have {needed} bytes"),
        (DeviceArray.empty((needed,), "float32"), TypeError, "scratch must be uint8, got float32"),
        (DeviceArray.empty((needed, 1), "uint8"), ValueError, r"scratch must be 1-D \[bytes\]"),
        (
            DeviceArray.empty((needed,), "uint8", device=1),
            ValueError,
            "scratch is on cuda:1 but features is on cuda:0",
        ),
        (np.empty(needed, np.uint8), ValueError, "scratch is on cpu but features is on cuda:0"),
    ]:
        with pytest.raises(error, match=message):
            core_select(rows, picks, scratch=scratch)
    with pytest.raises(ValueError, match="start_indices must be on the CPU, got cuda:0"):
        core_select(rows, picks, start_rows=on_device(np.zeros(1, np.int64)))


@pytest.mark.parametrize(
    ("rows", "dims"), [(20_000, 128), (163_856, 128), (2_000_000, 128), (100_000, 1024), (1_000_000, 33)]
)
def test_scratch_is_small(rows: int, dims: int) -> None:
    """At most a tenth of the features, or 8 MiB."""
    assert _core.select_coreset_scratch(rows, dims) <= max(rows * dims * 4 // 10, 8 << 20)
