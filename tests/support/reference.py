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


def tile(images: np.ndarray, tile_size: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """[B, C, H, W] -> [rows, cols, B, C, h, w], dtype kept; zeros at the bottom and on the right."""
    batch, channels, height, width = images.shape
    (h, w), (sh, sw) = tile_size, stride
    rows, cols = tile_counts((height, width), tile_size, stride)
    padded = np.zeros((batch, channels, (rows - 1) * sh + h, (cols - 1) * sw + w), images.dtype)
    padded[:, :, :height, :width] = images
    tiles = np.empty((rows, cols, batch, channels, h, w), images.dtype)
    for i in range(rows):
        for j in range(cols):
            tiles[i, j] = padded[:, :, i * sh : i * sh + h, j * sw : j * sw + w]
    return tiles


def cover_counts(size: tuple[int, int], tile_size: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """[H, W]: how many tiles cover each pixel, counted one by one."""
    counts = np.zeros(size)
    rows, cols = tile_counts(size, tile_size, stride)
    for i in range(rows):
        for j in range(cols):
            y, x = i * stride[0], j * stride[1]
            counts[y : y + tile_size[0], x : x + tile_size[1]] += 1
    return counts


def untile(tiles: np.ndarray, image_size: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """[rows, cols, B, C, h, w] -> float64 [B, C, H, W]: the mean over the covering tiles."""
    rows, cols, batch, channels, h, w = tiles.shape
    total = np.zeros((batch, channels, (rows - 1) * stride[0] + h, (cols - 1) * stride[1] + w))
    for i in range(rows):
        for j in range(cols):
            y, x = i * stride[0], j * stride[1]
            total[:, :, y : y + h, x : x + w] += tiles[i, j].astype(np.float64)
    return total[:, :, : image_size[0], : image_size[1]] / cover_counts(image_size, (h, w), stride)


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
    size: tuple[int, int], tile_size: tuple[int, int], stride: tuple[int, int], width: float
) -> np.ndarray:
    """[H, W]: the pixels within int(width * tile) of a start or end of a tile inside the image."""
    mask = np.zeros(size, dtype=bool)
    counts = tile_counts(size, tile_size, stride)
    for axis in (0, 1):
        r = int(width * tile_size[axis])
        lines = np.moveaxis(mask, axis, 0)
        for i in range(counts[axis]):
            for edge in (i * stride[axis], i * stride[axis] + tile_size[axis]):
                if 0 < edge < size[axis]:
                    lines[max(edge - r, 0) : edge + r] = True
    return mask


def smooth_seams(
    maps: np.ndarray,
    tile_size: tuple[int, int],
    stride: tuple[int, int],
    sigma: float = 2.0,
    width: float = 0.1,
) -> np.ndarray:
    """[..., H, W] -> float64, same shape: blurred where seam_mask says so."""
    mask = seam_mask((maps.shape[-2], maps.shape[-1]), tile_size, stride, width)
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
