"""Every operation once more, naively: NumPy in float64, written from the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Float64 = np.ndarray[Any, np.dtype[np.float64]]

# --- tiling ---------------------------------------------------------------------------------------


def tile_counts(
    size: tuple[int, int], tile_size: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of tiles."""
    rows, cols = (math.ceil((n - t) / s) + 1 for n, t, s in zip(size, tile_size, stride, strict=True))
    return rows, cols


def tile_starts(size: int, tile_size: int, stride: int, edge: str) -> list[int]:
    """Where the tiles of one axis start."""
    starts = [i * stride for i in range(math.ceil((size - tile_size) / stride) + 1)]
    return [min(start, size - tile_size) for start in starts] if edge == "flush" else starts


def tile_corners(
    size: tuple[int, int], tile_size: tuple[int, int], stride: tuple[int, int], edge: str
) -> list[tuple[int, int, int, int]]:
    """(i, j, y, x) of every tile: its row and column, and its first pixel."""
    rows, cols = (tile_starts(*axis, edge) for axis in zip(size, tile_size, stride, strict=True))
    return [(i, j, y, x) for i, y in enumerate(rows) for j, x in enumerate(cols)]


def tile(
    images: np.ndarray, tile_size: tuple[int, int], stride: tuple[int, int], edge: str = "pad"
) -> np.ndarray:
    """[B, C, H, W] -> [rows, cols, B, C, h, w], dtype kept; zeros at the bottom and on the right."""
    batch, channels, height, width = images.shape
    h, w = tile_size
    tiles = np.zeros((*tile_counts((height, width), tile_size, stride), batch, channels, h, w), images.dtype)
    for i, j, y, x in tile_corners((height, width), tile_size, stride, edge):
        pixels = images[:, :, y : y + h, x : x + w]
        tiles[i, j, :, :, : pixels.shape[2], : pixels.shape[3]] = pixels
    return tiles


def cover_counts(
    size: tuple[int, int], tile_size: tuple[int, int], stride: tuple[int, int], edge: str = "pad"
) -> np.ndarray:
    """[H, W]: how many tiles cover each pixel, counted one by one."""
    counts = np.zeros(size)
    for _, _, y, x in tile_corners(size, tile_size, stride, edge):
        counts[y : y + tile_size[0], x : x + tile_size[1]] += 1
    return counts


def untile(
    tiles: np.ndarray, image_size: tuple[int, int], stride: tuple[int, int], edge: str = "pad"
) -> np.ndarray:
    """[rows, cols, B, C, h, w] -> float64 [B, C, H, W]: the mean over the covering tiles."""
    batch, channels, h, w = tiles.shape[2:]
    total = np.zeros((batch, channels, image_size[0] + h, image_size[1] + w))
    for i, j, y, x in tile_corners(image_size, (h, w), stride, edge):
        total[:, :, y : y + h, x : x + w] += tiles[i, j].astype(np.float64)
    return total[:, :, : image_size[0], : image_size[1]] / cover_counts(image_size, (h, w), stride, edge)


