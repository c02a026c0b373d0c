"""select_coreset and project on a GPU, at sizes that need one; the emulation runs the small ones.

The cases and the rules are those of test_coreset.py: exact on small integers, replayed in float64 otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import reference
from support.coresets import (
    KINDS,
    LARGE,
    STARTS,
    TOLERANCE,
    cluttered,
    initial_values,
    integers,
    low_rank,
    shortfall_by_products,
    start_options,
)

from ensemblead import _core
from ensemblead.kernels.arrays import framework_of
from ensemblead.kernels.coreset import project, random_projection, select_coreset

Array = np.ndarray[Any, Any]


def core_picks(device: Any, features: Array, size: int, **options: Any) -> Array:
    """The core's own selection, which can be told how to work."""
    rows = device.array(features)
    framework = framework_of(rows, "features")
    given: dict[str, Any] = {"start": "mean", "start_rows": [0], "bank": None, "radius": -1.0, "plain": False}
    given.update(options)
    given["start_rows"] = np.asarray(given["start_rows"], np.int64)
    if given["bank"] is not None:
        given["bank"] = device.array(given["bank"])
    if device.is_cuda:
        needed = _core.select_coreset_scratch(*features.shape, given.get("num_candidates", 0))
        given["scratch"] = framework.empty((needed,), "uint8", rows)
        given["stream"] = framework.stream(rows)
    picks = framework.empty((size,), "int64", rows)
    count, _ = _core.select_coreset(rows, picks, num_threads=0, progress=None, **given)
    return device.numpy(picks)[:count]


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("num_candidates", [0, 40, 2048])
def test_integers_are_exact(cuda_device: Any, name: str, num_candidates: int) -> None:
    options: dict[str, Any] = dict(LARGE[name])
    size = options.pop("size")
    features = integers(**options)
    if num_candidates == 40:
        size = min(size, 400)
    expected = reference.select_coreset(features, size, start="row", start_rows=[17])
    got = core_picks(cuda_device, features, size, start="row", start_rows=[17], num_candidates=num_candidates)
    assert got.tolist() == expected


def test_a_bank_and_a_radius_are_exact(cuda_device: Any) -> None:
    features, bank = integers(700, 12, spread=4, seed=1), integers(5000, 12, spread=4, seed=2)
    for radius in (None, 5.0):
        expected = reference.select_coreset(features, 700, bank=bank, radius=radius)
        got = select_coreset(
            cuda_device.array(features), size=700, bank=cuda_device.array(bank), radius=radius
        )
        assert cuda_device.numpy(got).tolist() == expected


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_replay(cuda_device: Any, kind: str, start: str) -> None:
    """However many candidates a round has, and also where every distance is computed on its own."""
    features = KINDS[kind](9000, 24)
    options = start_options(features, start)
    picks = core_picks(cuda_device, features, 150, **options)
    values = initial_values(features, options)
    assert reference.coreset_shortfall(features, picks.tolist(), values) <= TOLERANCE
    for how in ({"num_candidates": 33}, {"num_candidates": 2048}):
        np.testing.assert_array_equal(core_picks(cuda_device, features, 150, **options, **how), picks)
    plain = core_picks(cuda_device, features, 30, **options, plain=True)
    np.testing.assert_array_equal(picks[:30], plain)


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("make", [cluttered, low_rank])
def test_replay_of_many_rows(cuda_device: Any, make: Any, offset: float) -> None:
    features = make(60_000, 128) + np.float32(offset)
    options = start_options(features, "mean")
    picks = core_picks(cuda_device, features, 1500, **options)
    assert shortfall_by_products(features, picks, initial_values(features, options)) <= TOLERANCE
    np.testing.assert_array_equal(core_picks(cuda_device, features, 1500, **options), picks)


@pytest.mark.parametrize(("rows", "dims", "out_dims"), [(1, 1, 1), (333, 1000, 129), (50_000, 1024, 128)])
def test_project(cuda_device: Any, rows: int, dims: int, out_dims: int) -> None:
    """In full float32, and every row on its own."""
    features, weights = cluttered(rows, dims), random_projection(dims, out_dims, 2)
    on_device = cuda_device.array(features)
    whole = cuda_device.numpy(project(on_device, weights))
    bound = np.abs(features).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    error = np.abs(whole - reference.project(features, weights))
    assert (error <= (dims + 2) * np.finfo(np.float32).eps * bound).all()
    assert error.max() <= 1e-5 * bound.max()
    for first in range(0, rows, 7000):
        part = cuda_device.numpy(project(on_device[first : first + 6999], weights))
        np.testing.assert_array_equal(part, whole[first : first + 6999])


def test_what_is_not_finite_is_refused(cuda_device: Any) -> None:
    good, bad = cluttered(5000, 30), cluttered(5000, 30)
    bad[4321, 29], bad[4999, 0] = np.nan, np.inf
    rows, spoilt = cuda_device.array(good), cuda_device.array(bad)
    with pytest.raises(ValueError, match=r"features contains NaN at \[4321, 29\]"):
        select_coreset(spoilt)
    with pytest.raises(ValueError, match=r"bank contains NaN at \[4321, 29\]"):
        select_coreset(rows, bank=spoilt)
    with pytest.raises(ValueError, match=r"features contains NaN at \[4321, 29\]"):
        project(spoilt, random_projection(30, 4, 0))
    assert len(select_coreset(rows)) == 50


def test_a_selection_waits_for_its_own_stream(cuda_device: Any) -> None:
    """The features are still being made, on a stream of their own, when the selection is asked for."""
    torch = cuda_device.module
    if cuda_device.framework != "torch":
        pytest.skip("torch's streams")
    features = cluttered(20_000, 64)
    expected = cuda_device.numpy(select_coreset(cuda_device.array(features)))
    source = cuda_device.array(features)
    with torch.cuda.stream(torch.cuda.Stream()):
        slow = torch.zeros(4096, 4096, device="cuda")
        for _ in range(20):
            slow = slow @ slow
        rows = source + slow.sum()  # a zero that comes late
        picks = select_coreset(rows)
        torch.cuda.current_stream().synchronize()
    np.testing.assert_array_equal(cuda_device.numpy(picks), expected)


def test_memory_beyond_the_input(cuda_device: Any) -> None:
    torch = cuda_device.module
    if cuda_device.framework != "torch":
        pytest.skip("torch's account of its memory")
    rows = cuda_device.array(cluttered(163_856, 128))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    select_coreset(rows)
    assert torch.cuda.max_memory_allocated() - before <= 0.1 * rows.numel() * 4
