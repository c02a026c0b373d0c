"""The CUDA twin of aggregate_patches, emulated, against the explicit pipeline in float64."""

from __future__ import annotations

import numpy as np
import pytest
from support import emulated, reference
from support.emulated import DeviceArray
from support.emulated_kernels import (
    STREAM,
    aggregate,
    feature_map,
)

from ensemblead import _core


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def check(maps, patch_size=3, pretrain_dim=1024, target_dim=1024, mode="adaptive", *, offset=0):
    dims = [pretrain_dim] * len(maps) if isinstance(pretrain_dim, int) else list(pretrain_dim)
    stored = [m.numpy() for m in maps]
    expected = reference.aggregate_patches(stored, patch_size, dims, target_dim, mode)
    result = aggregate(maps, patch_size, dims, target_dim, mode, offset=offset)
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    largest = max(float(np.abs(values).max()) for values in stored)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * largest)


# (shapes [B, C, H, W], patch_size, pretrain_dim, target_dim): one layer and several; grids smaller, equal
# and larger than the first; bins of many taps, of parts of taps, that straddle layers; several blocks.
CASES = [
    ([(2, 6, 5, 7)], 3, 8, 8),
    ([(1, 16, 8, 8), (1, 32, 4, 4)], 3, 32, 40),
    ([(2, 24, 9, 14), (2, 40, 5, 7), (2, 12, 9, 14)], 3, (70, 33, 50), 100),
    ([(1, 8, 6, 6), (1, 8, 12, 13)], 3, 16, 7),
    ([(1, 70, 7, 40), (1, 9, 3, 3)], 1, 70, 64),
    ([(1, 5, 12, 12), (1, 3, 1, 1)], 5, 6, 20),
    ([(3, 4, 1, 1), (3, 4, 2, 2)], 3, 3, 1),
    ([(1, 300, 4, 33)], 3, 40, 16),
    ([(1, 20, 6, 6), (1, 10, 3, 3)], 3, 1024, 1024),
    ([(1, 3, 4, 5), (1, 3, 4, 5), (1, 3, 2, 3)], 3, (1, 2, 1), 3),
]
cases = pytest.mark.parametrize(("shapes", "patch_size", "pretrain_dim", "target_dim"), CASES)


@pytest.mark.parametrize("channels_last", [False, True])
@cases
def test_adaptive(order, shapes, patch_size, pretrain_dim, target_dim, channels_last):
    maps = [feature_map(normal(s, n), channels_last=channels_last) for n, s in enumerate(shapes)]
    check(maps, patch_size, pretrain_dim, target_dim)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
@cases
def test_sixteen_bits(shapes, patch_size, pretrain_dim, target_dim, channels_last, dtype):
    maps = [feature_map(normal(s, n), dtype, channels_last=channels_last) for n, s in enumerate(shapes)]
    check(maps, patch_size, pretrain_dim, target_dim)


@pytest.mark.parametrize("channels_last", [False, True])
@cases
def test_concat(shapes, patch_size, pretrain_dim, target_dim, channels_last):
    emulated.set_order(1)
    maps = [feature_map(normal(s, n), channels_last=channels_last) for n, s in enumerate(shapes)]
    check(maps, patch_size, pretrain_dim, target_dim, "concat")


@pytest.mark.parametrize("width", [28, 14, 7, 9])
@pytest.mark.parametrize("channels_last", [False, True])
def test_widths_of_real_networks(order, width, channels_last):
    """Rows of whole words, of halves, and of single values; a layer of half the width beside it."""
    half = (width + 1) // 2
    maps = [
        feature_map(normal((1, 24, width, width), 1), "float16", channels_last=channels_last),
        feature_map(normal((1, 48, half, half), 2), "float16", channels_last=channels_last),
    ]
    check(maps, 3, 48, 48)


@pytest.mark.parametrize("patch_size", [1, 3, 5, 9, 15, 31, 61])
@pytest.mark.parametrize("channels_last", [False, True])
def test_windows(patch_size, channels_last):
    """Beyond the grid and, the last ones, beyond shared memory."""
    maps = [feature_map(normal((1, 3, 8, 35)), channels_last=channels_last)]
    check(maps, patch_size, 4, 3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize(("pretrain_dim", "target_dim"), [(256, 64), (100, 90), (250, 40)])
def test_dimensions_of_several_channels(order, patch_size, pretrain_dim, target_dim, channels_last):
    """More channels to 32 dimensions than fit shared memory, more images than a grid is high, two layers."""
    maps = [
        feature_map(normal((4, 256, 9, 30), 1), "float16", channels_last=channels_last),
        feature_map(normal((4, 200, 4, 15), 2), "float16", channels_last=channels_last),
    ]
    check(maps, patch_size, pretrain_dim, target_dim)


def test_counts_beyond_fast_division():
    """217 * 217 taps times 46341 bins exceed 2^31."""
    check([feature_map(normal((1, 1, 2, 3), 3))], 217, 46341, 6)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("offset", [1, 2, 4])
def test_addresses_that_suit_no_word(offset, dtype, channels_last):
    maps = [
        feature_map(normal((1, 16, 8, 8)), dtype, channels_last=channels_last, offset=offset),
        feature_map(normal((1, 16, 4, 4)), dtype, channels_last=channels_last, offset=offset),
    ]
    check(maps, 3, 16, 32, offset=offset)


def test_the_worked_cases():
    """C = 512: channel j under a window, 0.2 in the centre, 0.1 around; C = 1024: means of pairs of boxes."""
    values = normal((1, 1024, 6, 6), 9)
    maps = [feature_map(values[:, :512]), feature_map(values)]
    result = aggregate(maps)
    boxes = reference.unfold(values, 3)
    box = boxes.sum(axis=(2, 3))
    first = 0.1 * (box + values)[:, :512]
    second = box.reshape(1, 512, 2, 6, 6).sum(axis=2) / 18
    expected = np.moveaxis(np.concatenate([first, second], axis=1), 1, -1)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * float(np.abs(values).max()))


