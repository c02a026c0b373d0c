"""The CUDA twins of tile, untile and smooth_seams, emulated, against the naive reference."""

from __future__ import annotations

import numpy as np
import pytest
from support import emulated, reference
from support.emulated import DeviceArray
from support.emulated_kernels import (
    FLOATS,
    ROUNDING,
    STREAM,
    SUMMING,
    smooth_seams,
    tolerance,
)

from ensemblead import _core

# (image size, tile size, stride): words of 16 bytes and of fewer, few and many covering tiles, overhang, one
# tile, more pixels than one block makes.
GEOMETRIES = [
    ((64, 64), (32, 32), (16, 16)),
    ((70, 200), (40, 104), (24, 48)),
    ((50, 90), (20, 30), (15, 10)),
    ((33, 77), (33, 30), (33, 9)),
    ((24, 24), (12, 12), (1, 1)),
    ((31, 31), (31, 31), (31, 31)),
    ((30, 32), (30, 32), (7, 5)),
    ((1, 200), (1, 64), (1, 5)),
    ((90, 1), (16, 1), (3, 1)),
]
geometry_cases = pytest.mark.parametrize(("size", "tile_size", "stride"), GEOMETRIES)
EDGES = ["pad", "flush"]
edge_cases = pytest.mark.parametrize("edge", EDGES)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def whole_numbers(shape, seed=0):
    """Whole numbers below 256, which every dtype holds exactly."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float64)


def tile(images, tile_size, stride, *, offset=0, edge="pad"):
    batch, channels, *size = images.values.shape
    rows, cols = _core.tile_grid(tuple(size), tile_size, stride)
    shape = (rows, cols, batch, channels, *tile_size)
    tiles = DeviceArray.empty(shape, images.dtype, device=images.device, offset=offset)
    _core.tile(images, tiles, tile_size, stride, edge=edge, stream=STREAM)
    return tiles


def untile(tiles, size, stride, *, offset=0, edge="pad"):
    shape = (*tiles.values.shape[2:4], *size)
    images = DeviceArray.empty(shape, tiles.dtype, device=tiles.device, offset=offset)
    _core.untile(tiles, images, stride, edge=edge, stream=STREAM)
    return images


# --- tile -----------------------------------------------------------------------------------------


@edge_cases
@geometry_cases
def test_tile(order, size, tile_size, stride, edge):
    for dtype in ("uint8", *FLOATS):
        images = DeviceArray(whole_numbers((2, 3, *size)), dtype)
        tiles = tile(images, tile_size, stride, edge=edge).numpy()
        np.testing.assert_array_equal(tiles, reference.tile(images.numpy(), tile_size, stride, edge))


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_tile_of_addresses_that_suit_no_word(dtype, offset):
    values = whole_numbers((1, 2, 48, 64))
    images = DeviceArray(values, dtype, offset=offset)
    expected = reference.tile(images.numpy(), (32, 32), (16, 16))
    for out in (0, offset):
        tiles = tile(images, (32, 32), (16, 16), offset=out)
        np.testing.assert_array_equal(tiles.numpy(), expected)


def test_tile_copies_every_bit_and_pads_with_zeros():
    images = DeviceArray(np.array([[[[np.nan, np.inf, -0.0], [1.0, -np.inf, 5e-324], [2.0, 3.0, 4.0]]]]))
    padded = np.zeros((4, 4))
    padded[:3, :3] = images.numpy()[0, 0]
    expected = np.ascontiguousarray(padded.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3)[:, :, None, None])
    np.testing.assert_array_equal(
        tile(images, (2, 2), (2, 2)).numpy().view(np.uint64), expected.view(np.uint64)
    )


# --- untile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@edge_cases
@geometry_cases
def test_untile(order, size, tile_size, stride, edge, dtype):
    rows, cols = reference.tile_counts(size, tile_size, stride)
    tiles = DeviceArray(normal((rows, cols, 2, 2, *tile_size), 3), dtype)
    expected = reference.untile(tiles.numpy(), size, stride, edge)
    images = untile(tiles, size, stride, edge=edge).numpy()
    np.testing.assert_allclose(images, expected, rtol=0, atol=tolerance(dtype, tiles.numpy()))


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("dtype", FLOATS)
def test_untile_of_addresses_that_suit_no_word(dtype, offset):
    tiles = DeviceArray(normal((3, 3, 1, 2, 32, 32)), dtype, offset=offset)
    expected = reference.untile(tiles.numpy(), (64, 64), (16, 16))
    images = untile(tiles, (64, 64), (16, 16), offset=offset).numpy()
    np.testing.assert_allclose(images, expected, rtol=0, atol=tolerance(dtype, tiles.numpy()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("tile_size", "stride"), [(64, 32), (64, 16), (32, 2), (32, 1), (48, 16), (30, 7)])
def test_round_trip_is_exact_where_counts_are_powers_of_two(dtype, tile_size, stride):
    size, tile_size, stride = (96, 96), (tile_size, tile_size), (stride, stride)
    images = DeviceArray(normal((1, 1, *size), 7), dtype)
    back = untile(tile(images, tile_size, stride), size, stride).numpy()
    exact = np.log2(reference.cover_counts(size, tile_size, stride)) % 1 == 0
    assert exact.any()
    values = images.numpy()
    np.testing.assert_array_equal(back[..., exact], values[..., exact])
    np.testing.assert_allclose(back, values, rtol=0, atol=1e-6 * float(np.abs(values).max()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("tile_size", "stride"), [(32, 16), (30, 7), (48, 48), (10, 1)])
def test_round_trip_of_sixteen_bits_is_exact(dtype, tile_size, stride):
    images = DeviceArray(normal((2, 1, 70, 90)), dtype)
    step = (stride, stride)
    back = untile(tile(images, (tile_size, tile_size), step), (70, 90), step)
    np.testing.assert_array_equal(back.numpy(), images.numpy())


@pytest.mark.parametrize("stride", [16, 8, 2])
def test_untile_propagates_nan_and_inf(stride):
    values = np.zeros((1, 1, 32, 32), np.float32)
    values[0, 0, 9, 9], values[0, 0, 20, 21], values[0, 0, 0, 31] = np.nan, np.inf, -np.inf
    back = untile(tile(DeviceArray(values), (16, 16), (stride, stride)), (32, 32), (stride, stride))
    np.testing.assert_array_equal(back.numpy(), values)


def test_untile_ignores_the_padding():
    tiles = np.full((2, 2, 1, 1, 4, 4), np.nan, dtype=np.float32)
    tiles[0, 0] = 1.0
    tiles[0, 1, :, :, :, :1] = 2.0
    tiles[1, 0, :, :, :2, :] = 3.0
    tiles[1, 1, :, :, :2, :1] = 4.0
    top, bottom = [[1.0] * 4 + [2.0]], [[3.0] * 4 + [4.0]]
    images = untile(DeviceArray(tiles), (6, 5), (4, 4)).numpy()
    np.testing.assert_array_equal(images[0, 0], np.array(top * 4 + bottom * 2))


LARGEST = {"bfloat16": 3.3e38, "float32": 3.4e38, "float64": 1.7e308}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("tile_size", "stride"), [(32, 16), (30, 7), (48, 36)])
@pytest.mark.parametrize("dtype", LARGEST)
def test_untile_of_values_whose_sum_is_beyond_the_dtype(dtype, tile_size, stride, edge):
    values = LARGEST[dtype] * np.random.default_rng(0).uniform(0.5, 1.0, (1, 2, 75, 90))
    images = DeviceArray(values, dtype)
    arguments = (tile_size, tile_size), (stride, stride)
    back = untile(tile(images, *arguments, edge=edge), (75, 90), arguments[1], edge=edge).numpy()
    np.testing.assert_allclose(back, images.numpy(), rtol=32 * ROUNDING[dtype], atol=0)


# --- smooth_seams ---------------------------------------------------------------------------------

SEAMS = [
    ((130, 150), (60, 70), (30, 35)),
    ((64, 192), (32, 64), (32, 64)),
    ((45, 33), (20, 15), (7, 15)),
    ((7, 5), (4, 5), (2, 1)),
    ((31, 31), (31, 31), (31, 31)),
    ((1, 200), (1, 64), (1, 30)),
    ((90, 1), (16, 1), (3, 1)),
]
# sigma: the default's unrolled loop, others in blocks (radius 1, 4, 15, 16), and through scratch.
SIGMAS = [2.0, 0.3, 1.0, 3.7, 4.0, 4.2, 15.0]


@pytest.mark.parametrize("dtype", FLOATS)
@edge_cases
@pytest.mark.parametrize(("size", "tile_size", "stride"), SEAMS)
def test_smooth_seams(order, size, tile_size, stride, edge, dtype):
    maps = DeviceArray(normal((3, *size), 4), dtype)
    stored = maps.numpy()
    expected = reference.smooth_seams(stored, tile_size, stride, edge=edge)
    smoothed = smooth_seams(maps, tile_size, stride, edge=edge).numpy()
    np.testing.assert_allclose(smoothed, expected, rtol=0, atol=tolerance(dtype, stored))
    copied = ~reference.seam_mask(size, tile_size, stride, 0.1, edge)
    np.testing.assert_array_equal(smoothed[..., copied], stored[..., copied])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("width", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_smooth_seams_of_every_sigma(sigma, width, dtype):
    emulated.set_order(1)
    maps = DeviceArray(normal((2, 1, 70, 90), 5), dtype)
    stored = maps.numpy()
    expected = reference.smooth_seams(stored, (40, 30), (20, 25), sigma, width)
    smoothed = smooth_seams(maps, (40, 30), (20, 25), sigma, width).numpy()
    np.testing.assert_allclose(smoothed, expected, rtol=0, atol=tolerance(dtype, stored))


def test_bands_in_closed_form_are_the_bands():
    """Bands that touch, overlap and are clipped, on many axes: what changes is what the reference says."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        size = int(rng.integers(2, 80))
        tile_size = int(rng.integers(1, size + 1))
        stride = int(rng.integers(1, tile_size + 1))
        width = float(rng.choice([0.05, 0.1, 0.25, 0.5]))
        maps = DeviceArray(normal((size, 40), 6))
        edge = str(rng.choice(EDGES))
        smoothed = smooth_seams(maps, (tile_size, 40), (stride, 40), 1.0, width, edge=edge)
        changed = smoothed.numpy() != maps.numpy()
        expected = reference.seam_mask((size, 40), (tile_size, 40), (stride, 40), width, edge)
        np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_smooth_seams_of_addresses_that_suit_no_word(dtype, offset):
    maps = DeviceArray(normal((100, 128), 8), dtype, offset=offset)
    expected = reference.smooth_seams(maps.numpy(), (50, 64), (50, 64))
    smoothed = smooth_seams(maps, (50, 64), (50, 64), offset=offset).numpy()
    np.testing.assert_allclose(smoothed, expected, rtol=0, atol=tolerance(dtype, maps.numpy()))


