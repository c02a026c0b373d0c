"""tile, untile and smooth_seams against the naive reference."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import reference
from support.instruction_sets import skip_without

from ensemblead import _core
from ensemblead.kernels.tiling import smooth_seams, tile, untile

FLOATS = ["float16", "bfloat16", "float32", "float64"]
# Half a unit in the last place, relative: what storing a result costs.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
# What computing it may cost besides, relative to the largest value: sums are float32, for float64 float64.
SUMMING = {"float16": 1e-6, "bfloat16": 1e-6, "float32": 1e-6, "float64": 1e-14}

# (image size, tile size, stride): vector loops and their rests, long sums, single rows and columns, overhang.
GEOMETRIES = [
    ((64, 64), (32, 32), (16, 16)),
    ((50, 300), (20, 130), (15, 70)),
    ((33, 257), (33, 100), (33, 33)),
    ((130, 21), (70, 21), (9, 21)),
    ((24, 24), (12, 12), (1, 1)),
    ((31, 31), (31, 31), (31, 31)),
    ((1, 200), (1, 64), (1, 5)),
    ((90, 1), (16, 1), (3, 1)),
]
geometry_cases = pytest.mark.parametrize(("size", "tile_size", "stride"), GEOMETRIES)
EDGES = ["pad", "flush"]
edge_cases = pytest.mark.parametrize("edge", EDGES)


@st.composite
def geometries(draw, max_size=40):
    """As above, drawn; the limits of what is allowed come often."""

    def axis():
        size = draw(st.integers(1, max_size))
        tile_size = draw(st.one_of(st.integers(1, size), st.just(size)))
        return size, tile_size, draw(st.one_of(st.integers(1, tile_size), st.just(tile_size)))

    (height, h, sh), (width, w, sw) = axis(), axis()
    return (height, width), (h, w), (sh, sw)


def whole_numbers(shape, seed=0):
    """Whole numbers below 256, which every dtype holds exactly."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.float64)


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tolerance(dtype, values):
    return float((ROUNDING[dtype] + SUMMING[dtype]) * np.abs(values.astype(np.float64)).max())


def made(device, values, dtype):
    if not device.supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    return device.array(values, dtype)


# --- tile -----------------------------------------------------------------------------------------


