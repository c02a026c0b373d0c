"""What the twins of select_coreset share: the search for candidates, the radius as a square, the scale.

The headers are compiled here by themselves, and the search is given what no array of a test could hold: rows
with numbers up to 2^31, and any bits of values.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.compiler import compiler_or_skip
from support.coresets import KINDS, core_picks, start_options

HERE = Path(__file__).resolve().parent.parent / "support"
MOST_ROWS = 2**31 - 2


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = compiler_or_skip("candidate_search_probe.cpp")
    path = tmp_path_factory.mktemp("search") / "probe.so"
    csrc = HERE.parents[1] / "csrc"
    sources = [HERE / "candidate_search_probe.cpp", csrc / "core/coreset_rules.cpp"]
    sources += [csrc / "core/checks.cpp", csrc / "core/array.cpp"]
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{csrc}"]
    subprocess.run([compiler, *options, *map(str, sources), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.probe_key.restype = ctypes.c_uint64
    library.probe_squared_radius.restype = ctypes.c_float
    library.probe_scale.restype = ctypes.c_float
    return library


def keys_of(bits: Any, rows: Any) -> Any:
    return bits.astype(np.uint64) << np.uint64(32) | (0xFFFFFFFF - rows).astype(np.uint64)


def check_search(probe: ctypes.CDLL, bits: Any, rows: Any, num_rows: int, limit: int) -> int:
    """Searches, checks what the search promises, and returns the levels it took."""
    bits, rows = np.ascontiguousarray(bits, np.uint32), np.ascontiguousarray(rows, np.uint32)
    threshold = ctypes.c_uint64()
    levels = probe.probe_search(
        ctypes.c_void_p(bits.ctypes.data),
        ctypes.c_void_p(rows.ctypes.data),
        ctypes.c_int64(len(bits)),
        ctypes.c_int64(num_rows),
        ctypes.c_int64(limit),
        ctypes.byref(threshold),
    )
    most = probe.probe_levels(ctypes.c_int64(num_rows), ctypes.c_int64(limit))
    assert 1 <= levels <= most <= 5
    keys = keys_of(bits, rows)
    found = keys >= np.uint64(threshold.value)
    assert found[keys.argmax()]  # the next pick is among them
    assert found.sum() <= limit
    if len(bits) <= limit:
        assert found.all()
    elif found.sum() < max(1, limit // 2):  # then there is a gap of two octaves below the largest values
        gap = int(bits.max()) - bits[~found].max()
        assert gap >= 4095 << 12
    return int(levels)


def float_bits(values: Any) -> Any:
    return np.asarray(values, np.float32).view(np.uint32)


@pytest.mark.parametrize("limit", [1, 2, 3, 100, 1024])
def test_spread_values(probe: ctypes.CDLL, limit: int) -> None:
    values = 100 + np.random.default_rng(0).standard_normal(20000) ** 2
    assert check_search(probe, float_bits(values), np.arange(20000), 20000, limit) <= (1 if limit > 3 else 3)


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [1.0],
        [1e-45],
        [np.float32(3e38)],
        [0.0, 1.0],
        [1.0, 1.5, 1.5000001],
        [1e-45, 0.0],
        [1e-30, 1.0],
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 9, 5000])
def test_many_equal_values(probe: ctypes.CDLL, values: list[float], limit: int, count: int) -> None:
    """Above, below and among the values that many rows share, the order of the rows decides."""
    bits = float_bits(np.random.default_rng(1).choice(np.float32(values), count))
    check_search(probe, bits, np.arange(count), count, limit)


@pytest.mark.parametrize(
    ("num_rows", "limit", "levels"),
    [
        (1024, 1024, 1),
        (4096, 2, 3),
        (4098, 3, 4),
        (4_000_000, 1024, 4),
        (2_000_000, 1024, 3),
        (MOST_ROWS, 1, 5),
    ],
)
def test_equal_values_of_huge_numbers_of_rows(
    probe: ctypes.CDLL, num_rows: int, limit: int, levels: int
) -> None:
    """As many as are worth looking at, some of them dense; as if all others had smaller values."""
    rng = np.random.default_rng(num_rows)
    rows = np.unique(
        np.concatenate([rng.integers(0, num_rows, 3000), np.arange(min(num_rows, 3000)) + num_rows // 2])
    )
    rows = rows[rows < num_rows]
    bits = np.full(len(rows), float_bits(2.5))
    assert check_search(probe, bits, rows, num_rows, limit) <= levels
    assert probe.probe_levels(ctypes.c_int64(num_rows), ctypes.c_int64(limit)) == levels
    bits[rng.random(len(rows)) < 0.1] += 1
    check_search(probe, bits, rows, num_rows, limit)


@given(st.data())
def test_any_values(probe: ctypes.CDLL, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 400))
    kinds = data.draw(st.lists(st.integers(0, 0x7F7FFFFF), min_size=1, max_size=20))
    near = data.draw(st.integers(0, 5000))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    bits = np.minimum(rng.choice(kinds, count) + rng.integers(0, near + 1, count), 0x7F7FFFFF)
    num_rows = data.draw(st.sampled_from([count, 5000, 10**6, MOST_ROWS]).filter(lambda n: n >= count))
    rows = (
        np.sort(rng.choice(num_rows, count, replace=False))
        if num_rows < 10**7
        else np.arange(count) * 5000000
    )
    rows = np.minimum(rows, num_rows - 1) if num_rows < 10**7 else np.unique(rows % num_rows)
    check_search(probe, bits[: len(rows)], rows, num_rows, data.draw(st.integers(1, 600)))


def test_keys_are_in_the_order_of_the_picks(probe: ctypes.CDLL) -> None:
    rng = np.random.default_rng(2)
    values, rows = float_bits(rng.integers(0, 5, 500)), rng.permutation(500).astype(np.uint32)
    keys = [
        probe.probe_key(ctypes.c_uint32(v), ctypes.c_uint32(r)) for v, r in zip(values, rows, strict=True)
    ]
    np.testing.assert_array_equal(keys, keys_of(values, rows))
    np.testing.assert_array_equal(np.argsort(keys)[::-1], np.lexsort((rows, -values.astype(np.int64))))


@given(st.floats(0, 1e300) | st.integers(0, 1000).map(float) | st.integers(0, 60).map(lambda e: 2.0**-e * 3))
def test_a_radius_becomes_the_largest_square_within_it(probe: ctypes.CDLL, radius: float) -> None:
    squared = np.float32(probe.probe_squared_radius(ctypes.c_double(radius)))
    assert np.sqrt(np.float64(squared)) <= radius
    if squared < np.finfo(np.float32).max:
        assert np.sqrt(np.float64(np.nextafter(squared, np.float32(np.inf)))) > radius


def test_no_distance_is_within_a_negative_radius(probe: ctypes.CDLL) -> None:
    assert probe.probe_squared_radius(ctypes.c_double(-1.0)) < 0


@pytest.mark.parametrize("largest", [1e-45, 1e-30, 1e-3, 1.0, 77.0, 1e14, 1e20, 3e38])
def test_scales_are_powers_of_two_that_keep_squares_finite(probe: ctypes.CDLL, largest: float) -> None:
    scale = probe.probe_scale(ctypes.c_float(largest))
    mantissa, _ = np.frexp(scale)
    assert mantissa == 0.5
    scaled = np.float32(largest) * np.float32(scale)
    assert np.isfinite(np.float32(4096) * scaled * scaled)
    assert scaled * scaled > np.float32(1e-35) or largest < 1e-44


@pytest.mark.parametrize("kind", ["noise", "clusters", "outliers", "offset 100"])
def test_any_number_of_candidates_gives_the_same_picks(kind: str) -> None:
    features = KINDS[kind](1500, 20)
    options = start_options(features, "mean")
    picks = core_picks(features, 200, **options)
    for num_candidates in (1, 7, 100, 5000):
        got = core_picks(features, 200, **options, num_candidates=num_candidates)
        np.testing.assert_array_equal(got, picks)
