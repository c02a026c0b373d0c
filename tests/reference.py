"""Every operation once more, naively: NumPy in float64, written from the definitions."""

from __future__ import annotations

import math

import numpy as np

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
