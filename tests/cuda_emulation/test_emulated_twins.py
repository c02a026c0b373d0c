"""Random geometries: the emulated CUDA twins against the CPU's, NaN and infinities included; and that results
depend neither on the order of threads, nor on the layout, nor on what else is in the batch.
"""

from __future__ import annotations

import numpy as np
import pytest
from support import emulated
from support.dlpack_by_hand import ByHand
from support.emulated import DeviceArray
from support.emulated_kernels import FLOATS, aggregate, feature_map, smooth_seams, tolerance

from ensemblead import _core


class OnHost:
    """The memory of a DeviceArray as an array of the CPU."""

    def __init__(self, array):
        self._array = array
        self._lent = []

    def __dlpack__(self, *, stream=None, max_version=(0, 0)):
        self._lent.append(ByHand(self._array.values, device=(1, 0), dtype=self._array.dtype))
        return self._lent[-1].capsule()

    def __dlpack_device__(self):
        return 1, 0


def check_same(result, expected, atol):
    """NaN and infinities in the same places, and elsewhere nearly the same numbers."""
    for is_special in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(is_special(result), is_special(expected))
    finite = np.isfinite(expected)
    assert finite.any()
    difference = np.abs(result[finite].astype(np.float64) - expected[finite])
    assert difference.max() <= atol


def with_a_special_value(random, values):
    """In half the cases."""
    if values.size > 60 and random.random() < 0.5:
        values.flat[random.integers(values.size)] = random.choice([np.nan, np.inf, -np.inf])
    return values


def random_layers(random):
    batch, height, width = random.integers([1, 1, 1], [5, 20, 70])
    sizes = [(height, width)]
    for _ in range(random.integers(0, 3)):
        smaller = random.integers(1, [height + 1, width + 1])
        sizes.append(sizes[0] if random.random() < 0.4 else tuple(smaller))
    shapes = []
    for rows, cols in sizes:
        channels = random.choice(
            [random.integers(1, 12), 8 * random.integers(1, 40), random.integers(1, 150)]
        )
        shapes.append((int(batch), int(channels), int(rows), int(cols)))
    return shapes


@pytest.mark.parametrize("seed", range(16))
def test_aggregate_patches(seed):
    random = np.random.default_rng(seed)
    shapes = random_layers(random)
    patch_size = int(random.choice([1, 3, 3, 3, 5, 7]))
    dtype = str(random.choice(["float32", "float16", "bfloat16"]))
    mode = str(random.choice(["adaptive", "adaptive", "concat"]))
    dims = [shape[1] if random.random() < 0.5 else int(random.integers(1, 200)) for shape in shapes]
    target = int(random.choice([sum(dims), random.integers(1, sum(dims) + 1)]))
    offset = int(random.choice([0, 0, 1, 4]))
    values = [with_a_special_value(random, random.standard_normal(shape)) for shape in shapes]
    largest = max(float(np.abs(layer[np.isfinite(layer)]).max()) for layer in values)
    layouts = [bool(random.integers(2)) for _ in shapes]

    def run(order, images=slice(None), *, other_layouts=False):
        emulated.set_order(order)
        maps = [
            feature_map(layer[images], dtype, channels_last=last != other_layouts, offset=offset)
            for layer, last in zip(values, layouts, strict=True)
        ]
        return aggregate(maps, patch_size, dims, target, mode, offset=offset), maps

    result, maps = run(0)
    expected = np.empty_like(result)
    _core.aggregate_patches(
        [OnHost(m) for m in maps], expected, patch_size, dims, target, mode, num_threads=1
    )
    check_same(result, expected, 1e-5 * largest)
    np.testing.assert_array_equal(run(1)[0], result)
    np.testing.assert_array_equal(run(7, other_layouts=True)[0], result)
    np.testing.assert_array_equal(run(0, slice(1))[0], result[:1])


@pytest.mark.parametrize("seed", range(24))
def test_smooth_seams(seed):
    random = np.random.default_rng(seed)
    dtype = FLOATS[seed % len(FLOATS)]
    size = [int(n) for n in random.integers([1, 8], [130, 230])]
    tile_size = tuple(int(random.integers(1, n + 1)) for n in size)
    stride = tuple(int(random.integers(1, n + 1)) for n in tile_size)
    sigma = float(random.choice([2.0, 2.0, 0.1, 1.0, 3.9, 4.2]))
    width = float(random.choice([0.1, 0.02, 0.5]))
    edge = str(random.choice(["pad", "flush"]))
    offset = int(random.choice([0, 0, 1, 4]))
    values = random.standard_normal((int(random.integers(1, 6)), *size))
    largest = np.abs(values).max()
    maps = DeviceArray(with_a_special_value(random, values), dtype, offset=offset)

    results = []
    for order, multiprocessors in ((0, 1), (1, 132), (9, 1)):
        emulated.set_order(order)
        emulated.set_attribute(16, multiprocessors)  # which decides how many maps a block smooths
        results.append(smooth_seams(maps, tile_size, stride, sigma, width, offset=offset, edge=edge).numpy())
    expected = DeviceArray.empty(values.shape, dtype)
    options = {"edge": edge, "num_threads": 1}
    _core.smooth_seams(OnHost(maps), OnHost(expected), tile_size, stride, sigma, width, **options)
    check_same(results[0], expected.numpy(), 2.1 * tolerance(dtype, largest))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
