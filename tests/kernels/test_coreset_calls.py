"""select_coreset and project as calls: frameworks, lifetimes, callbacks, interruption, threads."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.coresets import (
    core_select,
    features_of,
)
from support.dlpack_by_hand import ByHand

from ensemblead.kernels.coreset import project, random_projection, select_coreset

Array = np.ndarray[Any, Any]


# --- frameworks -----------------------------------------------------------------------------------


def test_results_come_back_where_the_features_are(device: Any) -> None:
    rows, more = features_of(600, 200), features_of(40, 200, seed=1)
    weights = random_projection(200, 30, 2)
    calls: list[dict[str, Any]] = [
        {},
        {"start": "row", "projection_dim": None},
        {"bank": more, "projection_dim": 20},
        {"bank": more, "projection": weights},
        {"start_indices": np.array([3, 5])},
        {"radius": 1e9, "bank": more},
    ]
    for options in calls:
        expected = select_coreset(rows, 0.1, seed=3, **options)
        given = {
            name: device.array(value) if isinstance(value, np.ndarray) else value
            for name, value in options.items()
        }
        got = select_coreset(device.array(rows), 0.1, seed=3, **given)
        assert device.is_own(got)
        assert device.dtype(got) == "int64"
        np.testing.assert_array_equal(device.numpy(got), expected)
    assert len(expected) == 0  # the last: nothing is farther than that


def test_projections_come_back_where_the_features_are(device: Any) -> None:
    rows, weights = features_of(50, 70), random_projection(70, 9, 0)
    for projection in (weights, device.array(weights)):
        got = project(device.array(rows), projection)
        assert device.is_own(got)
        # The devices add up in different orders.
        tolerance = 1e-5 if device.is_cuda else 0.0
        np.testing.assert_allclose(device.numpy(got), project(rows, weights), rtol=tolerance, atol=tolerance)


def test_a_transposed_projection_of_any_framework(cpu_device: Any) -> None:
    rows, weights = features_of(300, 70), random_projection(70, 9, 0)
    expected = select_coreset(rows, 0.1, projection=weights)
    for projection in (weights.T, np.ascontiguousarray(weights.T)):
        got = select_coreset(cpu_device.array(rows), 0.1, projection=cpu_device.array(projection))
        np.testing.assert_array_equal(cpu_device.numpy(got), expected)


def test_read_only_features_and_banks_are_fine() -> None:
    rows, bank = features_of(50, 5), features_of(5, 5, seed=1)
    expected = select_coreset(rows, 0.5, bank=bank)
    rows.flags.writeable = bank.flags.writeable = False
    np.testing.assert_array_equal(select_coreset(rows, 0.5, bank=bank), expected)


def test_features_that_start_anywhere() -> None:
    """Aligned to a float and no more."""
    rows, bank = features_of(300, 37), features_of(9, 37, seed=1)
    expected = select_coreset(rows, 0.3, bank=bank, projection_dim=None)

    def moved(array: Array, by: int) -> Array:
        memory = np.empty(array.size + 32, np.float32)
        view = memory[by : by + array.size].reshape(array.shape)
        view[:] = array
        return view

    for by in range(1, 17):
        got = select_coreset(moved(rows, by), 0.3, bank=moved(bank, 17 - by), projection_dim=None)
        np.testing.assert_array_equal(got, expected)


def test_inputs_are_left_as_they_are() -> None:
    for scale in (1.0, 1e-25, 1e25):
        rows, bank = features_of(300, 200) * np.float32(scale), features_of(9, 200) * np.float32(scale)
        weights, starts = random_projection(200, 50, 0), np.array([1, 2])
        inputs = [rows, bank, weights, starts]
        before = [array.copy() for array in inputs]
        select_coreset(rows, 0.5, bank=bank)
        select_coreset(rows, 0.5, projection=weights, start_indices=starts)
        for array, kept in zip(inputs, before, strict=True):
            np.testing.assert_array_equal(array, kept)


# --- lifetimes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("projection_dim", [None, 4])
def test_features_dropped_by_the_caller(cpu_device: Any, projection_dim: int | None) -> None:
    """Nobody but the call holds them when the first callback comes; the memory stays until the end."""
    rows = features_of(6000, 12)
    options: dict[str, Any] = {"size": 4500, "projection_dim": projection_dim}
    expected = select_coreset(rows, bank=rows[:3], **options)
    given, bank = [cpu_device.array(rows)], [cpu_device.array(rows[:3])]
    watched = [weakref.ref(given[0]), weakref.ref(bank[0])]
    turns: list[int] = []

    def progress(done: int, size: int) -> None:
        gc.collect()
        turns.append(np.full((6000, 12), np.nan, np.float32).size)  # would like to have the memory

    got = select_coreset(given.pop(), bank=bank.pop(), progress=progress, **options)
    np.testing.assert_array_equal(cpu_device.numpy(got), expected)
    assert len(turns) > 3
    gc.collect()
    assert [reference() for reference in watched] == [None, None]  # and no longer than that


@pytest.mark.parametrize("versioned", [True, False], ids=["versioned", "plain"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_arrays_are_held_until_the_end_and_given_back_once(
    versioned: bool, error: type[BaseException] | None
) -> None:
    """`poison` overwrites the memory when the deleter runs, however the selection ends."""
    rows, bank = features_of(5000, 6), features_of(30, 6, seed=1)
    expected = select_coreset(rows, size=2500, bank=bank)
    lent = [ByHand(array.copy(), versioned=versioned, poison=True) for array in (rows, bank)]
    lent.append(ByHand(np.zeros(2500, np.int64), versioned=versioned))
    deleted: list[int] = []

    def progress(done: int, size: int) -> None:
        deleted.extend(array.deleted for array in lent)
        if error is not None and done > 0:
            raise error

    with pytest.raises(error) if error is not None else contextlib.nullcontext():
        count, _ = core_select(lent[0], lent[2], bank=lent[1], progress=progress)
        assert count == 2500
    assert len(deleted) >= 9
    assert not any(deleted)
    assert [array.deleted for array in lent] == [1, 1, 1]
    if error is None:
        np.testing.assert_array_equal(lent[2].array, expected)


def test_refused_arrays_are_given_back_too() -> None:
    for rows, picks, bank in [
        (features_of(5, 2), np.zeros(2, np.int32), features_of(3, 2)),
        (features_of(5, 2), np.zeros(2, np.int64), features_of(3, 3)),
        (features_of(5, 2) * np.float32(np.nan), np.zeros(2, np.int64), features_of(3, 2)),
    ]:
        lent = [ByHand(array) for array in (rows, picks, bank)]
        with pytest.raises((TypeError, ValueError)):
            core_select(lent[0], lent[1], bank=lent[2])
        assert all(array.deleted <= 1 for array in lent)
        assert lent[0].deleted == 1


# --- progress -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["mean", "row", "bank"])
@pytest.mark.parametrize("size", [1, 100, 6000])
def test_progress_rises_to_the_size(start: str, size: int) -> None:
    rows = features_of(6000, 5)
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"bank": features_of(5000, 5, 1)} if start == "bank" else {"start": start}
    picks = select_coreset(rows, size=size, **options, progress=lambda *call: seen.append(call))
    np.testing.assert_array_equal(picks, select_coreset(rows, size=size, **options))
    assert all(type(done) is int and total == size for done, total in seen)
    done = [call[0] for call in seen]
    assert done == sorted(done)
    assert done[0] <= 1
    assert done[-1] == size
    assert size < 6000 or len(set(done)) > 3


def test_progress_where_duplicates_run_out_or_the_radius_ends_it() -> None:
    rows = np.repeat(features_of(10, 5), 50, axis=0)
    seen: list[tuple[int, int]] = []
    select_coreset(rows, size=40, progress=lambda *call: seen.append(call))
    assert seen[-1] == (40, 40)
    seen.clear()
    picks = select_coreset(rows, size=40, radius=1e-3, progress=lambda *call: seen.append(call))
    assert len(picks) <= 11
    assert seen
    assert all(done <= len(picks) and total == 40 for done, total in seen)


@pytest.mark.parametrize("after", [0, 1, 3000])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_in_the_callback_ends_the_selection(kind: type[BaseException], after: int) -> None:
    rows = features_of(6000, 5)
    calls: list[int] = []
    mine = kind("enough")

    def progress(done: int, size: int) -> None:
        calls.append(done)
        if done >= after:
            raise mine

    with pytest.raises(kind, match="enough") as caught:
        select_coreset(rows, size=6000, progress=progress)
    assert caught.value is mine
    assert [done >= after for done in calls] == [False] * (len(calls) - 1) + [True]
    assert len(select_coreset(rows, size=50)) == 50


def test_a_callback_may_select_itself() -> None:
    rows = features_of(5000, 5)
    expected = select_coreset(rows, size=100)
    inner: list[Any] = []
    picks = select_coreset(rows, size=3000, progress=lambda *_: inner.append(select_coreset(rows, size=100)))
    np.testing.assert_array_equal(picks, select_coreset(rows, size=3000))
    assert len(inner) > 2
    for other in inner:
        np.testing.assert_array_equal(other, expected)


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank_rows", [0, 20000])
def test_ctrl_c_between_blocks(bank_rows: int) -> None:
    """Also between the blocks of a bank, before there are any picks."""
    rows = features_of(5000, 4)
    calls: list[int] = []

    def progress(done: int, size: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    bank = features_of(bank_rows, 4, seed=1) if bank_rows else None
    with pytest.raises(KeyboardInterrupt):
        select_coreset(rows, size=5000, bank=bank, progress=progress)
    assert len(calls) == 3
    assert calls[-1] < 5000
    assert len(select_coreset(rows, size=50)) == 50


_INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from ensemblead.kernels.coreset import select_coreset
rows = np.random.default_rng(0).standard_normal((50000, 128), dtype=np.float32)
expected = select_coreset(rows, size=20)
watched = sys.argv[1] == "watched"
reached = []
timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
timer.start()
try:
    # Without an end to it: noise has no structure to profit from.
    select_coreset(rows, 1.0, progress=(lambda *call: reached.append(call)) if watched else None)
except KeyboardInterrupt as error:
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_code.co_name
else:
    sys.exit("it was not interrupted")
timer.join()
assert where in ("select_coreset", "<lambda>"), where  # and not after it
assert all(done < 50000 for done, size in reached), reached[-1]
np.testing.assert_array_equal(select_coreset(rows, size=20), expected)
print("interrupted, and as good as before")
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("watched", ["watched", "unwatched"])
def test_ctrl_c_in_the_middle_of_a_long_selection(watched: str) -> None:
    """In a process of its own, where an interruption that comes too late hurts nobody."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, watched], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "interrupted, and as good as before"


