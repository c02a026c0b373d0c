"""The bounds of products of codes, where rounding to whole numbers takes all that they allow."""

from __future__ import annotations

import numpy as np
import pytest

from ensemblead import _core
from ensemblead.kernels.nearest import SketchedRows, nearest_rows

LEAD, SMALL = 8, 200


def _point(large: float, small: float) -> np.ndarray:
    """Nothing along the leading directions, one value that makes the scale, and many others."""
    return np.concatenate([np.zeros(LEAD), [large], np.full(SMALL, small)]).astype(np.float32)


@pytest.mark.parametrize("directions", [None, LEAD, LEAD + 1 + SMALL], ids=["none", "lead", "sketches"])
@pytest.mark.parametrize(("of_query", "of_row"), [(63.0, 0.0), (0.0, 127.0)], ids=["query", "row"])
def test_the_error_of_either_side_counts_in_full(
    of_query: float, of_row: float, directions: int | None
) -> None:
    """A value of 63 or 127 makes a step of 1. Then .49 becomes 0, and codes miss the product of the small
    values. The bound of the error must hold all of it. The other side has codes without errors.
    """
    query, near = _point(of_query, 0.49), _point(of_row, 0.49)
    squared = max(of_query, of_row) ** 2
    # Farther by a little, without errors, and nearer as far as codes tell.
    far = _point(abs(of_query - np.sqrt(squared - 0.19 * SMALL)), 0.0)
    axes = None if directions is None else np.eye(directions, query.size, dtype=np.float32)
    rows = SketchedRows.of(np.stack([far, near]), np.zeros_like(query), axes)
    distances, found = nearest_rows(query[None], rows)
    assert found.tolist() == [[1]]
    np.testing.assert_allclose(distances, [[squared]], rtol=1e-5)


def test_a_row_too_long_for_codes_is_the_nearest() -> None:
    rows = np.zeros((2, 40), np.float32)
    rows[1, 0] = 1.1e18
    query = np.zeros((1, 40), np.float32)
    query[0, 0] = 9e17
    for axes in (None, np.eye(12, 40, dtype=np.float32)):
        prepared = SketchedRows.of(rows, np.zeros(40, np.float32), axes)
        assert nearest_rows(query, prepared)[1].tolist() == [[1]]


@pytest.mark.parametrize(("directions", "size"), [(96, 384 + 96 + 96), (8, 384 + 52), (0, 384 + 20)])
def test_a_row_takes_as_many_bytes_as_is_said(directions: int, size: int) -> None:
    once, twice = (_core.packed_size(rows, 384, directions) for rows in (3200, 6400))
    assert 4 * (twice - once) == 3200 * size
