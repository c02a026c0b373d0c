"""Kernels on values at the edges of float32: near its largest number, and below its smallest normal one.

Rows of whole numbers times a power of two keep every difference exact, so results must be those of the whole
numbers themselves: distances that would overflow are computed by scaling, or refused.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemblead.kernels.coreset import select_coreset
from ensemblead.kernels.nearest import SketchedRows, nearest_rows
from ensemblead.kernels.tiling import smooth_seams, tile, untile

LARGEST = float(np.finfo(np.float32).max)
# Whole numbers below 64 times 2^exponent: from one that float32 hardly holds to its largest ones.
EXPONENTS = st.integers(-149, 122)
EDGES = st.sampled_from(["pad", "flush"])


def whole(rows: int, dims: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-63, 64, (rows, dims)).astype(np.float64)


def scaled(values: np.ndarray, exponent: int) -> np.ndarray:
    result = np.ldexp(values, exponent).astype(np.float32)
    np.testing.assert_array_equal(result.astype(np.float64), np.ldexp(values, exponent))
    return result


@given(
    EXPONENTS, st.integers(2, 60), st.integers(1, 40), st.sampled_from(["mean", "row"]), st.integers(0, 99)
)
def test_the_coreset_does_not_depend_on_the_scale(
    exponent: int, rows: int, dims: int, start: str, seed: int
) -> None:
    values = whole(rows, dims, seed)
    size = max(1, rows // 3)
    expected = select_coreset(values.astype(np.float32), size=size, start=start, projection_dim=None)
    picks = select_coreset(scaled(values, exponent), size=size, start=start, projection_dim=None)
    np.testing.assert_array_equal(picks, expected)


@given(EXPONENTS, st.integers(3, 60), st.integers(2, 40), st.integers(1, 3), st.integers(0, 99))
def test_nearest_rows_are_right_or_refused(exponent: int, rows: int, dims: int, k: int, seed: int) -> None:
    x, q = whole(rows, dims, seed), whole(20, dims, seed + 100)
    squared = ((q[:, None] - x) ** 2).sum(2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(squared, order, 1)
    prepared = SketchedRows.of(
        scaled(x, exponent), np.zeros(dims, np.float32), np.eye(dims, dtype=np.float32)[: dims // 2].copy()
    )
    if nearest.max() > np.ldexp(LARGEST, -2 * exponent):
        with pytest.raises(ValueError, match=r"(queries|rows)\[\d+\] has the value .* is beyond float32"):
            nearest_rows(scaled(q, exponent), prepared, k)
        return
    distances, found = nearest_rows(scaled(q, exponent), prepared, k)
    if exponent >= -60:  # squares are normal numbers
        np.testing.assert_array_equal(found, order)
    taken = np.take_along_axis(squared, found, 1)
    # Below the smallest number every square is rounded by itself.
    lost = dims * 2.0**-149
    np.testing.assert_allclose(distances, np.ldexp(nearest, 2 * exponent), rtol=1e-5, atol=lost)
    np.testing.assert_allclose(np.ldexp(taken, 2 * exponent), np.ldexp(nearest, 2 * exponent), atol=2 * lost)


def test_the_refusal_names_the_larger_side() -> None:
    small, large = np.ones((3, 4), np.float32), np.full((5, 4), 3e25, np.float32)
    axes = np.eye(2, 4, dtype=np.float32)
    prepared = SketchedRows.of(small, np.zeros(4, np.float32), axes)
    queries = np.concatenate([small, large])
    with pytest.raises(
        ValueError, match=r"queries\[3\] has the value 3e\+25, and the squared distance of quer"
    ):
        nearest_rows(queries, prepared)
    prepared = SketchedRows.of(large, np.zeros(4, np.float32), axes)
    with pytest.raises(ValueError, match=r"rows\[0\] has the value 3e\+25, and the squared .* scale queries"):
        nearest_rows(small, prepared)
    # A far row is refused only where a query needs it.
    prepared = SketchedRows.of(queries, np.zeros(4, np.float32), axes)
    assert nearest_rows(small, prepared, 3)[1].tolist() == [[0, 1, 2]] * 3
    with pytest.raises(ValueError, match=r"rows\[3\] has the value 3e\+25"):
        nearest_rows(small, prepared, 4)


# (dtype, its largest number, half a unit in the last place)
TYPES = [("float16", 65504.0, 2.0**-11), ("float32", LARGEST, 2.0**-24), ("float64", 1.797e308, 2.0**-53)]


@given(
    st.sampled_from(TYPES),
    st.floats(2.0**-10, 1.0),
    st.tuples(st.integers(1, 40), st.integers(1, 80)),
    st.integers(1, 12),
    st.integers(1, 12),
    EDGES,
    st.integers(0, 99),
)
def test_the_mean_of_finite_tiles_is_finite(
    kind: tuple[str, float, float],
    share: float,
    size: tuple[int, int],
    tile_size: int,
    stride: int,
    edge: str,
    seed: int,
) -> None:
    dtype, largest, rounding = kind
    tile_size = min(tile_size, *size)
    stride = min(stride, tile_size)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (1, 1, *size))
    images = (largest * share * signs).astype(dtype)
    tiles = tile(images, tile_size, stride, edge=edge)
    back = untile(tiles, size, stride, edge=edge)
    np.testing.assert_allclose(back, images, rtol=32 * rounding, atol=0)


def test_the_mean_of_large_tiles_that_differ() -> None:
    tiles = np.empty((1, 5, 1, 1, 1, 9), np.float32)  # stride 2: up to five tiles over a pixel
    tiles[...] = np.random.default_rng(0).uniform(-LARGEST, LARGEST, tiles.shape)
    sums, counts = np.zeros(17), np.zeros(17)
    for j in range(5):
        sums[2 * j : 2 * j + 9] += tiles[0, j, 0, 0, 0].astype(np.float64)
        counts[2 * j : 2 * j + 9] += 1
    images = untile(tiles, (1, 17), (1, 2))[0, 0, 0]
    np.testing.assert_allclose(images, sums / counts, rtol=1e-6, atol=1e-6 * LARGEST)


def test_a_sum_beyond_the_range_beside_nan_and_infinity() -> None:
    """What is not finite stays so, and what is finite beside it is not touched."""
    images = np.full((1, 1, 1, 64), 3e38, np.float32)
    images[..., 10], images[..., 20], images[..., 30] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(untile(tile(images, (1, 16), (1, 4)), (1, 64), (1, 4)), images)


@given(st.sampled_from(TYPES), st.floats(0.1, 3.0), st.integers(0, 99), EDGES)
def test_the_blur_of_finite_maps_is_finite(
    kind: tuple[str, float, float], sigma: float, seed: int, edge: str
) -> None:
    dtype, largest, rounding = kind
    maps = (0.99 * largest * np.random.default_rng(seed).uniform(0.5, 1.0, (45, 70))).astype(dtype)
    shrink = np.asarray(2.0**-6, dtype)
    smoothed = smooth_seams(maps, 20, 13, sigma=sigma, width=0.2, edge=edge)
    expected = smooth_seams(maps * shrink, 20, 13, sigma=sigma, width=0.2, edge=edge)
    np.testing.assert_allclose(smoothed * shrink, expected, rtol=64 * rounding, atol=0)
