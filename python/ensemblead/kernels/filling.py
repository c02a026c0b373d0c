"""Pixels and patches outside of a region take what the nearest ones inside have: NumPy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def nearest_inside(mask: Mask) -> npt.NDArray[np.int64]:
    """For every pixel of a mask bool `[H, W]` the place, in the flattened mask, of the pixel that stands for
    it: int64 `[H, W]`.

    A pixel inside stands for itself. For others it is the nearest one inside in their row, on the left of two
    that are as near. A row without any takes what the nearest row has that is not, the upper one of two.

    >>> nearest_inside(np.array([[False, True, False], [False, False, False]]))
    array([[1, 1, 1],
           [1, 1, 1]])

    Raises ValueError for a mask without a pixel inside.
    """
    if not mask.any():
        raise ValueError("mask must have a pixel inside, got none")
    filled: Mask = np.asarray(mask.any(axis=1))
    rows = _nearest(filled[None])[0]
    places: npt.NDArray[np.int64] = rows[:, None] * mask.shape[1] + _nearest(mask)[rows]
    return places


def _nearest(mask: Mask) -> npt.NDArray[np.int64]:
    """For every place of a row of `[n, W]` the nearest that is true; of rows without any, nothing useful."""
    width = mask.shape[1]
    places = np.broadcast_to(np.arange(width), mask.shape)
    before = np.maximum.accumulate(np.where(mask, places, -2 * width), axis=1)
    after = np.minimum.accumulate(np.where(mask, places, 3 * width)[:, ::-1], axis=1)[:, ::-1]
    return np.clip(np.where(places - before <= after - places, before, after), 0, width - 1)


def cells_inside(
    mask: Mask, grid: tuple[int, int], part: tuple[slice, slice] = (slice(None), slice(None))
) -> Mask:
    """Which cells of a grid `(h, w)` laid over a mask `[H, W]` have any pixel inside: bool `[h, w]`. `part`:
    the rows and columns of cells that are wanted.

    >>> cells_inside(np.eye(4, dtype=bool), (2, 2))
    array([[ True, False],
           [False,  True]])
    """
    if grid == mask.shape:
        return mask[part]
    (top, bottom), (left, right) = (
        (first[own], end[own]) for (first, end), own in zip(map(_edges, mask.shape, grid), part, strict=True)
    )
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int64)
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)
    counts = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    inside: Mask = counts > 0
    return inside


def _edges(side: int, cells: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First pixel and end of every cell; a pixel that two cells share belongs to both."""
    numbers = np.arange(cells)
    return numbers * side // cells, -(-(numbers + 1) * side // cells)
