"""weighted_top_k against the naive reference. Whole numbers make every sum exact, and many of them equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference

from ensemblead import _core
from ensemblead.kernels.weighted import weighted_top_k


def whole_numbers(shape, seed=0, largest=9):
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(np.float32)


def drawn(count, queries, columns, combinations, seed=0, largest=9):
    blocks = [whole_numbers((queries, columns), seed + b, largest) for b in range(count)]
    return blocks, np.abs(whole_numbers((combinations, count), seed + 90, 5))


def check(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def on(device, blocks, weights, k, **options):
    options = {name: device.array(value) for name, value in options.items()}
    found = weighted_top_k([device.array(block) for block in blocks], weights, k, **options)
    assert all(device.is_own(array) for array in found)
    assert [device.dtype(array) for array in found] == ["float32", "int64"]
    return tuple(device.numpy(array) for array in found)


# (K, Q, N, W, k): one block to more than the unrolled loops know, single columns, vectors and their rests,
# buffers that fill up.
CASES = [
    (1, 3, 1, 2, 1),
    (2, 1, 5, 3, 5),
    (3, 4, 63, 5, 7),
    (3, 2, 64, 4, 10),
    (4, 2, 65, 3, 64),
    (5, 3, 300, 6, 20),
    (7, 1, 17, 2, 17),
    (3, 2, 1000, 8, 3),
    (2, 2, 700, 3, 350),
]


@pytest.mark.parametrize(("count", "queries", "columns", "combinations", "k"), CASES)
def test_the_reference_on_every_device(device, count, queries, columns, combinations, k):
    """Values of -9 to 9 make hundreds of ties."""
    blocks, weights = drawn(count, queries, columns, combinations)
    check(on(device, blocks, weights, k), reference.weighted_top_k(blocks, weights, k))


@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 90),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_the_reference_on_drawn_cases(count, queries, columns, combinations, seed, data):
    k = data.draw(st.integers(1, columns))
    blocks, weights = drawn(
        count, queries, columns, combinations, seed, data.draw(st.sampled_from([1, 3, 1000]))
    )
    mask = np.random.default_rng(seed).random((queries, columns)) < data.draw(
        st.sampled_from([0.0, 0.3, 1.0])
    )
    scales = np.abs(whole_numbers((combinations, columns), seed % 1000, 3)) + 1
    found = weighted_top_k(blocks, weights, k, exclude=mask, scales=scales)
    check(found, reference.weighted_top_k(blocks, weights, k, mask, scales))


def test_real_numbers_differ_from_float64_by_rounding():
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((5, 400)).astype(np.float32) for _ in range(3)]
    weights = rng.uniform(0, 5, (20, 3)).astype(np.float32)
    values, indices = weighted_top_k(blocks, weights, 10)
    expected, _ = reference.weighted_top_k(blocks, weights, 10)
    np.testing.assert_allclose(values, expected, rtol=0, atol=3 * 2.0**-24 * np.abs(expected).max() * 4)
    for w in range(20):
        for q in range(5):
            sums = sum(
                float(weight) * block[q].astype(np.float64)
                for weight, block in zip(weights[w], blocks, strict=True)
            )
            np.testing.assert_allclose(sums[indices[w, q]], values[w, q], rtol=0, atol=1e-5)


def test_125_combinations_with_ties_and_duplicates():
    """Every column is there three times: the lowest comes first, wherever it lies in a vector."""
    distinct = whole_numbers((3, 2, 41), largest=30)
    blocks = [np.tile(block, (1, 3)) for block in distinct]
    grid = np.stack(np.meshgrid(*[np.arange(1, 6)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    found = weighted_top_k(blocks, grid**2, 20)
    check(found, reference.weighted_top_k(blocks, grid**2, 20))
    same = found[0][:, :, :-1] == found[0][:, :, 1:]
    assert same.any()
    assert (np.diff(found[1], axis=2)[same] > 0).all()


@pytest.mark.parametrize("instruction_set", ["baseline", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set(instruction_set):
    """In a process of its own, since the choice is made once."""
    code = """