def gaussian_blur(maps: np.ndarray, sigma: float) -> np.ndarray:
    """Over the last two axes, edge pixel repeated on reflection, cut off at int(4 * sigma + 0.5) pixels."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    blurred = maps.astype(np.float64)
    for axis in (-2, -1):
        lines = np.moveaxis(blurred, axis, -1)
        border = [(0, 0)] * (lines.ndim - 1) + [(radius, radius)]
        padded = np.pad(lines, border, mode="symmetric")
        total = np.zeros_like(lines)
        for k, weight in enumerate(weights):
            total += weight * padded[..., k : k + lines.shape[-1]]
        blurred = np.moveaxis(total, -1, axis)
    return blurred


def seam_mask(
    size: tuple[int, int],
    tile_size: tuple[int, int],
    stride: tuple[int, int],
    width: float,
    edge: str = "pad",
) -> np.ndarray:
    """[H, W]: the pixels within int(width * tile) of a start or end of a tile inside the image."""
    mask = np.zeros(size, dtype=bool)
    for axis in (0, 1):
        r = int(width * tile_size[axis])
        lines = np.moveaxis(mask, axis, 0)
        for start in tile_starts(size[axis], tile_size[axis], stride[axis], edge):
            for seam in (start, start + tile_size[axis]):
                if 0 < seam < size[axis]:
                    lines[max(seam - r, 0) : seam + r] = True
    return mask


def smooth_seams(
    maps: np.ndarray,
    tile_size: tuple[int, int],
    stride: tuple[int, int],
    sigma: float = 2.0,
    width: float = 0.1,
    edge: str = "pad",
) -> np.ndarray:
    """[..., H, W] -> float64, same shape: blurred where seam_mask says so."""
    mask = seam_mask((maps.shape[-2], maps.shape[-1]), tile_size, stride, width, edge)
    return np.where(mask, gaussian_blur(maps, sigma), maps.astype(np.float64))


# --- patch aggregation ----------------------------------------------------------------------------


def aggregate_patches(
    feature_maps: Sequence[np.ndarray[Any, Any]],
    patch_size: int,
    pretrain_dims: Sequence[int],
    target_dim: int,
    mode: str,
) -> Float64:
    """Unfold, resize every plane, pool, concatenate, pool; or average, resize, concatenate."""
    grid = feature_maps[0].shape[2:]
    layers = []
    for feature_map, pretrain_dim in zip(feature_maps, pretrain_dims, strict=True):
        planes = unfold(feature_map.astype(np.float64), patch_size)
        if mode == "concat":
            planes = planes.mean(axis=(2, 3))
        planes = resize_bilinear(planes, grid[0], grid[1])
        rows = np.moveaxis(planes, (-2, -1), (1, 2)).reshape(planes.shape[0], *grid, -1)
        layers.append(rows if mode == "concat" else adaptive_average_pool(rows, pretrain_dim))
    rows = np.concatenate(layers, axis=-1)
    return rows if mode == "concat" else adaptive_average_pool(rows, target_dim)


def unfold(feature_map: Float64, patch_size: int) -> Float64:
    """`[B, C, H, W]` -> `[B, C, ky, kx, H, W]`: the window of each position, zeros beyond the edge."""
    radius = (patch_size - 1) // 2
    height, width = feature_map.shape[2:]
    padded = np.pad(feature_map, ((0, 0), (0, 0), (radius, radius), (radius, radius)))
    windows = [
        [padded[:, :, ky : ky + height, kx : kx + width] for kx in range(patch_size)]
        for ky in range(patch_size)
    ]
    return np.stack([np.stack(row, axis=2) for row in windows], axis=2)


def resize_bilinear(planes: Float64, height: int, width: int) -> Float64:
    """The last two axes to `height` x `width`, align_corners=False, no antialiasing."""
    return resize_axis(resize_axis(planes, -2, height), -1, width)


def resize_axis(values: Float64, axis: int, size: int) -> Float64:
    old = values.shape[axis]
    source = np.maximum((np.arange(size) + 0.5) * old / size - 0.5, 0)
    low = np.minimum(np.floor(source).astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    shape = [1] * values.ndim
    shape[axis] = size
    weight = (source - low).reshape(shape)
    return (1 - weight) * np.take(values, low, axis) + weight * np.take(values, high, axis)


def adaptive_average_pool(values: Float64, size: int) -> Float64:
    """The last axis to `size` bins: bin i of m over n is [floor(i*n/m), ceil((i+1)*n/m))."""
    old = values.shape[-1]
    bins = [values[..., i * old // size : -(-(i + 1) * old // size)].mean(axis=-1) for i in range(size)]
    return np.stack(bins, axis=-1)


# --- coreset --------------------------------------------------------------------------------------


def coreset_start_values(
    features: np.ndarray[Any, Any],
    *,
    start_rows: Sequence[int] | None = None,
    bank: np.ndarray[Any, Any] | None = None,
) -> Float64:
    """[N]: a row's value before the first pick, its mean distance to the start rows or that to a bank."""
    others = features[np.asarray(start_rows)] if bank is None else bank
    distances = np.stack([euclidean(features, other) for other in others])
    return np.asarray(distances.mean(axis=0) if bank is None else distances.min(axis=0))


