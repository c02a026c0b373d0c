"""Connected regions of masks: their labels and their outlines.

The eight neighbours of a pixel are connected with it, so regions that touch at a corner are one. AUPRO's
components, detected regions and drawn outlines all follow this rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.extras import require

Mask = npt.NDArray[np.bool_]
Ring = npt.NDArray[np.int64]

# Steps (x, y) of the four directions: right, down, left, up. The next one is a turn to the right.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def label_regions(mask: Mask) -> tuple[npt.NDArray[np.int32], int]:
    """Numbers of the 8-connected regions of a mask `[h, w]`, from 1 on and 0 outside, and how many there are.

    Raises MissingExtraError without SciPy.
    """
    require("scipy", "labelling the regions of a mask")
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3), np.int8))
    return labels, int(count)


def outlines(mask: Mask) -> list[Ring]:
    """The closed outlines of a mask `[h, w]` along the edges of its pixels: corners `[n, 2]` as (x, y).

    Pixel (row r, column c) is the square from (c, r) to (c + 1, r + 1). An 8-connected region has one outer
    ring, which is clockwise as seen on a screen, and a ring the other way round for each of its holes (see
    `signed_area`). The last corner is not the first one again. Filled by the even-odd rule, the rings give
    the mask back.
    """
    height, width = mask.shape
    around = np.pad(mask, 1)
    # Whether an edge goes from a corner in a direction, with the inside on its right.
    edges = np.zeros((4, height + 1, width + 1), np.bool_)
    edges[0, :height, :width] = mask & ~around[:-2, 1:-1]
    edges[1, :height, 1:] = mask & ~around[1:-1, 2:]
    edges[2, 1:, 1:] = mask & ~around[2:, 1:-1]
    edges[3, 1:, :width] = mask & ~around[1:-1, :-2]
    flat = [one.tobytes() for one in edges]
    left = [bytearray(one) for one in flat]
    starts = np.flatnonzero(edges[0]).tolist()
    return [_ring(flat, left, start, width + 1) for start in starts if left[0][start]]


def _ring(edges: Sequence[bytes], left: list[bytearray], start: int, row: int) -> Ring:
    """The ring that begins with the edge to the right of a corner; its edges are taken out of `left`."""
    corners = list[tuple[int, int]]()
    place, direction, before = start, 0, -1
    while left[direction][place]:
        left[direction][place] = 0
        if direction != before:
            corners.append((place % row, place // row))
        before = direction
        x, y = _STEPS[direction]
        place += x + y * row
        # Where two pixels touch at a corner, a turn to the left leads on to the other one.
        for direction in ((before + 3) % 4, before, (before + 1) % 4):
            if edges[direction][place]:
                break
    return np.array(corners, np.int64)


def signed_area(ring: npt.NDArray[Any]) -> float:
    """The area inside a ring `[n, 2]`: positive if it is clockwise as seen on a screen, as outer ones are."""
    x, y = np.asarray(ring, np.float64).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2.0)