@given(
    geometries(),
    st.sampled_from(["uint8", "float16", "float32", "float64"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(EDGES),
)
def test_tile_is_the_reference(geometry, dtype, batch, channels, edge):
    size, tile_size, stride = geometry
    images = whole_numbers((batch, channels, *size)).astype(dtype)
    tiles = tile(images, tile_size, stride, edge=edge)
    assert tiles.dtype == images.dtype
    np.testing.assert_array_equal(tiles, reference.tile(images, tile_size, stride, edge))


@pytest.mark.parametrize("dtype", ["uint8", *FLOATS])
@edge_cases
@geometry_cases
def test_tile_in_every_framework(cpu_device, size, tile_size, stride, edge, dtype):
    values = whole_numbers((2, 3, *size))
    tiles = tile(made(cpu_device, values, dtype), tile_size, stride, edge=edge)
    assert cpu_device.is_own(tiles)
    assert cpu_device.dtype(tiles) == dtype
    np.testing.assert_array_equal(cpu_device.numpy(tiles), reference.tile(values, tile_size, stride, edge))


def test_tile_sizes_are_ints_or_pairs():
    images = np.zeros((1, 3, 512, 512), np.uint8)
    assert tile(images, 256, 128).shape == (3, 3, 1, 3, 256, 256)
    assert tile(images, (256, 128)).shape == (2, 4, 1, 3, 256, 128)
    assert tile(images, 200).shape == (3, 3, 1, 3, 200, 200)
    assert tile(images, np.int64(512), np.int32(1)).shape == (1, 1, 1, 3, 512, 512)


def test_tile_copies_every_bit_and_pads_with_zeros():
    images = np.array([[[[np.nan, np.inf, -0.0], [1.0, -np.inf, 5e-324], [2.0, 3.0, 4.0]]]])
    padded = np.zeros((4, 4))
    padded[:3, :3] = images[0, 0]
    expected = np.ascontiguousarray(padded.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3)[:, :, None, None])
    np.testing.assert_array_equal(tile(images, 2, 2).view(np.uint64), expected.view(np.uint64))


@pytest.mark.parametrize(
    ("size", "stride", "pad", "flush"),
    [
        (10, 3, [0, 3, 6], [0, 3, 6]),
        (11, 3, [0, 3, 6, 9], [0, 3, 6, 7]),
        (4, 2, [0], [0]),
        (5, 4, [0, 4], [0, 1]),
    ],
)
def test_tiles_start_where_the_edge_says(size, stride, pad, flush):
    """Tiles of 4; a pixel's value is its place."""
    images = np.arange(1, size + 1, dtype=np.float32).reshape(1, 1, 1, size)
    for edge, starts in (("pad", pad), ("flush", flush)):
        tiles = tile(images, (1, 4), (1, stride), edge=edge)[0, :, 0, 0, 0]
        np.testing.assert_array_equal(tiles[:, 0], np.array(starts) + 1)
        assert (tiles == 0).any() == (starts[-1] + 4 > size)
    np.testing.assert_array_equal(
        tile(images, (1, 4), (1, stride)), tile(images, (1, 4), (1, stride), edge="pad")
    )


# --- untile ---------------------------------------------------------------------------------------


@given(
    geometries(),
    st.sampled_from(["float16", "float32", "float64"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(EDGES),
)
def test_untile_is_the_reference(geometry, dtype, seed, edge):
    size, tile_size, stride = geometry
    rows, cols = reference.tile_counts(size, tile_size, stride)
    assume(rows * cols * tile_size[0] * tile_size[1] < 200_000)
    tiles = normal((rows, cols, 1, 2, *tile_size), dtype, seed)
    images = untile(tiles, size, stride, edge=edge)
    assert images.dtype == tiles.dtype
    expected = reference.untile(tiles, size, stride, edge)
    np.testing.assert_allclose(images.astype(np.float64), expected, rtol=0, atol=tolerance(dtype, tiles))


@pytest.mark.parametrize("dtype", FLOATS)
@edge_cases
@geometry_cases
def test_untile_in_every_framework(cpu_device, size, tile_size, stride, edge, dtype):
    rows, cols = reference.tile_counts(size, tile_size, stride)
    tiles = made(cpu_device, normal((rows, cols, 2, 2, *tile_size), seed=3), dtype)
    images = untile(tiles, size, stride, edge=edge)
    assert cpu_device.is_own(images)
    assert cpu_device.dtype(images) == dtype
    stored = cpu_device.numpy(tiles)
    expected = reference.untile(stored, size, stride, edge)
    np.testing.assert_allclose(cpu_device.numpy(images), expected, rtol=0, atol=tolerance(dtype, stored))


def assert_round_trip(images, tile_size, stride, edge):
    """Exact where the number of covering tiles is a power of two, else within 1e-6 of the largest value."""
    size = images.shape[2:]
    back = untile(tile(images, tile_size, stride, edge=edge), size, stride, edge=edge)
    exact = np.log2(reference.cover_counts(size, tile_size, stride, edge)) % 1 == 0
    assert exact.any()
    np.testing.assert_array_equal(back[..., exact], images[..., exact])
    np.testing.assert_allclose(back, images, rtol=0, atol=1e-6 * float(np.abs(images).max()))


@given(
    geometries(),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(EDGES),
)
def test_round_trip(geometry, dtype, seed, edge):
    size, tile_size, stride = geometry
    assert_round_trip(normal((1, 2, *size), dtype, seed), tile_size, stride, edge)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("tile_size", "stride"), [(256, 128), (256, 64), (128, 8), (64, 4), (48, 16), (96, 9)]
)
@edge_cases
def test_round_trip_at_full_size(tile_size, stride, dtype, edge):
    images = normal((1, 1, 512, 512), dtype, 7)
    assert_round_trip(images, (tile_size, tile_size), (stride, stride), edge)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("tile_size", "stride"), [(32, 16), (30, 7), (48, 48), (10, 1)])
def test_round_trip_of_sixteen_bits_is_exact(tile_size, stride, dtype):
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(normal((2, 1, 70, 90))).to(getattr(torch, dtype))
    assert torch.equal(untile(tile(images, tile_size, stride), (70, 90), stride), images)


def test_untile_ignores_the_padding():
    tiles = np.full((2, 2, 1, 1, 4, 4), np.nan, dtype=np.float32)
    tiles[0, 0] = 1.0
    tiles[0, 1, :, :, :, :1] = 2.0
    tiles[1, 0, :, :, :2, :] = 3.0
    tiles[1, 1, :, :, :2, :1] = 4.0
    top, bottom = [[1.0] * 4 + [2.0]], [[3.0] * 4 + [4.0]]
    np.testing.assert_array_equal(untile(tiles, (6, 5))[0, 0], np.array(top * 4 + bottom * 2))


@pytest.mark.parametrize("stride", [16, 8, 2])
def test_untile_propagates_nan_and_inf(stride):
    images = np.zeros((1, 1, 32, 32), dtype=np.float32)
    images[0, 0, 9, 9], images[0, 0, 20, 21], images[0, 0, 0, 31] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(untile(tile(images, 16, stride), 32, stride), images)


def test_sixteen_bits_are_summed_in_float32():
    tiles = np.full((1, 2, 1, 1, 1, 2), 60000.0, dtype=np.float16)  # the sum is beyond float16
    np.testing.assert_array_equal(untile(tiles, (1, 3), 1), np.full((1, 1, 1, 3), 60000.0, np.float16))


# --- smooth_seams ---------------------------------------------------------------------------------


@given(
    geometries(max_size=48),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([0.1, 0.3, 1.0, 2.0, 3.7, 15.0]),
    st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5]),
    st.sampled_from([(), (2,), (2, 1, 3)]),
    st.sampled_from(EDGES),
)
def test_smooth_seams_is_the_reference(geometry, dtype, sigma, width, leading, edge):
    size, tile_size, stride = geometry
    maps = normal((*leading, *size), dtype, 5)
    smoothed = smooth_seams(maps, tile_size, stride, sigma=sigma, width=width, edge=edge)
    assert smoothed.dtype == maps.dtype
    assert smoothed.shape == maps.shape
    expected = reference.smooth_seams(maps, tile_size, stride, sigma, width, edge)
    np.testing.assert_allclose(smoothed.astype(np.float64), expected, rtol=0, atol=tolerance(dtype, maps))
    copied = ~reference.seam_mask(size, tile_size, stride, width, edge)
    np.testing.assert_array_equal(smoothed[..., copied], maps[..., copied])


