"""Nearest rows on the CPU: exactly, where products along a few directions rule rows out and distances decide;
and up to rounding, by products over all dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensemblead import _core
from ensemblead.kernels.arrays import Array, framework_of, num_threads


@dataclass(frozen=True)
class SketchedRows:
    """Rows float32 or float16 `[N, D]` on the CPU, prepared for `nearest_rows`: `of` makes them.

    Beside a row they take a byte for every value and every direction, and 96 bytes; with up to eight
    directions a byte for every value, and at most 52.
    """

    rows: Array
    middle: Array
    num_directions: int
    packed: Array

    @classmethod
    def of(cls, rows: Array, middle: Array, directions: Array | None) -> SketchedRows:
        """
        Args:
            rows: float32 or float16 `[N, D]`, contiguous, finite, of one framework with the others; kept, not
                copied.
            middle: float32 `[D]`, a point in the middle of the rows.
            directions: float32 `[P, D]`, orthonormal; that is not looked at, and with others rows may be
                missed. The result is the same for all orthonormal directions, and for None; the rows'
                principal directions, the first ones first, rule out most.

        Raises:
            ValueError: a shape, layout or device other than these.
            TypeError: another dtype, or no array.
        """
        framework = framework_of(rows, "rows")
        if rows.ndim != 2:
            raise ValueError(f"rows must be 2-D [N, D], got shape {tuple(rows.shape)}")
        count = 0
        if directions is not None:
            framework_of(directions, "directions")
            if directions.ndim != 2:
                raise ValueError(f"directions must be 2-D [P, D], got shape {tuple(directions.shape)}")
            count = len(directions)
        packed = framework.empty((_core.packed_size(len(rows), rows.shape[-1], count),), "float32", middle)
        _core.pack_rows(rows, middle, directions, packed, num_threads=num_threads())
        return cls(rows, middle, count, packed)


def nearest_rows(
    queries: Array,
    rows: SketchedRows,
    k: int = 1,
    *,
    row_images: Array | None = None,
    query_images: Array | None = None,
    row_places: Array | None = None,
    query_places: Array | None = None,
    query_radii: Array | None = None,
) -> tuple[Array, Array]:
    """The k rows nearest to every query, exactly, by *squared* L2 distance.

    Args:
        queries: float32 `[Q, D]`, contiguous, on the CPU, of the framework of the rows.
        k: 1 to N. Meant for few: the cost of keeping them grows with it.
        row_images, query_images: int64 `[N]` and `[Q]`; a row is left out for queries of its own image.
        row_places, query_places, query_radii: int64 `[N, 2]`, `[Q, 2]` and `[Q]`, of 0 to 65536; a row is
            left out for queries whose place differs from its own by more than their radius, in the first or
            the second number. Rows must come in ascending order of their places, and then only those near a
            query are looked at. Batches of many queries at the same or neighbouring places are the fastest.

    Returns:
        Squared distances float32 `[Q, k]`, ascending, summed in float32 from differences, and row numbers
        int64 `[Q, k]`, the lower first among equals; the same for any number of threads and any division of
        the queries. Infinity and -1 where fewer than k rows are left in. A query that is not finite gets the
        distances that arithmetic gives.

    Raises:
        ValueError: a shape, layout or device other than these, k out of range, or a squared distance beyond
            float32 among the k nearest of a query.
        TypeError: another dtype, or no array.
    """
    framework = framework_of(queries, "queries")
    _check(queries, rows.rows, k)
    left_out = _left_out(row_images, query_images, row_places, query_places, query_radii)
    shape = (queries.shape[0], k)
    distances = framework.empty(shape, "float32", queries)
    indices = framework.empty(shape, "int64", queries)
    if len(queries):
        _core.nearest_rows(
            queries,
            rows.rows,
            rows.middle,
            rows.packed,
            rows.num_directions,
            distances=distances,
            indices=indices,
            **left_out,
            num_threads=num_threads(),
        )
    return distances, indices


def nearest_by_products(
    queries: Array,
    rows: Array,
    middle: Array,
    squares: Array,
    k: int = 1,
    *,
    row_images: Array | None = None,
    query_images: Array | None = None,
    row_places: Array | None = None,
    query_places: Array | None = None,
    query_radii: Array | None = None,
) -> tuple[Array, Array]:
    """The k rows of every query with the smallest `|p|^2 - 2 x.p`, for rows p and queries x relative to a
    middle: the nearest rows, but for the rounding of that value.

    Args:
        queries, k: as for `nearest_rows`, and so are the conditions that leave rows out. Hundreds of
            neighbours cost little more than one.
        rows: float32 or float16 `[N, D]`, contiguous, finite, on the CPU.
        middle: float32 `[D]`, the point that rows and queries are taken relative to, in float32.
        squares: float32 `[N]`, the squared length of every row relative to it.

    Returns:
        The values float32 `[Q, k]`, ascending, and row numbers int64 `[Q, k]`, the lower first among equals;
        the same for any number of threads and any division of the queries. Infinity and -1 where fewer than k
        rows are left in; a value that is NaN or infinite counts as left out. `2 x.p` is a sum in float32 in
        the order of the dimensions, to which `-|p|^2` is added last.

    Raises:
        ValueError: a shape, layout or device other than these, or k out of range.
        TypeError: another dtype, or no array.
    """
    framework = framework_of(queries, "queries")
    framework_of(rows, "rows")
    if rows.ndim != 2:
        raise ValueError(f"rows must be 2-D [N, D], got shape {tuple(rows.shape)}")
    _check(queries, rows, k)
    left_out = _left_out(row_images, query_images, row_places, query_places, query_radii)
    values = framework.empty((queries.shape[0], k), "float32", queries)
    indices = framework.empty((queries.shape[0], k), "int64", queries)
    if len(queries):
        _core.nearest_by_products(
            queries,
            rows,
            middle,
            squares,
            values=values,
            indices=indices,
            **left_out,
            num_threads=num_threads(),
        )
    return values, indices


def _check(queries: Array, rows: Array, k: int) -> None:
    if queries.ndim != 2 or queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"queries must be [Q, {rows.shape[1]}] as the rows, got shape {tuple(queries.shape)}"
        )
    if not 1 <= k <= len(rows):
        raise ValueError(f"k must be between 1 and the {len(rows)} rows, got {k}")


def _left_out(
    row_images: Array | None,
    query_images: Array | None,
    row_places: Array | None,
    query_places: Array | None,
    query_radii: Array | None,
) -> dict[str, Any]:
    """The conditions by name, each of them whole or None."""
    if (row_images is None) != (query_images is None):
        raise ValueError("row_images and query_images must be given together, got one of them")
    places = (row_places, query_places, query_radii)
    if any(one is None for one in places) and any(one is not None for one in places):
        raise ValueError("row_places, query_places and query_radii must be given together")
    return {
        "row_images": row_images,
        "query_images": query_images,
        "row_places": row_places,
        "query_places": query_places,
        "query_radii": query_radii,
    }
