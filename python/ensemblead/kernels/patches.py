"""Patch aggregation: the feature maps of several layers to one row of features per position."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

from ensemblead import _core
from ensemblead.kernels.arrays import Array, Framework, framework_of, work_arguments

# With pretrain_dim="auto" a layer of fewer channels keeps their number, any other is pooled to 1024.
_FEW_CHANNELS = 512
_REFERENCE_DIM = 1024

Mode = Literal["adaptive", "concat"]


def aggregate_patches(
    feature_maps: Sequence[Array],
    *,
    patch_size: int = 3,
    pretrain_dim: int | Sequence[int] | Literal["auto"] = 1024,
    target_dim: int = 1024,
    mode: Mode = "adaptive",
) -> Array:
    """Aggregate each position's neighbourhood over all layers into one row of features.

    ``mode="adaptive"`` is the published PatchCore (Roth et al., *Towards Total Recall in Industrial Anomaly
    Detection*, CVPR 2022, and its reference implementation): unfold every layer into windows of `patch_size`
    x `patch_size` (stride 1, zero padding), resize the grids of the later layers to the first one's
    (bilinear, `align_corners=False`), pool each layer's flattened (channel, ky, kx) values to `pretrain_dim`
    and the concatenated layers to `target_dim` (adaptive averages). ``mode="concat"`` averages the window
    (padding counted), resizes, and concatenates the channels of all layers; `pretrain_dim` and `target_dim`
    have no effect on it.

    Nothing is unfolded: each layer is pooled at its own resolution and the small result is resized last. The
    result is that of the steps above up to float32 rounding, at most 1e-5 of the largest absolute feature,
    and does not depend on the number of threads.

    Args:
        feature_maps: one map ``[B, C_l, H_l, W_l]`` per layer; float32, float16 or bfloat16, all of one
            dtype, framework and device; contiguous, or channels-last in memory (``[B, H_l, W_l, C_l]`` seen
            as ``[B, C_l, H_l, W_l]``). The first one's grid is the result's; the others may be smaller or
            larger. Sums are float32 for every dtype. NaN and inf are not looked for: they spread to every
            position whose window, or whose neighbours' windows in the resize, hold them.
        patch_size: width of the window in positions of each layer's own grid; odd.
        pretrain_dim: dimensions that each layer is pooled to, more or fewer than it has: one for all, one
            per layer, or ``"auto"``: a layer of fewer than 512 channels to its own channel count, any other
            to 1024, and `target_dim` at most their sum (1024 values of few channels leave the averaging out).
        target_dim: dimensions of the result.
        mode: ``"adaptive"`` or ``"concat"``.

    Returns:
        ``[B, H_0, W_0, D]`` float32 in the framework and on the device of the maps. `D` is `target_dim`
        (with ``"auto"`` at most the layers' sum), or the sum of all channels in mode ``"concat"``.

    Raises:
        ValueError: no maps, a map that is not 4-D, empty or not contiguous, batch sizes or devices that
            differ, an even `patch_size`, a dimension below 1, a `pretrain_dim` that is not one per layer, an
            unknown `mode`.
        TypeError: something that is no array, maps of several frameworks, a dtype other than those above,
            dtypes that differ, a number that is not an integer.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> layers = [np.ones((2, 8, 28, 28), np.float32), np.ones((2, 16, 14, 14), np.float32)]
        >>> ead.aggregate_patches(layers, pretrain_dim="auto").shape
        (2, 28, 28, 24)
    """
    framework = _check_maps(feature_maps)
    patch_size = _integer(patch_size, "patch_size")
    channels = [int(feature_map.shape[1]) for feature_map in feature_maps]
    pretrain_dims, target_dim = pooled_dims(pretrain_dim, target_dim, channels)
    if not isinstance(mode, str):
        raise TypeError(f"mode must be 'adaptive' or 'concat', got {type(mode).__name__}")
    dim = _core.patch_dim(channels, patch_size, pretrain_dims, target_dim, mode)
    first = feature_maps[0]
    batch, _, height, width = first.shape

    def scratch_bytes() -> int:
        shapes = [tuple(feature_map.shape) for feature_map in feature_maps]
        return _core.aggregate_patches_scratch(shapes, patch_size, pretrain_dims, target_dim, mode)

    with framework.on_device(first):
        output = framework.empty((batch, height, width, dim), "float32", first)
        work = work_arguments(framework, first, scratch_bytes)
        _core.aggregate_patches(
            list(feature_maps), output, patch_size, pretrain_dims, target_dim, mode, **work
        )
    return output


def _check_maps(feature_maps: Sequence[Array]) -> Framework:
    """The one framework of all maps, which are 4-D. The core checks everything else."""
    if not isinstance(feature_maps, (list, tuple)):
        raise TypeError(
            f"feature_maps must be a list of arrays, one per layer, got {type(feature_maps).__name__}"
        )
    if not feature_maps:
        raise ValueError("feature_maps is empty; pass one map per layer")
    framework = framework_of(feature_maps[0], "feature_maps[0]")
    for index, feature_map in enumerate(feature_maps):
        other = framework_of(feature_map, f"feature_maps[{index}]")
        if other is not framework:
            raise TypeError(
                f"feature_maps[{index}] is a {other.name} array but feature_maps[0] a {framework.name} "
                "array; give all layers one framework"
            )
        if feature_map.ndim != 4:
            raise ValueError(
                f"feature_maps[{index}] must be 4-D [B, C, H, W], got shape {tuple(feature_map.shape)}"
            )
    return framework


def pooled_dims(
    pretrain_dim: int | Sequence[int] | Literal["auto"], target_dim: int, channels: Sequence[int]
) -> tuple[list[int], int]:
    """`pretrain_dim` per layer, and `target_dim` as far as "auto" bounds it."""
    target_dim = _integer(target_dim, "target_dim")
    if isinstance(pretrain_dim, str):
        if pretrain_dim != "auto":
            raise ValueError(
                f"pretrain_dim must be an integer, one per layer, or 'auto', got {pretrain_dim!r}"
            )
        dims = [count if count < _FEW_CHANNELS else _REFERENCE_DIM for count in channels]
        return dims, min(target_dim, sum(dims))
    if isinstance(pretrain_dim, (list, tuple)):
        return [_integer(dim, "pretrain_dim") for dim in pretrain_dim], target_dim
    return [_integer(pretrain_dim, "pretrain_dim")] * len(channels), target_dim


def _integer(value: object, argument: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{argument} must be an integer, got bool")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{argument} must be an integer, got {type(value).__name__}") from None
