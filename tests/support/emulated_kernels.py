"""Kernels as kernels/*.py call them, on arrays that claim to be on a device."""

from __future__ import annotations

import numpy as np
from support.emulated import DeviceArray

from ensemblead import _core

# A stream that is none, which the log of launches shows.
STREAM = 77

FLOATS = ["float16", "bfloat16", "float32", "float64"]

ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}

SUMMING = {"float16": 1e-6, "bfloat16": 1e-6, "float32": 1e-6, "float64": 1e-14}


def tolerance(dtype, values):
    return float((ROUNDING[dtype] + SUMMING[dtype]) * np.abs(values.astype(np.float64)).max())


def smooth_seams(maps, tile_size, stride, sigma=2.0, width=0.1, *, offset=0, edge="pad"):
    shape = maps.values.shape
    smoothed = DeviceArray.empty(shape, maps.dtype, device=maps.device, offset=offset)
    needed = _core.smooth_seams_scratch(shape, maps.dtype, sigma)
    scratch = DeviceArray.empty((needed,), "uint8", device=maps.device) if needed else None
    options = {"edge": edge, "stream": STREAM, "scratch": scratch}
    _core.smooth_seams(maps, smoothed, tile_size, stride, sigma, width, **options)
    if scratch is not None:
        scratch.numpy()
    return smoothed


def feature_map(values, dtype="float32", *, channels_last=False, device=0, offset=0):
    """[B, C, H, W] as the kernels get it, in either layout."""
    if not channels_last:
        return DeviceArray(values, dtype, device=device, offset=offset)
    stored = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
    return DeviceArray(stored, dtype, device=device, offset=offset).permuted(0, 3, 1, 2)


def aggregate(maps, patch_size=3, pretrain_dim=1024, target_dim=1024, mode="adaptive", *, offset=0):
    """What kernels/patches.py does with arrays of a framework."""
    dims = [pretrain_dim] * len(maps) if isinstance(pretrain_dim, int) else list(pretrain_dim)
    shapes = [m.values.shape for m in maps]
    dim = _core.patch_dim([shape[1] for shape in shapes], patch_size, dims, target_dim, mode)
    batch, _, height, width = shapes[0]
    device = maps[0].device
    output = DeviceArray.empty((batch, height, width, dim), "float32", device=device, offset=offset)
    needed = _core.aggregate_patches_scratch(shapes, patch_size, dims, target_dim, mode)
    scratch = DeviceArray.empty((needed,), "uint8", device=device) if needed else None
    _core.aggregate_patches(maps, output, patch_size, dims, target_dim, mode, stream=STREAM, scratch=scratch)
    if scratch is not None:
        scratch.numpy()
    return output.numpy()
