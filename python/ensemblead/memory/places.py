"""Places of a memory bank's rows: cells of the grid of patches that they came from.

The distance of two cells is the larger of their distances in y and in x (Chebyshev's).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.validation import whole_number

# Cells of a side at most: the rows of all places are counted.
_MOST = 4096
# Coordinates of a block: enough bits for two numbers below `_MOST`, and whole vectors on every processor.
BLOCK_DIMS = 32

Numbers = npt.NDArray[np.int64]


def checked_radius(given: Any, index: str) -> int | None:
    """A bank's `position_radius`; ValueError for one below 0, or of more cells than a grid has, and for an
    index that is not exact.
    """
    if given is None:
        return None
    radius = whole_number("position_radius", given, 0)
    if radius >= _MOST:
        raise ValueError(
            f"position_radius must be below {_MOST}, the most cells of a side, got {radius}; None compares "
            "with rows of all places"
        )
    if index != "flat":
        raise ValueError(f'position_radius={radius} needs index="flat"; "{index}" finds rows of any place')
    return radius


def as_places(given: Any, count: int) -> Numbers:
    """int64 `[count, 2]` on the host, y before x.

    Raises TypeError for another kind of numbers, ValueError for another shape or for numbers that no grid
    has.
    """
    places = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
    if places.dtype.kind not in "iu":
        raise TypeError(f"places must be whole numbers, got {places.dtype}")
    if places.shape != (count, 2):
        raise ValueError(f"places must be [{count}, 2], got shape {places.shape}")
    if places.size and not 0 <= places.min() <= places.max() < _MOST:
        worst = places.min() if places.min() < 0 else places.max()
        raise ValueError(f"places must be cells of 0 to {_MOST - 1} in y and x, got {worst}")
    return np.ascontiguousarray(places, dtype=np.int64)


def grid_places(images: int, height: int, width: int) -> Numbers:
    """The places of the patches of so many images, `[images * height * width, 2]`."""
    cells = np.indices((height, width)).reshape(2, -1).T
    return np.ascontiguousarray(np.tile(cells, (images, 1)), dtype=np.int64)


def by_place(places: Numbers) -> npt.NDArray[np.intp]:
    """The order in which places ascend; equal ones keep theirs."""
    return np.lexsort((places[:, 1], places[:, 0]))


def in_order(rows: torch.Tensor, labels: Numbers) -> tuple[torch.Tensor, Numbers]:
    """Rows with their labels (see `Buffer`), in ascending order of their places, if they have any."""
    if labels.shape[1] == 1:
        return rows, labels
    order = by_place(labels[:, 1:])
    return rows[torch.from_numpy(order).to(rows.device)], labels[order]


class Blocks:
    """Squares of cells, as coordinates for the selection: of `side` cells, so that two cells of one square
    are less than `side` apart.

    Squares differ in one coordinate at least, by twice `scale`. Where that is more than the rows' distances,
    the selection covers every square by rows of its own.
    """

    def __init__(self, side: int, scale: float = 0.0) -> None:
        self.side, self.scale = side, scale

    def fit_scale(self, rows: torch.Tensor) -> None:
        """Take the scale from rows `[n, d]` as the selection sees them, if there is none yet: the root of
        their mean squared norm, up to the next power of two, so that rounding does not change it.
        """
        if self.scale == 0:
            norm = float(torch.linalg.vector_norm(rows, dtype=torch.float64)) / len(rows) ** 0.5
            self.scale = 2.0 ** float(np.ceil(np.log2(norm))) if norm > 0 else 1.0

    def coordinates(self, places: torch.Tensor) -> torch.Tensor:
        """float32 `[n, BLOCK_DIMS]` of places int64 `[n, 2]`: for every bit of a square plus or minus the
        scale.
        """
        squares = places // self.side
        digits = squares[:, :, None] >> torch.arange(BLOCK_DIMS // 2, device=places.device) & 1
        return (digits.flatten(1).float() - 0.5) * (2 * self.scale)


class PlaceCounts:
    """How many rows lie around a place, and so how far one must look for some.

    Args:
        places: of the rows, `[M, 2]`.
    """

    def __init__(self, places: Numbers) -> None:
        self._places = places
        self._shape = (int(places[:, 0].max()) + 1, int(places[:, 1].max()) + 1)
        self._counts = self._count(places)
        self._maps: dict[tuple[int, int], Numbers] = {}

    def radii(self, places: Numbers, radius: int, k: int, owners: Numbers, images: Numbers | None) -> Numbers:
        """For every query the least number of cells, `radius` or more, within which there are `k` rows.

        Args:
            places: of the queries, `[Q, 2]`.
            owners: the image of every row, `[M]`.
            images: that of every query, whose rows do not count, `[Q]` or `[]`; None: all rows count. k rows
                must be left.
        """
        radii = np.empty(len(places), dtype=np.int64)
        if images is not None:
            all_images = np.broadcast_to(images, len(places))
            for image in np.unique(all_images):
                counts = self._counts - self._count(self._places[owners == image])
                of_image = all_images == image
                radii[of_image] = self._least(counts, radius, k, places[of_image])
            return radii
        known = self._maps.get((radius, k))
        if known is None:
            cells = grid_places(1, *self._shape)
            known = self._maps[radius, k] = self._least(self._counts, radius, k, cells).reshape(self._shape)
        # Few places lie beyond the cells of all rows, and some very far.
        near = (places < self._shape).all(1)
        radii[near] = known[tuple(places[near].T)]
        if not near.all():
            radii[~near] = self._least(self._counts, radius, k, places[~near])
        return radii

    def _count(self, places: Numbers) -> Numbers:
        flat = places[:, 0] * self._shape[1] + places[:, 1]
        counts = np.bincount(flat, minlength=self._shape[0] * self._shape[1])
        return counts.reshape(self._shape).astype(np.int64)

    def _least(self, counts: Numbers, radius: int, k: int, places: Numbers) -> Numbers:
        """The radii of places `[n, 2]`, by halving the range in which they lie."""
        summed = np.pad(counts.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

        def inside(radii: Numbers) -> Numbers:
            sides = zip(places.T, self._shape, strict=True)
            (y0, y1), (x0, x1) = (
                ((centre - radii).clip(0, side), (centre + radii + 1).clip(0, side)) for centre, side in sides
            )
            found: Numbers = summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0]
            return found

        low = np.full(len(places), radius, dtype=np.int64)
        high = np.full_like(low, max(radius, *self._shape, int(places.max(initial=0))))
        while (low < high).any():
            middle = (low + high) // 2
            enough = inside(middle) >= k
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
        return high