# --- several callers ------------------------------------------------------------------------------


def in_threads(works: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_concurrent_callers() -> None:
    """On shared features, with callbacks, exceptions in callbacks and refusals in between."""
    rows, bad = features_of(5000, 40), features_of(500, 40)
    bad[499, 39] = np.nan
    expected = [select_coreset(rows, size=300, seed=seed) for seed in range(4)]
    start = threading.Barrier(4)

    def stop(done: int, size: int) -> None:
        raise RuntimeError("enough")

    def work(seed: int) -> None:
        start.wait()
        for _ in range(4):
            calls: list[tuple[int, int]] = []
            picks = select_coreset(
                rows, size=300, seed=seed, progress=lambda *call, calls=calls: calls.append(call)
            )
            np.testing.assert_array_equal(picks, expected[seed])
            assert calls[-1] == (300, 300)
            with pytest.raises(RuntimeError, match="enough"):
                select_coreset(rows, size=300, progress=stop)
            with pytest.raises(ValueError, match=r"features contains NaN at \[499, 39\]"):
                select_coreset(bad)

    in_threads([lambda seed=seed: work(seed) for seed in range(4)])  # type: ignore[misc]


def test_the_gil_is_free_meanwhile() -> None:
    """Another thread gets on between two callbacks of a selection that is under way."""
    rows = features_of(20000, 64)
    began, ended, ticks = threading.Event(), threading.Event(), []

    def tick() -> None:
        began.wait()
        while not ended.is_set():
            ticks.append(1)

    other = threading.Thread(target=tick)
    other.start()
    marks: list[int] = []

    def progress(done: int, size: int) -> None:
        began.set()
        marks.append(len(ticks))

    select_coreset(rows, size=2048, progress=progress)
    ended.set()
    other.join()
    assert marks[-1] - marks[0] > 100


@pytest.mark.slow
def test_candidates_that_several_threads_collect() -> None:
    """From 2^19 rows on; of whole numbers, so that distances are exact and many are equal."""
    rows = np.random.default_rng(4).integers(-20, 21, (530_000, 3)).astype(np.float32)
    values, expected = np.full(len(rows), np.inf, np.float32), [17]
    for _ in range(60):
        np.minimum(values, np.square(rows - rows[expected[-1]]).sum(axis=1), out=values)
        expected.append(int(values.argmax()))
    for num_threads in (1, 2, 7):
        picks = np.empty(len(expected), np.int64)
        core_select(rows, picks, start="row", start_rows=np.array([17]), num_threads=num_threads)
        assert picks.tolist() == expected
