"""Overlapping tiles of images: cut, put together, hide the seams.

The geometry is that of the tiled ensemble (Rolih et al., "Divide and Conquer: High-Resolution Industrial
Anomaly Detection via Memory Efficient Tiled Ensemble", arXiv 2403.04932). Tile `(i, j)` of size `h x w`
starts at `(i * stride_h, j * stride_w)`; there are `ceil((H - h) / stride_h) + 1` rows of tiles, columns
alike. Where the last row or column of tiles overhangs the image, `edge` decides:

- `"pad"`: the tiles hold zeros there (padding at the bottom and on the right), which `untile` crops away.
- `"flush"`: the tiles are moved in until they lie flush with the image: row `i` starts at
  `min(i * stride_h, H - h)`, columns alike. Nothing is padded.
"""

from __future__ import annotations

import operator
from numbers import Real
from typing import Literal

import numpy as np

from ensemblead import _core
from ensemblead.kernels.arrays import Array, Framework, framework_of, no_scratch, work_arguments

Edge = Literal["pad", "flush"]

# Of `smooth_seams`: the Gaussian's deviation in pixels, and half the width of a band as a share of a tile.
SEAM_SIGMA, SEAM_WIDTH = 2.0, 0.1
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def tile_grid(
    image_size: int | tuple[int, int],
    tile_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Rows and columns of the tiles that `tile` cuts an image of this size into; errors as `tile`, and
    ValueError for an `image_size` below 1.
    """
    size = _pair(tile_size, "tile_size")
    step = size if stride is None else _pair(stride, "stride")
    rows, cols = _core.tile_grid(_image_size(image_size, size), size, step)
    return rows, cols


def tile(
    images: Array,
    tile_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    edge: Edge = "pad",
) -> Array:
    """Cuts images into overlapping tiles.

    Args:
        images: `[B, C, H, W]`, contiguous; uint8, float16, bfloat16, float32 or float64.
        tile_size: `h` for square tiles, or `(h, w)`; no larger than the image.
        stride: distance between the starts of neighbouring tiles, an int or `(rows, columns)`; at most
            `tile_size`, which is also the default (no overlap).
        edge: `"pad"` or `"flush"`: whether tiles that would overhang the image are padded or moved in.

    Returns:
        `[rows, cols, B, C, h, w]`, dtype, framework and device of `images`; the same shape for both edges.
        Values are copied as they are, NaN included; pixels outside the image are 0.

    Raises:
        TypeError: `images` is no NumPy, CuPy or torch array or has another dtype; a size is no int; `edge` is
            no string.
        ValueError: wrong rank, an empty or non-contiguous array, a stride beyond the tile or below 1, a tile
            beyond the image, another `edge`.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> ead.tile(np.zeros((1, 3, 512, 512), np.uint8), 256, 128).shape
        (3, 3, 1, 3, 256, 256)
    """
    framework = framework_of(images, "images")
    _check(images, "images", framework, "[B, C, H, W]", ("uint8", *_FLOATS))
    batch, channels, height, width = images.shape
    size = _pair(tile_size, "tile_size")
    step = size if stride is None else _pair(stride, "stride")
    rows, cols = _core.tile_grid((height, width), size, step)
    with framework.on_device(images):
        tiles = framework.empty((rows, cols, batch, channels, *size), framework.dtype(images), images)
        _core.tile(
            images, tiles, size, step, edge=_edge(edge), **work_arguments(framework, images, no_scratch)
        )
    return tiles


def untile(
    tiles: Array,
    image_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    edge: Edge = "pad",
) -> Array:
    """Puts tiles back together; every pixel is the mean over the tiles that cover it.

    Sums are made pairwise in float32 (in float64 for float64), so `untile(tile(images, t, s), (H, W), s)`
    gives back `images` exactly wherever the number of covering tiles is a power of two, and elsewhere within
    `1e-6 * max|images|` (float32). NaN and infinity propagate into the pixels they cover. The mean of finite
    values is finite, however large they are.

    Args:
        tiles: `[rows, cols, B, C, h, w]` as `tile` returns them, contiguous; float16, bfloat16, float32 or
            float64.
        image_size: the size of the images before tiling, `(H, W)`, or one int for square images.
        stride: the stride they were cut with; default the tile size.
        edge: the edge they were cut with, `"pad"` or `"flush"`.

    Returns:
        `[B, C, H, W]`, dtype, framework and device of `tiles`. The padding is cropped away.

    Raises:
        TypeError: `tiles` is no NumPy, CuPy or torch array or has another dtype; a size is no int; `edge` is
            no string.
        ValueError: wrong rank, an empty or non-contiguous array, a stride beyond the tile or below 1, a tile
            beyond the image, an `image_size` below 1, another `edge`, or numbers of rows and columns that do
            not belong to these sizes.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> maps = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
        >>> bool((ead.untile(ead.tile(maps, 2), 4) == maps).all())
        True
    """
    framework = framework_of(tiles, "tiles")
    _check(tiles, "tiles", framework, "[rows, cols, B, C, h, w]", _FLOATS)
    rows, cols, batch, channels, height, width = tiles.shape
    size = _image_size(image_size, (height, width))
    step = (height, width) if stride is None else _pair(stride, "stride")
    expected = _core.tile_grid(size, (height, width), step)
    if (rows, cols) != expected:
        raise ValueError(
            f"tiles must be {expected[0]} rows x {expected[1]} columns of {height} x {width} for image_size "
            f"{size} and stride {step}, got {rows} x {cols} (shape {tuple(tiles.shape)})"
        )
    with framework.on_device(tiles):
        images = framework.empty((batch, channels, *size), framework.dtype(tiles), tiles)
        _core.untile(tiles, images, step, edge=_edge(edge), **work_arguments(framework, tiles, no_scratch))
    return images


def smooth_seams(
    maps: Array,
    tile_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    *,
    sigma: float = SEAM_SIGMA,
    width: float = SEAM_WIDTH,
    edge: Edge = "pad",
) -> Array:
    """Blurs maps around the edges of the tiles they were put together from, and nowhere else.

    The rows and columns in `[edge - r, edge + r)`, `r = int(width * tile)` per axis, for every start and end
    of a tile inside the map (never its border), are taken from the Gaussian blur of the whole map, as
    `scipy.ndimage.gaussian_filter(map, sigma, mode="reflect", truncate=4)` defines it, computed in float32
    (in float64 for float64). All other pixels are copied. NaN and infinity spread as far as the blur reaches,
    inside these bands.

    Args:
        maps: `[..., H, W]`, contiguous; float16, bfloat16, float32 or float64. Leading axes are maps of their
            own.
        tile_size: the tile size the maps were computed with, an int or `(h, w)`.
        stride: the stride they were computed with; default the tile size.
        sigma: of the Gaussian, in pixels; in (0, 1000].
        width: half the width of a band as a share of the tile; in [0, 0.5].
        edge: the edge the tiles were cut with, `"pad"` or `"flush"`. With the latter the last row and column
            start elsewhere, and so do their seams.

    Returns:
        Shape, dtype, framework and device of `maps`.

    Raises:
        TypeError: `maps` is no NumPy, CuPy or torch array or has another dtype; a size is no int; `sigma` or
            `width` is no number; `edge` is no string.
        ValueError: wrong rank, an empty or non-contiguous array, a stride beyond the tile or below 1, a tile
            beyond the map, `sigma` or `width` out of range, another `edge`.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> maps = np.zeros((1, 64, 64), np.float32)
        >>> maps[:, :, 32:] = 1
        >>> smooth = ead.smooth_seams(maps, 32)  # the seam between two tiles lies at column 32
        >>> smooth[0, 16, 0].item(), 0 < smooth[0, 16, 31].item() < 1
        (0.0, True)
    """
    framework = framework_of(maps, "maps")
    _check(maps, "maps", framework, "[..., H, W]", _FLOATS)
    size = _pair(tile_size, "tile_size")
    step = size if stride is None else _pair(stride, "stride")
    numbers = _real(sigma, "sigma"), _real(width, "width")

    def scratch_bytes() -> int:
        return _core.smooth_seams_scratch(tuple(maps.shape), framework.dtype(maps), numbers[0])

    with framework.on_device(maps):
        smoothed = framework.empty(maps.shape, framework.dtype(maps), maps)
        work = work_arguments(framework, maps, scratch_bytes)
        _core.smooth_seams(maps, smoothed, size, step, *numbers, edge=_edge(edge), **work)
    return smoothed


def _check(array: Array, argument: str, framework: Framework, layout: str, dtypes: tuple[str, ...]) -> None:
    """Checks that an output can be allocated; the core checks the rest."""
    rank = layout.count(",") + 1
    any_rank = layout.startswith("[...")
    if array.ndim < 2 if any_rank else array.ndim != rank:
        kind = "" if any_rank else f"{rank}-D "
        raise ValueError(f"{argument} must be {kind}{layout}, got shape {tuple(array.shape)}")
    dtype = framework.dtype(array)
    if dtype not in dtypes:
        raise TypeError(f"{argument} must be {', '.join(dtypes[:-1])} or {dtypes[-1]}, got {dtype}")
    if 0 in array.shape:
        raise ValueError(f"{argument} is empty, got shape {tuple(array.shape)}")


def _edge(edge: str) -> str:
    """The core knows which edges there are."""
    if not isinstance(edge, str):
        raise TypeError(f'edge must be "pad" or "flush", got {edge!r}')
    return edge


def _image_size(value: int | tuple[int, int], tile_size: tuple[int, int]) -> tuple[int, int]:
    """As `_pair`, at least 1; of two sizes below 1 that of the tiles is told first, by the core."""
    size = _pair(value, "image_size")
    if min(size) < 1 <= min(tile_size):
        raise ValueError(f"image_size must be at least 1, got {value!r}")
    return size


def _pair(value: int | tuple[int, int], argument: str) -> tuple[int, int]:
    """`(h, w)` of an int or a pair of ints."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{argument} must be an int or a pair (h, w), got {value!r}")
    return _int(pair[0], argument, value), _int(pair[1], argument, value)


def _int(number: object, argument: str, value: object) -> int:
    if isinstance(number, (bool, np.bool_)) or not hasattr(number, "__index__"):
        raise TypeError(f"{argument} must be an int or a pair (h, w) of ints, got {value!r}")
    result = operator.index(number)
    if abs(result) >= 2**31:
        raise ValueError(f"{argument} must be below 2**31, got {value!r}")
    return result


def _real(value: object, argument: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    return float(value)