def test_a_block_smooths_several_maps():
    """On a device so small that 48 blocks are more than enough."""
    emulated.set_attribute(16, 1)
    maps = DeviceArray(normal((4, 70, 200)), "float32")
    expected = reference.smooth_seams(maps.numpy(), (40, 104), (24, 48))
    smoothed = smooth_seams(maps, (40, 104), (24, 48)).numpy()
    np.testing.assert_allclose(smoothed, expected, rtol=0, atol=tolerance("float32", maps.numpy()))
    (work,) = emulated.log()
    assert work.extents[:2] == (12, 2)


@pytest.mark.parametrize("sigma", [2.0, 3.0, 5.0])
def test_smooth_seams_keeps_nan_and_inf_near_their_places(sigma):
    size, tile_size = (160, 200), (40, 40)
    values = np.zeros(size, np.float32)
    values[5, 5] = np.nan  # outside all bands
    values[38, 60] = np.nan  # inside the band 36 ... 43
    values[117, 140] = np.inf
    smoothed = smooth_seams(DeviceArray(values), tile_size, tile_size, sigma).numpy()
    radius = int(4 * sigma + 0.5)
    bands = reference.seam_mask(size, tile_size, tile_size, 0.1)
    left = bands.copy()
    for y, x, wrong in ((5, 5, np.isnan), (38, 60, np.isnan), (117, 140, np.isposinf)):
        near = np.zeros_like(bands)
        near[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
        assert wrong(smoothed[near & bands]).all()
        left &= ~near
    assert np.isnan(smoothed[5, 5])
    assert (smoothed[left] == 0).all()


@pytest.mark.parametrize("sigma", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("dtype", LARGEST)
def test_smooth_seams_of_values_whose_sum_is_beyond_the_dtype(dtype, sigma):
    maps = DeviceArray(0.99 * LARGEST[dtype] * np.random.default_rng(1).uniform(0.9, 1.0, (60, 70)), dtype)
    expected = reference.smooth_seams(maps.numpy() * 2.0**-8, (30, 30), (20, 20), sigma)
    smoothed = smooth_seams(maps, (30, 30), (20, 20), sigma).numpy() * 2.0**-8
    np.testing.assert_allclose(smoothed, expected, rtol=ROUNDING[dtype] + SUMMING[dtype], atol=0)


def test_more_maps_than_a_grid_is_high(order):
    """Under emulation a grid is 3 blocks high; the tiles of most tests above go round too."""
    maps = DeviceArray(normal((10, 40, 70)), "float32")
    expected = reference.smooth_seams(maps.numpy(), (20, 30), (20, 30), 1.0, 0.1)
    smoothed = smooth_seams(maps, (20, 30), (20, 30), 1.0, 0.1).numpy()
    np.testing.assert_allclose(smoothed, expected, rtol=0, atol=tolerance("float32", maps.numpy()))


# --- streams, devices, graphs, refusals -----------------------------------------------------------


def every_kernel(device):
    images = DeviceArray(normal((1, 1, 64, 64)), "float32", device=device)
    untile(tile(images, (32, 32), (16, 16)), (64, 64), (16, 16))
    smooth_seams(images, (32, 32), (16, 16))
    smooth_seams(images, (32, 32), (16, 16), 6.0)


def test_work_goes_to_the_stream_and_device_of_the_arrays():
    emulated.reset()
    every_kernel(device=1)
    assert {(work.what, work.device, work.stream) for work in emulated.log()} == {("kernel", 1, STREAM)}
    assert emulated.current_device() == 0


def test_kernels_can_be_part_of_a_graph():
    emulated.reset()
    emulated.set_capturing(True)
    every_kernel(device=0)
    assert len(emulated.log()) == 6
    emulated.reset()


def test_a_device_that_there_is_not():
    images = DeviceArray(np.zeros((1, 1, 8, 8), np.float32), device=5)
    with pytest.raises(RuntimeError, match="current one failed on the CUDA device: cudaErrorInvalidDevice"):
        tile(images, (4, 4), (4, 4))


def test_scratch_is_checked():
    maps = DeviceArray(normal((64, 64)), "float32")
    needed = _core.smooth_seams_scratch((64, 64), "float32", 10.0)
    assert needed == 4 * (64 * 64 + 41)
    assert _core.smooth_seams_scratch((64, 64), "float32", 2.0) == 0
    with pytest.raises(ValueError, match="sigma must be in"):
        _core.smooth_seams_scratch((64, 64), "float32", float("nan"))

    def call(scratch):
        out = DeviceArray.empty((64, 64), "float32")
        _core.smooth_seams(maps, out, (32, 32), (32, 32), 10.0, 0.1, scratch=scratch)

    with pytest.raises(ValueError, match=f"scratch must have {needed} bytes, got None"):
        call(None)
    with pytest.raises(ValueError, match=f"scratch must have {needed} bytes, got {needed - 1}"):
        call(DeviceArray.empty((needed - 1,), "uint8"))
    with pytest.raises(TypeError, match="scratch must be uint8, got float32"):
        call(DeviceArray.empty((needed,), "float32"))
    with pytest.raises(ValueError, match="scratch is on cuda:1 but maps is on cuda:0"):
        call(DeviceArray.empty((needed,), "uint8", device=1))
    with pytest.raises(ValueError, match="scratch must start at a multiple of 16 bytes"):
        call(DeviceArray.empty((needed,), "uint8", offset=8))


def test_arrays_of_two_places_are_refused():
    images = DeviceArray(np.zeros((1, 1, 8, 8), np.float32))
    on_host = np.zeros((2, 2, 1, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match="tiles is on cpu but images is on cuda:0"):
        _core.tile(images, on_host, (4, 4), (4, 4))