def test_nan_and_inf_stay_where_they_reach():
    values = np.ones((1, 4, 9, 9), np.float32)
    values[0, 2, 4, 4] = np.inf
    values[0, 1, 0, 8] = np.nan
    result = aggregate([feature_map(values)], 3, 4, 4)
    infinite = np.zeros((9, 9), bool)
    infinite[3:6, 3:6] = True
    missing = np.zeros((9, 9), bool)
    missing[:2, 7:] = True
    np.testing.assert_array_equal(np.isposinf(result[0, :, :, 2]), infinite)
    np.testing.assert_array_equal(np.isnan(result[0, :, :, 1]), missing)
    assert np.isfinite(result[0, :, :, [0, 3]]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("pretrain_dim", "target_dim"), [(16, 16), (11, 11), (40, 13), (5, 3)])
def test_parts_of_windows_take_no_more_than_their_part(value, pretrain_dim, target_dim):
    one = np.zeros((1, 8, 7, 9), np.float32)
    one[0, 3, 2, 4] = 1.0
    reached = reference.aggregate_patches([one], 3, [pretrain_dim], target_dim, "adaptive") > 0
    result = aggregate([feature_map(np.where(one > 0, value, 1.0))], 3, pretrain_dim, target_dim)
    np.testing.assert_array_equal(~np.isfinite(result), reached)


def test_long_sums_are_accurate():
    values = np.abs(normal((1, 2048, 3, 3))) + 1.0
    check([feature_map(values)], 3, 1, 1)


def test_more_images_than_a_grid_is_high(order):
    """Under emulation a grid is 3 blocks high."""
    check([feature_map(normal((8, 4, 5, 5), 1)), feature_map(normal((8, 4, 2, 2), 2))], 3, 6, 8)


# --- streams, graphs, refusals --------------------------------------------------------------------


def test_work_goes_to_the_stream_and_device_of_the_maps():
    maps = [feature_map(normal((1, 8, 8, 8)), device=1), feature_map(normal((1, 8, 4, 4)), device=1)]
    emulated.set_capturing(True)  # all of it can be part of a graph
    check(maps, 3, 8, 8)
    assert [(work.what, work.device, work.stream) for work in emulated.log()] == [("kernel", 1, STREAM)] * 3
    assert emulated.current_device() == 0


def test_scratch_is_what_other_grids_are_pooled_to():
    shapes = [(2, 512, 28, 28), (2, 1024, 14, 14), (2, 64, 28, 28), (2, 16, 7, 7)]
    assert _core.aggregate_patches_scratch(shapes[:1], 3, [1024], 1024, "adaptive") == 0
    assert (
        _core.aggregate_patches_scratch(shapes[:2], 3, [1024, 1024], 1024, "adaptive")
        == 2 * 14 * 14 * 512 * 4
    )
    assert _core.aggregate_patches_scratch(shapes, 3, [1] * 4, 1, "concat") == 2 * 14 * 14 * 1024 * 4


def test_scratch_is_checked():
    maps = [feature_map(normal((1, 8, 8, 8))), feature_map(normal((1, 8, 4, 4)))]
    output = DeviceArray.empty((1, 8, 8, 8), "float32")
    with pytest.raises(ValueError, match="scratch must have 256 bytes, got None"):
        _core.aggregate_patches(maps, output, 3, [8, 8], 8, "adaptive")
    scratch = DeviceArray.empty((255,), "uint8")
    with pytest.raises(ValueError, match="scratch must have 256 bytes, got 255"):
        _core.aggregate_patches(maps, output, 3, [8, 8], 8, "adaptive", scratch=scratch)


def test_empty_maps_are_refused():
    output = DeviceArray.empty((0, 2, 2, 4), "float32")
    with pytest.raises(ValueError, match=r"feature_maps\[0\] is empty, got shape \(0, 3, 2, 2\)"):
        _core.aggregate_patches(
            [DeviceArray(np.zeros((0, 3, 2, 2)), "float32")], output, 3, [4], 4, "adaptive"
        )
