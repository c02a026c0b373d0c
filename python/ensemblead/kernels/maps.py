"""From a grid of patch distances to an anomaly map in the image's frame.

Bilinear resizing (`align_corners=False`) and the Gaussian are linear and act on rows and columns apart, so
both are one small matrix per axis: `map = A_h @ grid @ A_w^T`. That is exact, runs as two matrix products on
any device, and costs about as much as the grid is small.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.precision import exact_products
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.object_cells import ObjectCells

SIGMA = 4.0
# How a grid becomes a map, see `render_maps`.
MapKind = Literal["bilinear", "reflect", "nearest"]
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)
_TRUNCATE = 4.0


def render_maps(
    grids: torch.Tensor, size: tuple[int, int], *, sigma: float = SIGMA, kind: MapKind = "bilinear"
) -> torch.Tensor:
    """Upsample and blur: float `[B, h, w]` -> float32 `[B, H, W]`, on the device of `grids`.

    Bilinear with `align_corners=False`, then a Gaussian as `scipy.ndimage.gaussian_filter(map, sigma)` has it
    (edge pixel repeated on reflection, cut off at 4 sigma). `sigma=0` leaves the blur out. The values keep
    their unit.

    `kind="reflect"` does not repeat the edge pixel, and "nearest" upsamples without interpolation besides: so
    anomalib makes the maps of PaDiM and of PatchCore. Maps must then have more pixels on a side than the blur
    reaches, 4 sigma.
    """
    if grids.ndim != 3:
        raise ValueError(f"grids must be [B, h, w], got shape {tuple(grids.shape)}")
    height, width = (int(side) for side in grids.shape[1:])  # plain numbers while a tracer looks on, too
    if min(size) < 1 or 0 in (height, width):
        raise ValueError(f"cannot turn grids of {(height, width)} into maps of {size}")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be finite and not negative, got {sigma}")
    if kind != "bilinear" and min(size) <= _radius(sigma):
        least = _radius(sigma) + 1
        raise ValueError(f"maps of {size} are too small: kind={kind!r} needs sides of {least} at least")
    rows = _operator(height, size[0], sigma, kind, grids.device)
    columns = _operator(width, size[1], sigma, kind, grids.device)
    with exact_products():
        return torch.matmul(torch.matmul(rows, grids.float()), columns.T)


def render_inside(
    grids: torch.Tensor,
    size: tuple[int, int],
    inside: Inside | ObjectCells | None,
    *,
    sigma: float = SIGMA,
    kind: MapKind = "bilinear",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest values `[B]` of maps, and the maps `[B, H, W]`, as `render_maps` makes them of a region, or
    of the objects in images.

    What lies outside takes the nearest value inside before it is blurred, so that it moves nothing; it is
    zero afterwards.
    """
    if inside is None:
        maps = render_maps(grids, size, sigma=sigma, kind=kind)
        return maps.flatten(1).amax(1), maps
    maps = render_maps(inside.spread(grids), size, sigma=sigma, kind=kind)
    return inside.largest(maps), inside.blank(maps)


def resize_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resizing (`align_corners=False`) of `[B, h, w]`; maps of that size already are returned as
    they are.
    """
    return maps if tuple(map(int, maps.shape[1:])) == tuple(size) else render_maps(maps, size, sigma=0.0)


@lru_cache(maxsize=32)
def _operator(source: int, target: int, sigma: float, kind: MapKind, device: torch.device) -> torch.Tensor:
    """float32 `[target, source]`: upsampling, then blur."""
    if kind == "nearest":
        # In float32, as torch rounds it.
        places = np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target))
        matrix = np.eye(source)[np.minimum(places.astype(np.int64), source - 1)]
    else:
        matrix = _resize_matrix(source, target)
    if sigma > 0:
        matrix = _blur_rows(matrix, sigma, repeats_edge=kind == "bilinear")
    return torch.from_numpy(matrix.astype(np.float32)).to(device)


def _resize_matrix(source: int, target: int) -> npt.NDArray[np.float64]:
    centres = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(centres.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    weight = centres - low
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(matrix, (rows, low), 1.0 - weight)
    np.add.at(matrix, (rows, high), weight)
    return matrix


def _radius(sigma: float) -> int:
    """How many pixels the blur reaches."""
    return int(_TRUNCATE * sigma + 0.5)


def _blur_rows(
    matrix: npt.NDArray[np.float64], sigma: float, *, repeats_edge: bool = True
) -> npt.NDArray[np.float64]:
    """The Gaussian along the first axis, tap by tap: no `[target, target]` matrix, however large the map."""
    radius = _radius(sigma)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    length = len(matrix)
    blurred = np.zeros_like(matrix)
    for offset, tap in zip(range(-radius, radius + 1), taps, strict=True):
        # d c b a | a b c d | d c b a: reflection about the pixels' outer edges, repeated where the map is
        # short.
        place = (np.arange(length) + offset) % (2 * length)
        if repeats_edge:
            place = np.minimum(place, 2 * length - 1 - place)
        else:  # d c b | a b c d | c b a
            place = np.abs(np.arange(length) + offset)
            place = np.minimum(place, 2 * (length - 1) - place)
        blurred += tap * matrix[place]
    return blurred