def euclidean(features: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Float64:
    """[N]: the distance of every row to one."""
    difference = features.astype(np.float64) - other.astype(np.float64)
    return np.asarray(np.sqrt((difference**2).sum(axis=1)))


def project(features: np.ndarray[Any, Any], projection: np.ndarray[Any, Any]) -> Float64:
    """[N, D], [P, D] -> [N, P]."""
    return np.asarray(features.astype(np.float64) @ projection.astype(np.float64).T)


def select_coreset(
    features: np.ndarray[Any, Any],
    size: int,
    *,
    start: str = "mean",
    start_rows: Sequence[int] | None = None,
    bank: np.ndarray[Any, Any] | None = None,
    radius: float | None = None,
    projection: np.ndarray[Any, Any] | None = None,
) -> list[int]:
    """Row indices in the order of the picks: the sequential greedy loop, pick by pick."""
    if projection is not None:
        features = project(features, projection)
        bank = None if bank is None else project(bank, projection)
    picks: list[int] = []
    if bank is None and start == "row":
        assert start_rows is not None
        picks.append(int(start_rows[0]))
        values = euclidean(features, features[picks[0]])
    else:
        values = coreset_start_values(features, start_rows=start_rows, bank=bank)
    while len(picks) < size:
        best = int(values.argmax())  # the lowest index among equals
        if radius is not None and values[best] <= radius:
            break
        picks.append(best)
        values = np.minimum(values, euclidean(features, features[best]))
    return picks


def coreset_shortfall(
    features: np.ndarray[Any, Any], picks: Sequence[int], values: Float64 | None = None
) -> float:
    """Replays `picks`: how far, at worst, a pick's value falls short of the largest at its turn; relative.

    `values` are those before the first pick; None stands for infinity everywhere, where any pick is right.
    """
    worst = 0.0
    for pick in picks:
        if values is not None and values.max() > 0:
            worst = max(worst, 1.0 - float(values[pick] / values.max()))
        distances = euclidean(features, features[pick])
        values = distances if values is None else np.minimum(values, distances)
    return worst


# --- weighted sums of similarities ----------------------------------------------------------------


def weighted_top_k(
    blocks: Sequence[np.ndarray],
    weights: np.ndarray,
    k: int,
    left_out: np.ndarray | None = None,
    scales: np.ndarray | None = None,
) -> tuple[Float64, np.ndarray]:
    """Blocks [Q, N], weights [W, K], a mask [Q, N] and factors [W, N] -> values and columns [W, Q, k]."""
    queries, columns = blocks[0].shape
    values = np.full((len(weights), queries, k), -np.inf)
    indices = np.full((len(weights), queries, k), -1)
    for w, row in enumerate(weights):
        for q in range(queries):
            found = []
            for n in range(columns):
                total = 0.0
                for weight, block in zip(row, blocks, strict=True):
                    total += float(weight) * float(block[q, n])
                if scales is not None:
                    total *= float(scales[w, n])
                if total > -np.inf and not (left_out is not None and left_out[q, n]):
                    found.append((-total, n))
            for place, (negative, n) in enumerate(sorted(found)[:k]):
                values[w, q, place], indices[w, q, place] = -negative, n
    return values, indices


# --- convolutions of 3 x 3 ------------------------------------------------------------------------


def convolve(images: np.ndarray, taps: np.ndarray) -> Float64:
    """Images [B, H, W, C], taps [3, 3, C, O] -> [B, H, W, O]; zeros lie around the images."""
    _, height, width, _ = images.shape
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = {(i, j): padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)}
    return sum(window @ taps[i, j].astype(np.float64) for (i, j), window in windows.items())


def taps_gradient(images: np.ndarray, gradients: np.ndarray) -> Float64:
    """Images [B, H, W, C], gradients [B, H, W, O] -> [3, 3, C, O]."""
    _, height, width, channels = images.shape
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.empty((3, 3, channels, gradients.shape[3]))
    for i in range(3):
        for j in range(3):
            window = padded[:, i : i + height, j : j + width]
            found[i, j] = np.tensordot(window, gradients.astype(np.float64), ((0, 1, 2), (0, 1, 2)))
    return found


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A photograph `[H, W, 3]` at another size, by whole weights of 22 bits: rows first, then columns."""
    values = image.astype(np.int64)
    for axis in (1, 0):
        weights = _triangles(values.shape[axis], size[axis])
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
        values = np.minimum((values + (1 << 21)) >> 22, 255)
    return values.astype(np.uint8)


def _triangles(length: int, resized: int) -> np.ndarray:
    """int64 `[resized, length]`: triangles that reach one pixel of the smaller image to either side."""
    scale = length / resized
    reach = max(scale, 1.0)
    weights = np.zeros((resized, length), dtype=np.int64)
    for place in range(resized):
        centre = (place + 0.5) * scale
        far = np.abs(np.arange(length) - centre + 0.5) / reach
        shares = np.where(far < 1.0, 1.0 - far, 0.0)
        weights[place] = (0.5 + shares / shares.sum() * (1 << 22)).astype(np.int64)
    return weights