import sys; sys.path.insert(0, "tests")
import numpy as np
from support import reference
from ensemblead import _core
from ensemblead.kernels.weighted import weighted_top_k
rng = np.random.default_rng(0)
for count in (1, 2, 3, 4, 5):
    blocks = [rng.integers(-9, 10, (2, 131)).astype(np.float32) for _ in range(count)]
    weights = rng.integers(0, 6, (4, count)).astype(np.float32)
    scales = rng.integers(1, 4, (4, 131)).astype(np.float32)
    for found, expected in zip(weighted_top_k(blocks, weights, 30, scales=scales),
                               reference.weighted_top_k(blocks, weights, 30, None, scales)):
        np.testing.assert_array_equal(found, expected)
print(_core.instruction_set())
"""
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    if "ENSEMBLEAD_INSTRUCTION_SET" in ran.stderr:
        pytest.skip(f"this processor has no {instruction_set}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == instruction_set


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(1)
    blocks = [rng.standard_normal((37, 900)).astype(np.float32) for _ in range(3)]
    weights = rng.uniform(0, 5, (30, 3)).astype(np.float32)
    results = []
    for threads in (1, 2, 3, 8, 50):
        values = np.empty((30, 37, 12), np.float32)
        indices = np.empty((30, 37, 12), np.int64)
        _core.weighted_top_k(blocks, weights, values, indices, num_threads=threads)
        results.append((values.tobytes(), indices.tobytes()))
    assert len(set(results)) == 1


def test_a_result_does_not_depend_on_the_combinations_beside_it():
    """The bound of a combination comes from the one before it."""
    rng = np.random.default_rng(2)
    blocks = [rng.standard_normal((4, 500)).astype(np.float32) for _ in range(3)]
    weights = rng.uniform(-3, 5, (12, 3)).astype(np.float32)
    together = weighted_top_k(blocks, weights, 9)
    for w in range(12):
        alone = weighted_top_k(blocks, weights[w : w + 1], 9)
        for part, whole in zip(alone, together, strict=True):
            np.testing.assert_array_equal(part[0], whole[w])


# --- special values -------------------------------------------------------------------------------


def test_infinities_and_nan(device):
    row = np.array([[1.0, np.nan, np.inf, -np.inf, 2.0, np.inf, -3.0]], np.float32)
    values, indices = on(device, [row], [[2.0]], 7)
    assert indices[0, 0].tolist() == [2, 5, 4, 0, 6, -1, -1]
    assert values[0, 0].tolist() == [np.inf, np.inf, 4.0, 2.0, -6.0, -np.inf, -np.inf]


def test_sums_that_are_nan_or_overflow(device):
    """inf - inf is NaN, 0 * inf too, and a sum beyond float32 is infinity."""
    first = np.array([[np.inf, 1.0, 3e38, -3e38, np.inf]], np.float32)
    second = np.array([[-np.inf, 1.0, 3e38, -3e38, 1.0]], np.float32)
    values, indices = on(device, [first, second], [[1.0, 1.0], [0.0, 1.0]], 5)
    assert indices[0, 0].tolist() == [2, 4, 1, -1, -1]
    assert values[0, 0, :3].tolist() == [np.inf, np.inf, 2.0]
    assert indices[1, 0].tolist() == [2, 1, 3, -1, -1]


def test_minus_zero_is_zero(device):
    row = np.array([[-0.0, 0.0, -0.0, 0.0, -1.0]], np.float32)
    values, indices = on(device, [row], [[1.0]], 5)
    assert indices[0, 0].tolist() == [0, 1, 2, 3, 4]
    assert not np.signbit(values[0, 0, :4]).any()


def test_bounds_hold_where_the_row_before_had_fewer_than_k():
    """The first combination retrieves one column, the second all of them."""
    first = np.full((1, 200), -np.inf, np.float32)
    first[0, 7] = 1.0
    second = np.arange(200, dtype=np.float32)[None]
    scales = np.ones((2, 200), np.float32)
    values, indices = weighted_top_k(
        [np.where(first > 0, first, -1), second], [[1, 0], [0, 1]], 3, scales=scales
    )
    assert indices[:, 0].tolist() == [[7, 0, 1], [199, 198, 197]]
    masked = np.where(np.arange(200) == 7, np.float32(1), np.float32(-np.inf))[None]
    values, indices = weighted_top_k([masked], [[1], [2]], 3)
    assert indices[:, 0].tolist() == [[7, -1, -1]] * 2
    assert np.isneginf(values[:, 0, 1:]).all()


def test_bounds_of_0_hold_where_subnormal_numbers_are_flushed():
    """The least step below 0 is none then."""
    torch = pytest.importorskip("torch")
    blocks = [np.zeros((1, 300), np.float32) for _ in range(2)]
    blocks[0][0, [10, 20]] = blocks[1][0, [250, 251]] = 1, 2
    try:
        torch.set_flush_denormal(True)
        _, indices = weighted_top_k(blocks, [[1, 1], [1, 2], [2, 1]], 6)
    finally:
        torch.set_flush_denormal(False)
    assert indices[:, 0, 4:].tolist() == [[0, 1]] * 3


# --- what is left out -----------------------------------------------------------------------------


def test_a_column_of_every_query_is_left_out(device):
    blocks, weights = drawn(3, 6, 40, 5)
    own = np.array([0, 39, -1, 17, 3, -5])
    mask = np.arange(40) == own[:, None]
    for k in (4, 40):
        expected = reference.weighted_top_k(blocks, weights, k, mask)
        check(on(device, blocks, weights, k, exclude=own), expected)
        check(on(device, blocks, weights, k, exclude=mask), expected)
    assert (expected[1][:, [0, 1, 3, 4], -1] == -1).all()


def test_all_columns_left_out(device):
    blocks, weights = drawn(2, 3, 30, 2)
    values, indices = on(device, blocks, weights, 4, exclude=np.ones((3, 30), bool))
    assert (indices == -1).all()
    assert np.isneginf(values).all()


# --- refusals -------------------------------------------------------------------------------------

BLOCK = np.zeros((2, 5), np.float32)


@pytest.mark.parametrize(
    ("blocks", "weights", "k", "options", "error", "message"),
    [
        ([], [[1]], 1, {}, ValueError, "blocks must be a list of arrays .*, got none"),
        (BLOCK, [[1]], 1, {}, ValueError, "blocks must be a list of arrays .*, got ndarray"),
        ([[1.0]], [[1]], 1, {}, TypeError, r"blocks\[0\] must be a NumPy, CuPy or torch array, got list"),
        ([BLOCK[0]], [[1]], 1, {}, ValueError, r"blocks\[0\] must be 2-D .*, got shape \(5,\)"),
        ([BLOCK[:0]], [[1]], 1, {}, ValueError, r"blocks\[0\] must be 2-D .*not empty, got shape \(0, 5\)"),
        ([BLOCK, BLOCK[:1]], [[1, 1]], 1, {}, ValueError, r"blocks\[1\] must have shape \(2, 5\)"),
        ([BLOCK.astype(np.float64)], [[1]], 1, {}, TypeError, r"blocks\[0\] must be float32, got float64"),
        ([BLOCK[:, ::2]], [[1]], 1, {}, ValueError, r"blocks\[0\] is not contiguous"),
        ([BLOCK] * 65, [[1] * 65], 1, {}, ValueError, "blocks must be at most 64, got 65"),
        ([BLOCK], [[1, 2]], 1, {}, ValueError, r"weights must be \[W, 1\].*got shape \(1, 2\)"),
        ([BLOCK], [1], 1, {}, ValueError, r"weights must be \[W, 1\].*got shape \(1,\)"),
        ([BLOCK], np.zeros((0, 1)), 1, {}, ValueError, r"weights must be \[W, 1\].*got shape \(0, 1\)"),
        ([BLOCK], [["a"]], 1, {}, TypeError, "weights must be numbers"),
        ([BLOCK], [[np.nan]], 1, {}, ValueError, "weights must be finite, got nan"),
        ([BLOCK], [[1]], 0, {}, ValueError, "k must be between 1 and the 5 columns, got 0"),
        ([BLOCK], [[1]], 6, {}, ValueError, "k must be between 1 and the 5 columns, got 6"),
        ([BLOCK], [[1]], 2.0, {}, TypeError, "k must be an int, got 2.0"),
        ([BLOCK], [[1]], True, {}, TypeError, "k must be an int, got True"),
        ([BLOCK], [[1]], 1, {"exclude": np.zeros(2)}, TypeError, "exclude must be int64 .* got float64"),
        (
            [BLOCK],
            [[1]],
            1,
            {"exclude": np.zeros(3, np.int64)},
            ValueError,
            r"exclude must have shape \(2,\)",
        ),
        (
            [BLOCK],
            [[1]],
            1,
            {"exclude": np.zeros((5, 2), bool)},
            ValueError,
            r"exclude must have shape \(2, 5\)",
        ),
        ([BLOCK], [[1]], 1, {"exclude": [1, 2]}, TypeError, "exclude must be a NumPy, CuPy or torch array"),
        (
            [BLOCK],
            [[1]],
            1,
            {"scales": np.ones((1, 4), np.float32)},
            ValueError,
            r"scales must have shape \(1, 5\)",
        ),
        ([BLOCK], [[1]], 1, {"scales": np.ones((1, 5))}, TypeError, "scales must be float32, got float64"),
    ],
)
def test_refusals(blocks, weights, k, options, error, message):
    with pytest.raises(error, match=message):
        weighted_top_k(blocks, weights, k, **options)


def test_arrays_of_two_frameworks_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"blocks\[1\] is of torch but blocks\[0\] is of numpy"):
        weighted_top_k([BLOCK, torch.zeros(2, 5)], [[1, 1]], 1)
    with pytest.raises(TypeError, match="weights is of torch but"):
        weighted_top_k([BLOCK], torch.ones(1, 1), 1)
    with pytest.raises(TypeError, match="exclude is of numpy but"):
        weighted_top_k([torch.zeros(2, 5)], [[1]], 1, exclude=np.zeros(2, np.int64))
    values, _ = weighted_top_k([torch.ones(2, 5)], torch.full((1, 1), 3.0), 1)
    assert values.tolist() == [[[3.0], [3.0]]]


def test_the_core_checks_its_outputs():
    values, indices = np.empty((1, 2, 3), np.float32), np.empty((1, 2, 3), np.int64)
    weights = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match=r"indices must have shape \(1, 2, 3\)"):
        _core.weighted_top_k([BLOCK], weights, values, indices[:, :, :2].copy())
    with pytest.raises(TypeError, match="values must be float32"):
        _core.weighted_top_k([BLOCK], weights, values.astype(np.float64), indices)
    with pytest.raises(ValueError, match="k must be between 1 and the 5 columns, got 6"):
        _core.weighted_top_k([BLOCK], weights, np.empty((1, 2, 6), np.float32), indices)
    with pytest.raises(ValueError, match="blocks is empty"):
        _core.weighted_top_k([], weights, values, indices)
    if not _core.cuda_decision.startswith(("on", "emulated")):
        with pytest.raises(ValueError, match="weighted_top_k has no CUDA kernel in this build"):
            _core.weighted_top_k_scratch(1, 1, 1)
