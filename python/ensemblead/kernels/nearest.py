"""Exact nearest rows on the CPU: products along a few directions rule rows out, distances decide."""

from __future__ import annotations

from dataclasses import dataclass

from ensemblead import _core
from ensemblead.kernels.arrays import Array, framework_of, num_threads


@dataclass(frozen=True)
class SketchedRows:
    """Rows float32 or float16 `[N, D]` on the CPU, prepared for `nearest_rows`: `of` makes them.

    Beyond the rows they take P / D of their memory, for P directions.
    """

    rows: Array
    middle: Array
    num_directions: int
    num_front: int
    packed: Array

    @classmethod
    def of(cls, rows: Array, middle: Array, directions: Array, num_front: int) -> SketchedRows:
        """
        Args:
            rows: float32 or float16 `[N, D]`, contiguous, finite, of one framework with the others; kept, not
                copied.
            middle: float32 `[D]`, a point in the middle of the rows.
            directions: float32 `[P, D]`, orthonormal; that is not looked at, and with others rows may be
                missed. The result is the same for all orthonormal directions; the rows' principal
                directions rule out most.
            num_front: 1 to P. Along so many directions all pairs are compared, along the others those that
                the first ones leave.

        Raises:
            ValueError: a shape, layout or device other than these.
            TypeError: another dtype, or no array.
        """
        framework = framework_of(rows, "rows")
        for array, argument, layout in ((rows, "rows", "[N, D]"), (directions, "directions", "[P, D]")):
            framework_of(array, argument)
            if array.ndim != 2:
                raise ValueError(f"{argument} must be 2-D {layout}, got shape {tuple(array.shape)}")
        size = _core.packed_size(len(rows), rows.shape[-1], len(directions), num_front)
        packed = framework.empty((size,), "float32", middle)
        _core.pack_rows(rows, middle, directions, packed, num_front, num_threads=num_threads())
        return cls(rows, middle, len(directions), num_front, packed)


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
    if queries.ndim != 2 or queries.shape[1] != rows.rows.shape[1]:
        raise ValueError(
            f"queries must be [Q, {rows.rows.shape[1]}] as the rows, got shape {tuple(queries.shape)}"
        )
    if not 1 <= k <= len(rows.rows):
        raise ValueError(f"k must be between 1 and the {len(rows.rows)} rows, got {k}")
    if (row_images is None) != (query_images is None):
        raise ValueError("row_images and query_images must be given together, got one of them")
    places = (row_places, query_places, query_radii)
    if any(one is None for one in places) and any(one is not None for one in places):
        raise ValueError("row_places, query_places and query_radii must be given together")
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
            rows.num_front,
            distances=distances,
            indices=indices,
            row_images=row_images,
            query_images=query_images,
            row_places=row_places,
            query_places=query_places,
            query_radii=query_radii,
            num_threads=num_threads(),
        )
    return distances, indices