@pytest.mark.parametrize("dtype", FLOATS)
@edge_cases
@geometry_cases
def test_smooth_seams_in_every_framework(cpu_device, size, tile_size, stride, edge, dtype):
    maps = made(cpu_device, normal((3, *size), seed=4), dtype)
    smoothed = smooth_seams(maps, tile_size, stride, edge=edge)
    assert cpu_device.is_own(smoothed)
    assert cpu_device.dtype(smoothed) == dtype
    stored = cpu_device.numpy(maps)
    expected = reference.smooth_seams(stored, tile_size, stride, edge=edge)
    np.testing.assert_allclose(cpu_device.numpy(smoothed), expected, rtol=0, atol=tolerance(dtype, stored))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_smooth_seams_is_scipy_in_the_bands(dtype):
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = normal((300, 420), dtype, 6)
    smoothed = smooth_seams(maps, (128, 100), (90, 64))
    bands = reference.seam_mask((300, 420), (128, 100), (90, 64), 0.1)
    assert 0 < bands.sum() < bands.size
    blurred = ndimage.gaussian_filter(maps, sigma=2.0, mode="reflect", truncate=4.0)
    np.testing.assert_allclose(smoothed[bands], blurred[bands], rtol=0, atol=SUMMING[dtype])
    np.testing.assert_array_equal(smoothed[~bands], maps[~bands])


def test_seams_are_starts_and_ends_of_tiles_inside_the_map():
    """Tile 40, stride 30 on 100: starts at 30 and 60, ends at 40 and 70; 0 and 100 are the border."""
    maps = normal((100, 100), seed=8)
    changed = smooth_seams(maps, 40, 30, width=0.05) != maps
    lines = [28, 29, 30, 31, 38, 39, 40, 41, 58, 59, 60, 61, 68, 69, 70, 71]
    np.testing.assert_array_equal(np.flatnonzero(changed.all(axis=1)), lines)
    np.testing.assert_array_equal(np.flatnonzero(changed.all(axis=0)), lines)


@pytest.mark.parametrize(("tile_size", "stride", "width"), [(64, None, 0.5), (20, 7, 0.0), (9, 9, 0.1)])
def test_nothing_to_smooth_is_a_copy(tile_size, stride, width):
    maps = normal((2, 64, 64), seed=9)
    smoothed = smooth_seams(maps, tile_size, stride, width=width)
    np.testing.assert_array_equal(smoothed, maps)
    assert not np.shares_memory(smoothed, maps)


