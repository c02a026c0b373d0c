"""One small call of every kernel and every variant: few enough for compute-sanitizer, which slows a GPU down
a hundredfold (`tools/gpu_check.sh` runs these under memcheck and racecheck, `-m sanitizer -k cupy`).

Sizes are odd, so that the last block, warp and vector are partly empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import reference

from ensemblead.kernels.coreset import project, select_coreset
from ensemblead.kernels.patches import aggregate_patches
from ensemblead.kernels.tiling import smooth_seams, tile, untile
from ensemblead.kernels.weighted import weighted_top_k

pytestmark = pytest.mark.sanitizer


@pytest.fixture(autouse=True)
def no_pool(device: Any) -> Any:
    """CuPy's pool would put all arrays into one allocation, whose inner borders nobody watches."""
    if device.framework != "cupy":
        yield
        return
    device.module.cuda.set_allocator(None)
    yield
    device.module.cuda.set_allocator(device.module.get_default_memory_pool().malloc)


def _integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


def _greedy(rows: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    """The sequential rule in float64, on squared distances."""
    picks = []
    for _ in range(count):
        picks.append(int(values.argmax()))
        values = np.minimum(values, ((rows - rows[picks[-1]]) ** 2).sum(1))
    return picks


@pytest.mark.parametrize(("rows", "dims", "count"), [(300, 7, 40), (1025, 33, 150), (70, 128, 70)])
def test_coreset(device: Any, rows: int, dims: int, count: int) -> None:
    features = _integers(rows, dims)
    wide = features.astype(np.float64)
    placed = device.array(features)
    expected = [5, *_greedy(wide, ((wide - wide[5]) ** 2).sum(1), count - 1)]
    picks = select_coreset(
        placed, size=count, projection_dim=None, start="row", start_indices=device.array(np.array([5]))
    )
    assert device.numpy(picks).tolist() == expected
    bank = wide[:9]
    values = ((wide[:, None] - bank) ** 2).sum(2).min(1)
    picks = select_coreset(placed, size=count, projection_dim=None, bank=device.array(features[:9]))
    assert device.numpy(picks).tolist() == _greedy(wide, values, count)
    assert len(select_coreset(placed, size=3, projection_dim=None)) == 3  # the mean over start rows


def test_projection(device: Any) -> None:
    features, weights = _integers(301, 67), _integers(13, 67, seed=1)
    found = device.numpy(project(device.array(features), device.array(weights)))
    np.testing.assert_allclose(found, features @ weights.T, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("mode", "patch_size"), [("adaptive", 3), ("concat", 3), ("concat", 1), ("adaptive", 5)]
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_patches(device: Any, mode: str, patch_size: int, dtype: str) -> None:
    maps = [_integers(2, 19, 9, 11), _integers(2, 37, 5, 6, seed=1)]
    pretrain, target = (23, 23), 29
    found = aggregate_patches(
        [device.array(one, dtype) for one in maps],
        patch_size=patch_size,
        pretrain_dim=list(pretrain),
        target_dim=target,
        mode=mode,
    )
    expected = reference.aggregate_patches(maps, patch_size, pretrain, target, mode)
    np.testing.assert_allclose(device.numpy(found), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize(("tile_size", "stride"), [((17, 16), (9, 16)), ((8, 12), (8, 5))])
def test_tiles(device: Any, dtype: str, tile_size: tuple[int, int], stride: tuple[int, int]) -> None:
    images = np.abs(_integers(2, 3, 33, 47)).astype(dtype)
    tiles = tile(device.array(images), tile_size, stride)
    np.testing.assert_array_equal(device.numpy(tiles), reference.tile(images, tile_size, stride))
    if dtype == "uint8":
        return
    back = untile(tiles, (33, 47), stride)
    np.testing.assert_allclose(device.numpy(back), images, atol=1e-2 if dtype == "float16" else 1e-5)
    smooth = smooth_seams(device.array(images), tile_size, stride)
    expected = reference.smooth_seams(images, tile_size, stride)
    np.testing.assert_allclose(device.numpy(smooth), expected, atol=2e-2 if dtype == "float16" else 1e-4)


@pytest.mark.parametrize(("columns", "k"), [(33, 33), (601, 7), (4001, 4000)])
def test_weighted_top_k(device: Any, columns: int, k: int) -> None:
    """The largest k takes a buffer outside of shared memory."""
    blocks = [_integers(2, columns, seed=b) for b in range(3)]
    weights = np.array([[1, 2, 3], [0, 1, 4]], np.float32)
    own, scales = np.array([5, -1]), np.abs(_integers(2, columns, seed=9)) + 1
    values, indices = weighted_top_k(
        [device.array(block) for block in blocks],
        weights,
        k,
        exclude=device.array(own),
        scales=device.array(scales),
    )
    mask = np.arange(columns) == own[:, None]
    expected = reference.weighted_top_k(blocks, weights, k, mask, scales)
    np.testing.assert_array_equal(device.numpy(indices), expected[1])
    np.testing.assert_array_equal(device.numpy(values), expected[0])
