"""False regions of normal images: how many connected regions their maps have above a pixel threshold.

The largest value in each cell of a map is kept. Regions are counted on these cells: as long as a cell is
finer than the maps' blur, the count is that of the map.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def cell_peaks(maps: torch.Tensor, side: int) -> torch.Tensor:
    """The largest value in each of `side` x `side` cells of maps `[B, H, W]`: `[B, side * side]`."""
    return torch.nn.functional.adaptive_max_pool2d(maps[:, None], side).flatten(1)


def region_tops(peaks: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The values that stand for regions: of n normal images' cells `[n, P]` (squares, P = side * side) the n
    largest, ascending.

    The k-th value of an image is the highest threshold at which it has k regions, so its first one is its
    maximum. So the share of the n values that lie above a threshold is the number of regions per image there,
    or a little more where regions merge further down. Below the median of the maxima only the maxima
    themselves are known, which is enough for rates up to a half.
    """
    cells = np.asarray(peaks, np.float64)
    maxima = cells.max(axis=1)
    later = _later_tops(cells, float(np.median(maxima)))
    return np.sort(np.concatenate([maxima, later]))[-len(maxima) :]


def _later_tops(cells: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
    """Above a level, the values at which images have a second, third, ... region for the first time.

    An image has as many regions above t as cells above t, less the edges above t of a spanning forest that
    prefers high cells.
    """
    number, side = len(cells), round(cells.shape[1] ** 0.5)
    places = np.flatnonzero(cells > level)
    if not len(places):
        return np.empty(0)
    nodes = np.full((number, side + 1, side + 2), -1)  # with a border, on which there is no cell
    images, inside = np.divmod(places, side * side)
    nodes[images, inside // side, inside % side + 1] = np.arange(len(places))
    values = cells.ravel()[places]
    ends = _spanning_edges(nodes, values)
    # Cells and edges, from the highest on; an edge before the cell that it comes with, so that the count is
    # never too high.
    heights = np.concatenate([values, np.minimum(*values[ends])])
    owners = np.concatenate([images, images[ends[0]]])
    steps = np.concatenate([np.ones(len(values), np.int64), -np.ones(ends.shape[1], np.int64)])
    order = np.lexsort((steps, -heights, owners))
    heights, owners, steps = heights[order], owners[order], steps[order]
    counts = np.cumsum(steps)
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    counts -= np.repeat(np.concatenate([[0], counts[first[1:] - 1]]), np.diff(first, append=len(owners)))
    # The largest count so far in the same image: images are kept apart by more than any of them can have.
    apart = owners * (side * side + 1)
    largest = np.maximum.accumulate(counts + apart) - apart
    rises = (counts == largest) & (np.diff(largest, prepend=0) > 0) & (counts > 1)
    return np.asarray(heights[rises], np.float64)


def _spanning_edges(nodes: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The two ends `[2, E]` of a forest that spans neighbouring cells and prefers the highest ones."""
    here, pairs = nodes[:, :-1, 1:-1], list[npt.NDArray[np.int64]]()
    for other in (nodes[:, :-1, 2:], nodes[:, 1:, :-2], nodes[:, 1:, 1:-1], nodes[:, 1:, 2:]):
        both = (here >= 0) & (other >= 0)
        pairs.append(np.stack([here[both], other[both]]))
    ends = np.concatenate(pairs, axis=1)
    order = np.argsort(-np.minimum(*values[ends]), kind="stable")
    return ends[:, order[_forest(ends[:, order], len(values))]]


def _forest(ends: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Places of the edges of a forest that spans `count` nodes, the first edges preferred: Boruvka's
    algorithm. In every round each tree takes the first edge that leaves it, and trees that met are one.

    SciPy has it too, but its import takes ten times as long as a prediction.
    """
    places, tree, taken = np.arange(ends.shape[1]), np.arange(count), list[npt.NDArray[np.int64]]()
    while True:
        pair = tree[ends[:, places]]
        apart = pair[0] != pair[1]
        places, pair = places[apart], pair[:, apart]
        if not len(places):
            break
        first = np.full(count, len(places))
        for side in pair:
            np.minimum.at(first, side, np.arange(len(places)))
        trees = np.flatnonzero(first < len(places))
        edge = first[trees]
        taken.append(places[np.unique(edge)])
        parent = np.arange(count)
        parent[trees] = pair[0, edge] + pair[1, edge] - trees  # the tree at the other end
        # Of two trees that chose each other, one stays.
        mutual = (parent[parent] == np.arange(count)) & (np.arange(count) < parent)
        parent[mutual] = np.flatnonzero(mutual)
        while not np.array_equal(above := parent[parent], parent):
            parent = above
        tree = parent[tree]
    return np.concatenate(taken) if taken else np.empty(0, np.int64)