def test_smooth_seams_keeps_nan_near_its_place():
    maps = np.zeros((80, 80), dtype=np.float32)
    maps[5, 5] = maps[38, 60] = np.nan  # outside all bands, and inside the band 36 ... 43
    missing = np.isnan(smooth_seams(maps, 40))
    near = np.zeros_like(missing)
    near[30:47, 52:69] = near[5, 5] = True
    assert missing[5, 5]
    assert missing[36:44, 52:69].all()
    assert not missing[~near].any()


# --- threads, callers, lifetimes, instruction sets ------------------------------------------------


def run_all(num_threads, images):
    """The three kernels straight from the core, where the number of threads can be said."""
    tile_size, stride = (96, 80), (40, 33)
    rows, cols = _core.tile_grid(images.shape[2:], tile_size, stride)
    tiles = np.empty((rows, cols, *images.shape[:2], *tile_size), images.dtype)
    back, smoothed = np.empty_like(images), np.empty_like(images)
    _core.tile(images, tiles, tile_size, stride, num_threads=num_threads)
    _core.untile(tiles, back, stride, num_threads=num_threads)
    _core.smooth_seams(images, smoothed, tile_size, stride, 2.0, 0.1, num_threads=num_threads)
    return [result.tobytes() for result in (tiles, back, smoothed)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    images = normal((2, 3, 300, 333), dtype, 10)
    one = run_all(1, images)
    for num_threads in (2, 3, 0):
        assert run_all(num_threads, images) == one


def test_concurrent_callers():
    inputs = [normal((1, 2, 300, 300), seed=seed) for seed in range(4)]
    expected = [run_all(1, images) for images in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda images: run_all(2, images), inputs)) == expected


def test_the_thread_count_of_torch_changes_nothing():
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(normal((2, 3, 200, 200)))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(smooth_seams(untile(tile(images, 64, 24), 200, 24), 64, 24))
        assert torch.equal(*results)
    finally:
        torch.set_num_threads(before)


def test_the_result_outlives_the_input():
    images = whole_numbers((1, 1, 64, 64))
    expected = reference.tile(images, (32, 32), (16, 16))
    tiles = tile(images, 32, 16)
    images[:] = -1.0
    del images
    gc.collect()
    np.testing.assert_array_equal(tiles, expected)


def test_read_only_images_are_taken():
    images = normal((1, 1, 8, 8))
    images.flags.writeable = False
    np.testing.assert_array_equal(untile(tile(images, 4, 2), 8, 2), images)


CHECK_INSTRUCTION_SET = """
import numpy as np, reference
from ensemblead import _core
from ensemblead.kernels.tiling import smooth_seams, tile, untile
rng = np.random.default_rng(0)
for dtype, bound in (("float16", 4e-3), ("float32", 4e-6), ("float64", 1e-14)):
    for stride in (24, 12, 5):
        x = rng.standard_normal((1, 2, 75, 131)).astype(dtype)
        t = rng.standard_normal(tile(x, 24, stride).shape).astype(dtype)
        expected = reference.untile(t, (75, 131), (stride, stride))
        assert np.abs(untile(t, (75, 131), stride) - expected).max() < bound
        for sigma in (0.4, 2.0):
            expected = reference.smooth_seams(x, (24, 24), (stride, stride), sigma, 0.2)
            assert np.abs(smooth_seams(x, 24, stride, sigma=sigma, width=0.2) - expected).max() < bound
print(_core.instruction_set())
"""


