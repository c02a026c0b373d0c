"""The CUDA twin of weighted_top_k, emulated, against the naive reference and the CPU's twin."""

from __future__ import annotations

import numpy as np
import pytest
from support import emulated, reference
from support.emulated import DeviceArray
from support.emulated_kernels import STREAM

from ensemblead import _core


def whole_numbers(shape, seed=0, largest=9):
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(np.float32)


def top_k(blocks, weights, k, *, device=0, offset=0, **options):
    """What kernels/weighted.py does with arrays of a framework."""
    placed = [DeviceArray(block, device=device, offset=offset) for block in blocks]
    shape = (len(weights), len(blocks[0]), k)
    values = DeviceArray.empty(shape, "float32", device=device, offset=offset)
    indices = DeviceArray.empty(shape, "int64", device=device, offset=offset)
    needed = _core.weighted_top_k_scratch(*shape)
    scratch = DeviceArray.empty((needed,), "uint8", device=device) if needed else None
    others = {name: DeviceArray(value, device=device) for name, value in options.items()}
    _core.weighted_top_k(
        placed, DeviceArray(weights, device=device), values, indices, **others, stream=STREAM, scratch=scratch
    )
    if scratch is not None:
        scratch.numpy()
    return values.numpy(), indices.numpy()


def check(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


# Fewer columns than threads, whole and broken strides, buffers that fill up.
@pytest.mark.parametrize(
    ("count", "columns", "k"), [(1, 1, 1), (3, 90, 90), (3, 256, 5), (2, 257, 40), (5, 1500, 20)]
)
def test_top_k(order, count, columns, k):
    blocks = [whole_numbers((2, columns), b) for b in range(count)]
    weights = np.abs(whole_numbers((3, count), 90, 5))
    check(top_k(blocks, weights, k), reference.weighted_top_k(blocks, weights, k))


def test_what_is_left_out_and_scales(order):
    blocks = [whole_numbers((3, 300), b) for b in range(3)]
    weights = np.abs(whole_numbers((2, 3), 90, 5))
    scales = np.abs(whole_numbers((2, 300), 91, 3)) + 1
    own = np.array([299, -1, 4])
    mask = np.random.default_rng(0).random((3, 300)) < 0.4
    both = mask | (np.arange(300) == own[:, None])
    found = top_k(blocks, weights, 11, scales=scales, left_out_column=own, left_out=mask.view(np.uint8))
    check(found, reference.weighted_top_k(blocks, weights, 11, both, scales))
    found = top_k(blocks, weights, 300, left_out=np.ones((3, 300), np.uint8))
    assert (found[1] == -1).all()
    assert np.isneginf(found[0]).all()


def test_special_values(order):
    row = np.array([[1.0, np.nan, np.inf, -np.inf, -0.0, np.inf, 0.0]], np.float32)
    values, indices = top_k([row], np.ones((1, 1), np.float32), 7)
    assert indices[0, 0].tolist() == [2, 5, 0, 4, 6, -1, -1]
    assert values[0, 0].tolist() == [np.inf, np.inf, 1.0, 0.0, 0.0, -np.inf, -np.inf]


@pytest.mark.parametrize("offset", [1, 3])
def test_addresses_of_any_alignment(offset):
    blocks = [whole_numbers((2, 70), b) for b in range(2)]
    weights = np.ones((1, 2), np.float32)
    check(top_k(blocks, weights, 9, offset=offset), reference.weighted_top_k(blocks, weights, 9))


def test_a_large_k_sorts_in_scratch():
    """Under emulation one block has a buffer in scratch, and goes round."""
    assert _core.weighted_top_k_scratch(1, 1, 3840) == 0
    assert _core.weighted_top_k_scratch(1, 2, 3841) == 8192 * 8
    blocks = [whole_numbers((2, 3900), b, 2000) for b in range(2)]
    weights = np.array([[1, 2]], np.float32)
    check(top_k(blocks, weights, 3850), reference.weighted_top_k(blocks, weights, 3850))
    with pytest.raises(ValueError, match="scratch must have 65536 bytes, got None"):
        _core.weighted_top_k(
            [DeviceArray(blocks[0])],
            DeviceArray(weights[:, :1].copy()),
            DeviceArray.empty((1, 2, 3841), "float32"),
            DeviceArray.empty((1, 2, 3841), "int64"),
        )


def test_work_goes_to_the_stream_and_device_of_the_arrays():
    blocks = [whole_numbers((3, 50))]
    weights = np.ones((4, 1), np.float32)
    emulated.set_capturing(True)
    top_k(blocks, weights, 5, device=1)
    emulated.set_capturing(False)
    (work,) = emulated.log()
    assert (work.what, work.device, work.stream, work.extents[:1]) == ("kernel", 1, STREAM, (12,))


def test_the_twins_agree_on_real_numbers():
    """Both fuse products with sums, where the processor can; elsewhere by rounding."""
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((3, 400)).astype(np.float32) for _ in range(3)]
    weights = rng.uniform(0, 5, (4, 3)).astype(np.float32)
    values, indices = np.empty((4, 3, 10), np.float32), np.empty((4, 3, 10), np.int64)
    _core.weighted_top_k(blocks, weights, values, indices)
    found = top_k(blocks, weights, 10)
    np.testing.assert_allclose(found[0], values, rtol=1e-5)
    assert (found[1] == indices).mean() > 0.9


def test_arrays_of_two_places_are_refused():
    block = DeviceArray(np.zeros((1, 8), np.float32))
    outputs = [DeviceArray.empty((1, 1, 2), dtype) for dtype in ("float32", "int64")]
    with pytest.raises(ValueError, match=r"weights is on cpu but blocks\[0\] is on cuda:0"):
        _core.weighted_top_k([block], np.ones((1, 1), np.float32), *outputs)
