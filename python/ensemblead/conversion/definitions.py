"""Scores and maps by the definitions of other tools, in float64 NumPy and SciPy, step by step.

Nothing here is fast, and nothing is shared with the detectors: it is what these are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ensemblead.conversion.source import Definition, Values

_SIGMA = 4.0
_CHUNK = 1 << 24  # values of a table of distances that is held at once


def patchcore_inspection(
    rows: npt.NDArray[np.float32], patch_size: int, pretrain_dim: int, target_dim: int, num_neighbors: int
) -> Definition:
    """`PatchCore.predict` of patchcore-inspection: squared distances, the mean over neighbours."""

    def define(layers: Sequence[Values], size: tuple[int, int]) -> tuple[float, Values]:
        grid = layers[0].shape[1:]
        pooled = []
        for layer in layers:
            windows = _unfold(layer, patch_size)  # [C, p, p, h, w]
            resized = _bilinear(windows.reshape(-1, *windows.shape[3:]), grid)
            pooled.append(_adaptive_pool(resized.reshape(len(resized), -1).T, pretrain_dim))
        embedded = _adaptive_pool(np.concatenate(pooled, axis=1), target_dim)
        nearest, _ = _nearest(embedded, rows, num_neighbors)
        distances = nearest.mean(axis=1)
        grids = _bilinear(distances.reshape(1, *grid), size)
        return float(distances.max()), _blurred(grids[0], "reflect")

    return define


def anomalib_patchcore(rows: npt.NDArray[np.float32], num_neighbors: int) -> Definition:
    """`PatchcoreModel.forward` of anomalib: pooled layers, distances, the largest one weighted."""

    def define(layers: Sequence[Values], size: tuple[int, int]) -> tuple[float, Values]:
        grid = layers[0].shape[1:]
        pooled = [_bilinear(_unfold(layer, 3).mean(axis=(1, 2)), grid) for layer in layers]
        embedded = np.concatenate(pooled).reshape(-1, grid[0] * grid[1]).T
        squared, found = _nearest(embedded, rows, 1)
        distances = np.sqrt(squared[:, 0])
        strangest = int(distances.argmax())
        score = float(distances[strangest])
        if num_neighbors > 1:
            winner = rows[found[strangest, 0]].astype(np.float64)
            _, support = _nearest(winner[None], rows, min(num_neighbors, len(rows)))
            apart = np.linalg.norm(rows[support[0]] - embedded[strangest], axis=1)
            shares = np.exp(apart - apart.max())
            score *= 1.0 - shares[0] / shares.sum()
        return score, _blurred(_repeated(distances.reshape(1, *grid), size)[0], "mirror")

    return define


def anomalib_padim(
    channels: npt.NDArray[np.int64], mean: npt.NDArray[np.float32], inverse: npt.NDArray[np.float32]
) -> Definition:
    """`PadimModel.forward` of anomalib: Mahalanobis distances, and the largest value of their map.

    Args:
        channels: its `idx`, `[D]`.
        mean, inverse: `[D, P]` and `[P, D, D]`, as it has them.
    """

    def define(layers: Sequence[Values], size: tuple[int, int]) -> tuple[float, Values]:
        grid = layers[0].shape[1:]
        embedded = np.concatenate([_repeated(layer, grid) for layer in layers])[channels]
        deviations = embedded.reshape(len(channels), -1) - mean
        squared = np.empty(deviations.shape[1])
        for place in range(len(squared)):
            deviation = deviations[:, place]
            squared[place] = deviation @ inverse[place].astype(np.float64) @ deviation
        distances = np.sqrt(np.maximum(squared, 0.0)).reshape(1, *grid)
        blurred = _blurred(_bilinear(distances, size)[0], "mirror")
        return float(blurred.max()), blurred

    return define


def _unfold(layer: Values, side: int) -> Values:
    """Windows `[C, p, p, h, w]` around every position, zeros beyond the edge."""
    margin = side // 2
    channels, height, width = layer.shape
    padded = np.pad(layer, ((0, 0), (margin, margin), (margin, margin)))
    out = np.empty((channels, side, side, height, width))
    for y in range(side):
        for x in range(side):
            out[:, y, x] = padded[:, y : y + height, x : x + width]
    return out


def _bilinear(grids: Values, size: tuple[int, ...]) -> Values:
    """`[n, h, w]` to `[n, H, W]`, as torch's `interpolate` with `align_corners=False`."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = grids.shape[axis]
        place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape((-1, 1) if axis == 1 else (-1,))
        high = np.minimum(low + 1, source - 1)
        grids = grids.take(low, axis) * (1 - share) + grids.take(high, axis) * share
    return grids


def _repeated(grids: Values, size: tuple[int, ...]) -> Values:
    """`[n, h, w]` to `[n, H, W]`, as torch's `interpolate` with `mode="nearest"`, which rounds in float32."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = grids.shape[axis]
        places = np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target))
        grids = grids.take(np.minimum(places.astype(int), source - 1), axis)
    return grids


def _adaptive_pool(rows: Values, target: int) -> Values:
    """`[n, L]` to `[n, target]`, as torch's `adaptive_avg_pool1d`."""
    length = rows.shape[1]
    sums = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1)], axis=1)
    starts = np.arange(target) * length // target
    ends = -(-(np.arange(target) + 1) * length // target)
    pooled: Values = (sums[:, ends] - sums[:, starts]) / (ends - starts)
    return pooled


def _nearest(
    queries: Values, rows: npt.NDArray[np.float32], count: int
) -> tuple[Values, npt.NDArray[np.int64]]:
    """Squared distances and numbers of the nearest rows, `[Q, count]`, the nearest first."""
    known = rows.astype(np.float64)
    squares = (known**2).sum(axis=1)
    distances, found = np.empty((len(queries), count)), np.empty((len(queries), count), dtype=np.int64)
    step = max(1, _CHUNK // len(rows))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        table = (some**2).sum(axis=1)[:, None] - 2.0 * (some @ known.T) + squares
        near = np.argpartition(table, count - 1, axis=1)[:, :count]
        # Once more as differences: the product above loses digits where a distance is small.
        exact = ((known[near] - some[:, None]) ** 2).sum(axis=2)
        order = np.argsort(exact, axis=1, kind="stable")
        distances[start : start + step] = np.take_along_axis(exact, order, axis=1)
        found[start : start + step] = np.take_along_axis(near, order, axis=1)
    return distances, found


def _blurred(grid: Values, mode: str) -> Values:
    """SciPy's "reflect" repeats the edge pixel; "mirror" does not, and is what torch calls "reflect"."""
    from scipy.ndimage import gaussian_filter

    blurred: Values = gaussian_filter(grid, _SIGMA, mode=mode, truncate=4.0)
    return blurred