@pytest.mark.parametrize("instruction_set", ["baseline", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set(instruction_set):
    skip_without(instruction_set)
    paths = [os.path.dirname(reference.__file__), *filter(None, sys.path)]
    environment = {
        **os.environ,
        "ENSEMBLEAD_INSTRUCTION_SET": instruction_set,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [sys.executable, "-c", CHECK_INSTRUCTION_SET]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == instruction_set


# --- what is refused ------------------------------------------------------------------------------

IMAGES = np.zeros((2, 3, 16, 20), dtype=np.float32)
TILES = np.zeros((2, 3, 2, 3, 8, 8), dtype=np.float32)  # of IMAGES, tile 8, stride 8
MAPS = np.zeros((2, 16, 20), dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((IMAGES[0], 8), ValueError, r"images must be 4-D \[B, C, H, W\], got shape \(3, 16, 20\)"),
        ((IMAGES[:0], 8), ValueError, r"images is empty, got shape \(0, 3, 16, 20\)"),
        ((IMAGES.astype(np.int32), 8), TypeError, "images must be uint8, .* or float64, got int32"),
        ((IMAGES.astype(">f4"), 8), TypeError, "images must be uint8, .* got >f4"),
        ((IMAGES.astype(bool), 8), TypeError, "images must be uint8, .* got bool"),
        ((IMAGES.astype(object), 8), TypeError, "images must be uint8, .* got object"),
        ((IMAGES.tolist(), 8), TypeError, "images must be a NumPy, CuPy or torch array, got list"),
        ((IMAGES[:, :, :, ::2], 8), ValueError, "images is not contiguous .* pass a contiguous array"),
        ((IMAGES.transpose(0, 1, 3, 2), 8), ValueError, "images is not contiguous"),
        (
            (IMAGES, 17),
            ValueError,
            r"tile_size must not exceed the image, got tile_size \(17, 17\) and image",
        ),
        ((IMAGES, (8, 21)), ValueError, r"tile_size must not exceed the image.*\(16, 20\)"),
        ((IMAGES, 0), ValueError, r"tile_size must be at least 1, got \(0, 0\)"),
        ((IMAGES, (8, -1)), ValueError, "tile_size must be at least 1"),
        ((IMAGES, 8, 9), ValueError, r"stride must not exceed tile_size .* got stride \(9, 9\)"),
        ((IMAGES, (8, 4), (4, 5)), ValueError, "stride must not exceed tile_size"),
        ((IMAGES, 8, 0), ValueError, r"stride must be at least 1, got \(0, 0\)"),
        ((IMAGES, 8, (1, -3)), ValueError, "stride must be at least 1"),
        ((IMAGES, 8.0), TypeError, "tile_size must be an int or a pair .* got 8.0"),
        ((IMAGES, True), TypeError, "tile_size must be an int or a pair .* got True"),
        ((IMAGES, "8"), TypeError, "tile_size must be an int or a pair .* got '8'"),
        ((IMAGES, None), TypeError, "tile_size must be an int"),
        ((IMAGES, (8, 8.0)), TypeError, "tile_size must be an int or a pair"),
        ((IMAGES, (8, 8, 8)), ValueError, r"tile_size must be an int or a pair \(h, w\), got \(8, 8, 8\)"),
        ((IMAGES, 8, np.True_), TypeError, "stride must be an int"),
        ((IMAGES, 8, [4, 4.5]), TypeError, "stride must be an int"),
        ((IMAGES, 10**30), ValueError, "tile_size must be below"),
    ],
)
def test_tile_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        tile(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TILES[0], (16, 20)), ValueError, r"tiles must be 6-D \[rows, cols, B, C, h, w\], got shape"),
        ((TILES[:, :, :, :0], (16, 20)), ValueError, "tiles is empty"),
        ((TILES.astype(np.uint8), (16, 20)), TypeError, "tiles must be float16, .* got uint8"),
        ((TILES.tolist(), (16, 20)), TypeError, "tiles must be a NumPy"),
        ((TILES[..., ::-1], (16, 20)), ValueError, "tiles is not contiguous"),
        ((TILES[:1], (16, 20)), ValueError, "tiles must be 2 rows x 3 columns of 8 x 8 .* got 1 x 3"),
        ((TILES, (16, 16)), ValueError, "tiles must be 2 rows x 2 columns"),
        ((TILES, (16, 20), 4), ValueError, "tiles must be 3 rows x 4 columns"),
        ((TILES, (7, 20)), ValueError, "tile_size must not exceed the image"),
        ((TILES, (16, 20), 9), ValueError, "stride must not exceed tile_size"),
        ((TILES, (16, 20), 0), ValueError, "stride must be at least 1"),
        ((TILES, (16.0, 20)), TypeError, "image_size must be an int or a pair"),
        ((TILES, "16"), TypeError, "image_size must be an int or a pair"),
        ((TILES, (16, 20), False), TypeError, "stride must be an int or a pair"),
    ],
)
def test_untile_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        untile(*arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((MAPS[0, 0], 8), {}, ValueError, r"maps must be \[..., H, W\], got shape \(20,\)"),
        ((MAPS[:, :0], 8), {}, ValueError, "maps is empty"),
        ((MAPS.astype(np.uint8), 8), {}, TypeError, "maps must be float16, .* got uint8"),
        ((MAPS.tolist(), 8), {}, TypeError, "maps must be a NumPy"),
        ((MAPS[:, ::2], 8), {}, ValueError, "maps is not contiguous"),
        ((MAPS, 17), {}, ValueError, "tile_size must not exceed the image"),
        ((MAPS, 8, 9), {}, ValueError, "stride must not exceed tile_size"),
        ((MAPS, 8, 0), {}, ValueError, "stride must be at least 1"),
        ((MAPS, 8.5), {}, TypeError, "tile_size must be an int"),
        ((MAPS, 8), {"sigma": 0}, ValueError, r"sigma must be in \(0, 1000\], got 0"),
        ((MAPS, 8), {"sigma": -1.0}, ValueError, "sigma must be in"),
        ((MAPS, 8), {"sigma": float("nan")}, ValueError, "sigma must be in .* got nan"),
        ((MAPS, 8), {"sigma": float("inf")}, ValueError, "sigma must be in"),
        ((MAPS, 8), {"sigma": "2"}, TypeError, "sigma must be a number, got '2'"),
        ((MAPS, 8), {"sigma": True}, TypeError, "sigma must be a number"),
        ((MAPS, 8), {"width": -0.1}, ValueError, r"width must be in \[0, 0.5\], got -0.1"),
        ((MAPS, 8), {"width": 0.51}, ValueError, "width must be in"),
        ((MAPS, 8), {"width": float("nan")}, ValueError, "width must be in"),
        ((MAPS, 8), {"width": None}, TypeError, "width must be a number"),
    ],
)
def test_smooth_seams_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        smooth_seams(*arguments, **options)


