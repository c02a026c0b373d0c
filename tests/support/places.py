"""Cases of searches near a query's place, and what they must find, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblead.kernels.nearest import SketchedRows, nearest_rows

DIMS, RANK = 130, 12


@dataclass(frozen=True)
class Case:
    """Rows in ascending order of their places, queries, and what `nearest_rows` takes of their places and
    images.
    """

    rows: np.ndarray
    queries: np.ndarray
    places: dict[str, Any]
    images: dict[str, Any]

    def conditions(self) -> dict[str, Any]:
        return {**self.places, **self.images}

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """The middle of the rows and 24 principal directions."""
        middle = self.rows.mean(0)
        axes = np.linalg.svd((self.rows - middle).astype(np.float64))[2][:24]
        return middle, np.ascontiguousarray(axes, dtype=np.float32)

    def sketched(self) -> SketchedRows:
        return SketchedRows.of(self.rows, *self.directions())

    def allowed(self) -> np.ndarray:
        """Which rows a query may find, bool `[Q, M]`."""
        apart = np.abs(self.places["query_places"][:, None] - self.places["row_places"]).max(2)
        inside: np.ndarray = apart <= self.places["query_radii"][:, None]
        if self.images:
            inside &= self.images["query_images"][:, None] != self.images["row_images"]
        return inside

    def part(self, which: np.ndarray) -> Case:
        """For some of the queries."""
        places = {name: v if name == "row_places" else v[which] for name, v in self.places.items()}
        images = {name: v if name == "row_images" else v[which] for name, v in self.images.items()}
        return replace(self, queries=self.queries[which], places=places, images=images)


def make_case(
    rows: int,
    grid: tuple[int, int],
    *,
    images: int,
    radius: int | None,
    seed: int = 0,
    leave_out: bool = False,
    noise: bool = False,
) -> Case:
    """A query for every cell of so many images; what rows look like follows from their place, or is noise.

    Args:
        radius: None: another one for every query.
    """
    rng = np.random.default_rng(seed)
    places = np.stack([rng.integers(side, size=rows) for side in grid], 1)
    places = places[np.lexsort((places[:, 1], places[:, 0]))]
    cells = np.ascontiguousarray(np.tile(np.indices(grid).reshape(2, -1).T, (images, 1)))
    axes = rng.normal(size=(RANK, DIMS))
    waves = rng.normal(size=(2, RANK))

    def draw(at: np.ndarray) -> np.ndarray:
        if noise:
            return rng.normal(size=(len(at), DIMS)).astype(np.float32)
        means = np.sin(0.4 * at @ waves) + 0.3 * rng.normal(size=(len(at), RANK))
        return (means @ axes + 0.2 * rng.normal(size=(len(at), DIMS))).astype(np.float32)

    radii = rng.integers(0, 4, size=len(cells)) if radius is None else np.full(len(cells), radius)
    own = {"row_images": rng.integers(5, size=rows), "query_images": rng.integers(6, size=len(cells))}
    return Case(
        draw(places),
        draw(cells),
        {"row_places": places, "query_places": cells, "query_radii": radii},
        own if leave_out else {},
    )


def by_brute_force(case: Case, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and row numbers, infinity and -1 where there are fewer than k."""
    wide = case.rows.astype(np.float64)
    squared = np.stack([((query - wide) ** 2).sum(1) for query in case.queries.astype(np.float64)])
    squared[~case.allowed()] = np.inf
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    distances = np.take_along_axis(squared, order, 1)
    order[np.isinf(distances)] = -1
    return distances, order


def check(case: Case, k: int) -> None:
    """The kernel finds what brute force finds."""
    distances, found = nearest_rows(case.queries, case.sketched(), k, **case.conditions())
    expected, order = by_brute_force(case, k)
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