@pytest.mark.parametrize(
    ("edge", "error", "message"),
    [
        ("crop", ValueError, 'edge must be "pad" or "flush", got "crop"'),
        ("", ValueError, 'edge must be "pad" or "flush", got ""'),
        (None, TypeError, 'edge must be "pad" or "flush", got None'),
    ],
)
def test_another_edge_is_refused(edge, error, message):
    for call in (lambda: tile(IMAGES, 8, edge=edge), lambda: smooth_seams(MAPS, 8, edge=edge)):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(error, match=message):
        untile(TILES, (16, 20), edge=edge)


def test_the_core_refuses_a_wrong_output():
    shape = (2, 3, 2, 3, 8, 8)
    read_only = np.empty(shape, np.float32)
    read_only.flags.writeable = False
    for tiles, error, message in [
        (read_only, ValueError, "tiles is read-only"),
        (np.empty(shape, np.float64), TypeError, "tiles must be float32, got float64"),
        (np.empty((2, 2, *shape[2:]), np.float32), ValueError, r"tiles must have shape \(2, 3, 2, 3, 8, 8\)"),
        (np.empty((4, *shape[1:]), np.float32)[::2], ValueError, "tiles is not contiguous"),
    ]:
        with pytest.raises(error, match=message):
            _core.tile(IMAGES, tiles, (8, 8), (8, 8), num_threads=1)


def test_a_tensor_that_requires_grad_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="images cannot be read"):
        tile(torch.zeros(1, 1, 8, 8, requires_grad=True), 4)


def test_a_channels_last_tensor_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="pass a contiguous array"):
        tile(torch.zeros(1, 3, 8, 8).to(memory_format=torch.channels_last), 4)


@pytest.mark.parametrize("dtype", FLOATS)
@geometry_cases
def test_every_kernel_on_cuda(cuda_device, size, tile_size, stride, dtype):
    images = made(cuda_device, normal((2, 3, *size)), dtype)
    tiles = tile(images, tile_size, stride)
    back = untile(tiles, size, stride)
    assert cuda_device.is_own(tiles)
    assert cuda_device.is_own(back)
    stored = cuda_device.numpy(images)
    np.testing.assert_array_equal(cuda_device.numpy(tiles), reference.tile(stored, tile_size, stride))
    bound = tolerance(dtype, stored)
    np.testing.assert_allclose(cuda_device.numpy(back), stored, rtol=0, atol=bound)
    # At 4.0 the margins are the widest for shared memory: in float64 more than a kernel gets unasked.
    for sigma in (1.0, 2.0, 4.0, 6.0):
        smoothed = cuda_device.numpy(smooth_seams(images, tile_size, stride, sigma=sigma))
        expected = reference.smooth_seams(stored, tile_size, stride, sigma)
        np.testing.assert_allclose(smoothed, expected, rtol=0, atol=bound)
