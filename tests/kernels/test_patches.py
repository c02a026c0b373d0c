from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference
from support.instruction_sets import skip_without

from ensemblead import _core
from ensemblead.kernels.patches import aggregate_patches

Shapes = Sequence[tuple[int, int, int, int]]

WR50 = [(2, 512, 28, 28), (2, 1024, 14, 14)]


def make_maps(shapes: Shapes, dtype: str = "float32", seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32).astype(dtype) for shape in shapes]


def per_layer(pretrain_dim: int | Sequence[int], layers: int) -> Sequence[int]:
    return [pretrain_dim] * layers if isinstance(pretrain_dim, int) else pretrain_dim


def check(
    maps: Sequence[np.ndarray[Any, Any]],
    patch_size: int = 3,
    pretrain_dim: int | Sequence[int] = 1024,
    target_dim: int = 1024,
    mode: Any = "adaptive",
) -> None:
    got = aggregate_patches(
        maps, patch_size=patch_size, pretrain_dim=pretrain_dim, target_dim=target_dim, mode=mode
    )
    expected = reference.aggregate_patches(
        maps, patch_size, per_layer(pretrain_dim, len(maps)), target_dim, mode
    )
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    largest = max(np.abs(feature_map.astype(np.float64)).max() for feature_map in maps)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * largest)


def channels_last(feature_map: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(feature_map.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


# --- against the definition -----------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    layers = draw(st.integers(1, 3))
    batch = draw(st.integers(1, 3))
    shapes = [
        (batch, draw(st.integers(1, 40)), draw(st.integers(1, 21)), draw(st.integers(1, 37)))
        for _ in range(layers)
    ]
    return {
        "maps": make_maps(shapes, draw(st.sampled_from(["float32", "float16"])), draw(st.integers(0, 99))),
        "patch_size": draw(st.sampled_from([1, 3, 5, 7])),
        "pretrain_dim": [draw(st.integers(1, 200)) for _ in range(layers)],
        "target_dim": draw(st.integers(1, 200)),
        "mode": draw(st.sampled_from(["adaptive", "adaptive", "concat"])),
    }


@given(problems())
def test_equals_the_definition(problem: dict[str, Any]) -> None:
    check(**problem)


@given(problems())
def test_memory_order_does_not_matter(problem: dict[str, Any]) -> None:
    maps = problem.pop("maps")
    plain = aggregate_patches(maps, **problem)
    np.testing.assert_array_equal(aggregate_patches([channels_last(x) for x in maps], **problem), plain)


@pytest.mark.parametrize(
    ("shapes", "patch_size", "pretrain_dim", "target_dim"),
    [
        (WR50, 3, 1024, 1024),
        ([(1, 64, 28, 28), (1, 128, 14, 14)], 3, 1024, 1024),  # more dimensions than bins have values
        ([(1, 256, 12, 12), (1, 640, 6, 6)], 3, [300, 500], 333),  # bins cut through channels and layers
        (
            [(1, 100, 9, 11), (1, 37, 4, 3)],
            5,
            [5, 4],
            1,
        ),  # one dimension reads more channels than are held at once
        ([(1, 3, 130, 70), (1, 4, 65, 140)], 3, 7, 5),  # several bands of rows
        ([(1, 5, 3, 4), (1, 5, 200, 100)], 3, 4, 6),  # a later layer much larger than the first
        ([(1, 4, 1, 3000)], 3, 9, 4),  # a single row wider than a band
        ([(2, 3, 2, 2), (2, 2, 1, 1)], 9, 50, 31),  # a window larger than the grid
    ],
)
def test_special_sizes(
    shapes: Shapes, patch_size: int, pretrain_dim: int | Sequence[int], target_dim: int
) -> None:
    check(make_maps(shapes), patch_size, pretrain_dim, target_dim)
    check([channels_last(x) for x in make_maps(shapes)], patch_size, pretrain_dim, target_dim)


def test_window_far_larger_than_the_grid() -> None:
    """Window offsets that reach only padding cost nothing; every position then averages the whole map."""
    maps = make_maps([(1, 3, 4, 5)])
    size = 1001
    got = aggregate_patches(maps, patch_size=size, mode="concat")
    total = maps[0].astype(np.float64).sum(axis=(2, 3)) / size**2
    np.testing.assert_allclose(got, np.broadcast_to(total[:, None, None], got.shape), rtol=1e-5, atol=1e-12)


def windows(feature_map: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return reference.unfold(feature_map.astype(np.float64), 3)


def test_worked_case_512_channels() -> None:
    """Output j is channel j under a 3x3 filter, 0.2 in the centre and 0.1 elsewhere."""
    maps = make_maps([(1, 512, 7, 9), (1, 512, 7, 9)])
    filter_ = np.full((3, 3), 0.1)
    filter_[1, 1] = 0.2
    for layer, rows in enumerate(np.split(aggregate_patches(maps), 2, axis=-1)):
        expected = np.einsum("bcyxhw,yx->bhwc", windows(maps[layer]), filter_)
        np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_worked_case_1024_channels() -> None:
    """Output j is the mean over channels 2j, 2j + 1 of the 3x3 average, padding counted."""
    maps = make_maps([(1, 1024, 5, 6), (1, 1024, 5, 6)])
    for layer, rows in enumerate(np.split(aggregate_patches(maps), 2, axis=-1)):
        means = windows(maps[layer]).mean(axis=(2, 3)).reshape(1, 512, 2, 5, 6).mean(axis=2)
        np.testing.assert_allclose(rows, np.moveaxis(means, 1, -1), atol=1e-5)


def explicit_pipeline(
    torch: Any, maps: Sequence[Any], patch_size: int, pretrain_dim: int, target_dim: int
) -> Any:
    functional = torch.nn.functional
    batch, (height, width) = maps[0].shape[0], maps[0].shape[2:]
    layers = []
    for x in maps:
        unfolded = functional.unfold(x, patch_size, padding=(patch_size - 1) // 2)
        planes = unfolded.reshape(batch, -1, *x.shape[2:])
        planes = functional.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
        rows = planes.permute(0, 2, 3, 1).reshape(batch * height * width, 1, -1)
        layers.append(functional.adaptive_avg_pool1d(rows, pretrain_dim))
    joined = torch.stack(layers, dim=1).reshape(batch * height * width, 1, -1)
    return functional.adaptive_avg_pool1d(joined, target_dim).reshape(batch, height, width, target_dim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "patch_size", "pretrain_dim", "target_dim"),
    [(WR50, 3, 1024, 1024), ([(2, 96, 9, 13), (2, 40, 5, 7), (2, 8, 18, 3)], 5, 64, 100)],
)
def test_explicit_unfold_pipeline(
    shapes: Shapes, patch_size: int, pretrain_dim: int, target_dim: int
) -> None:
    torch = pytest.importorskip("torch")
    maps = [torch.from_numpy(x) for x in make_maps(shapes)]
    expected = explicit_pipeline(torch, [x.double() for x in maps], patch_size, pretrain_dim, target_dim)
    got = aggregate_patches(maps, patch_size=patch_size, pretrain_dim=pretrain_dim, target_dim=target_dim)
    largest = max(float(x.abs().max()) for x in maps)
    assert float((got - expected).abs().max()) <= 1e-5 * largest


# --- parameters -----------------------------------------------------------------------------------


def test_auto_keeps_the_channel_count_of_small_layers() -> None:
    maps = make_maps([(1, 128, 6, 6), (1, 256, 3, 3)])
    got = aggregate_patches(maps, pretrain_dim="auto", target_dim=1024)
    assert got.shape[-1] == 384
    np.testing.assert_array_equal(got, aggregate_patches(maps, pretrain_dim=[128, 256], target_dim=384))


def test_auto_pools_large_layers_to_1024() -> None:
    maps = make_maps([(1, 511, 3, 3), (1, 512, 2, 2)])
    got = aggregate_patches(maps, pretrain_dim="auto", target_dim=2000)
    np.testing.assert_array_equal(got, aggregate_patches(maps, pretrain_dim=[511, 1024], target_dim=1535))


def test_concat_ignores_the_dimensions() -> None:
    maps = make_maps([(1, 6, 6, 6), (1, 5, 3, 3)])
    got = aggregate_patches(maps, mode="concat")
    assert got.shape[-1] == 11
    other = aggregate_patches(maps, mode="concat", pretrain_dim=[2, 3], target_dim=4)
    np.testing.assert_array_equal(got, other)


def test_patch_size_one_concat_is_a_transpose() -> None:
    maps = make_maps([(2, 37, 5, 19)])
    got = aggregate_patches(maps, patch_size=1, mode="concat")
    np.testing.assert_array_equal(got, maps[0].transpose(0, 2, 3, 1))


def test_integers_of_numpy_are_integers() -> None:
    maps = make_maps([(1, 6, 4, 4)])
    got = aggregate_patches(maps, patch_size=np.int64(3), pretrain_dim=np.int32(5), target_dim=np.int64(4))
    np.testing.assert_array_equal(got, aggregate_patches(maps, pretrain_dim=5, target_dim=4))


def test_configurations_beyond_the_cache_and_back() -> None:
    """More configurations than are kept, each still right when it comes round again."""
    maps = make_maps([(1, 9, 4, 4), (1, 7, 2, 2)])
    first = [aggregate_patches(maps, pretrain_dim=8, target_dim=dim) for dim in range(1, 41)]
    for dim in range(1, 41):
        again = aggregate_patches(maps, pretrain_dim=8, target_dim=dim)
        np.testing.assert_array_equal(again, first[dim - 1])
    check(maps, 3, 8, 40)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_features_spread_as_far_as_their_window(value: float) -> None:
    maps = make_maps([(1, 512, 9, 9), (1, 512, 9, 9)])
    maps[0][0, 100, 4, 5] = value
    got = aggregate_patches(maps)
    finite = np.isfinite(got)
    hit = np.argwhere(~finite)
    assert {tuple(where[1:3]) for where in hit} == {(y, x) for y in (3, 4, 5) for x in (4, 5, 6)}
    assert set(hit[:, 3]) == {100}
    np.testing.assert_array_equal(got[~finite], np.full(9, value, dtype=np.float32))


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [3, 8, 14, 28, 33])
def test_frameworks_and_dtypes(cpu_device: Any, dtype: str, width: int) -> None:
    if not cpu_device.supports(dtype):
        pytest.skip(f"{cpu_device} has no {dtype}")
    shapes = [(2, 20, 5, width), (2, 35, 3, 9)]
    maps = [cpu_device.array(x, dtype) for x in make_maps(shapes)]
    got = aggregate_patches(maps, pretrain_dim=30, target_dim=33)
    assert cpu_device.is_own(got)
    assert cpu_device.dtype(got) == "float32"
    rounded = [cpu_device.numpy(x).astype(np.float32) for x in maps]
    expected = aggregate_patches(rounded, pretrain_dim=30, target_dim=33)
    np.testing.assert_array_equal(cpu_device.numpy(got), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [3, 8, 14, 28, 33])
def test_on_cuda(cuda_device: Any, dtype: str, width: int) -> None:
    if not cuda_device.supports(dtype):
        pytest.skip(f"{cuda_device} has no {dtype}")
    shapes = [(2, 20, 5, width), (2, 35, 3, 9), (2, 64, 5, width)]
    maps = [cuda_device.array(x, dtype) for x in make_maps(shapes)]
    rounded = [cuda_device.numpy(x).astype(np.float32) for x in maps]
    bound = 1e-5 * max(float(np.abs(x).max()) for x in rounded)
    for mode in ("adaptive", "concat"):
        got = aggregate_patches(maps, pretrain_dim=30, target_dim=33, mode=mode)
        assert cuda_device.is_own(got)
        expected = aggregate_patches(rounded, pretrain_dim=30, target_dim=33, mode=mode)
        np.testing.assert_allclose(cuda_device.numpy(got), expected, rtol=0, atol=bound)
        if cuda_device.framework == "torch":  # as a network on a GPU gives them
            last = [x.to(memory_format=cuda_device.module.channels_last) for x in maps]
            got = aggregate_patches(last, pretrain_dim=30, target_dim=33, mode=mode)
            np.testing.assert_allclose(cuda_device.numpy(got), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_channels_last(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    maps = [torch.from_numpy(x).to(getattr(torch, dtype)) for x in make_maps([(2, 35, 5, 19), (2, 8, 3, 40)])]
    got = aggregate_patches([x.to(memory_format=torch.channels_last) for x in maps], target_dim=50)
    assert got.is_contiguous()
    assert torch.equal(got, aggregate_patches(maps, target_dim=50))


def test_read_only_maps_are_fine() -> None:
    maps = make_maps([(1, 8, 4, 4)])
    expected = aggregate_patches(maps, target_dim=8)
    maps[0].flags.writeable = False
    np.testing.assert_array_equal(aggregate_patches(maps, target_dim=8), expected)


def test_maps_that_start_anywhere() -> None:
    """No more than the alignment of an element is assumed, of inputs and of the output."""
    maps = make_maps([(1, 48, 7, 17), (1, 64, 4, 9)])
    expected = aggregate_patches(maps, target_dim=64)
    for offset in (1, 2, 3):
        moved = []
        for x in maps:
            memory = np.empty(x.size + offset, dtype=np.float32)
            memory[offset:] = x.ravel()
            moved.append(memory[offset:].reshape(x.shape))
        output = np.empty(expected.size + offset, dtype=np.float32)[offset:].reshape(expected.shape)
        _core.aggregate_patches(moved, output, 3, [1024, 1024], 64, "adaptive", num_threads=1)
        np.testing.assert_array_equal(output, expected)


def test_only_the_output_is_written() -> None:
    """Nothing before or behind it, also where rows are written past the caches."""
    maps = make_maps([(3, 64, 28, 28), (3, 64, 14, 14)])
    for dims in (512, 500):
        size = 3 * 28 * 28 * dims
        memory = np.full(size + 128, 7.0, dtype=np.float32)
        start = 64 - memory.ctypes.data % 64 // 4
        output = memory[start : start + size].reshape(3, 28, 28, dims)
        _core.aggregate_patches(maps, output, 3, [512, 512], dims, "adaptive", num_threads=2)
        assert (memory[:start] == 7).all()
        assert (memory[start + size :] == 7).all()
        expected = reference.aggregate_patches(maps, 3, [512, 512], dims, "adaptive")
        np.testing.assert_allclose(output, expected, atol=5e-5)


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [np.ascontiguousarray, channels_last])
def test_any_number_of_threads_gives_the_same_bits(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [order(x) for x in make_maps([(3, 70, 45, 31), (3, 90, 20, 17)])]
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr("ensemblead.kernels.arrays.num_threads", lambda count=threads: count)
        results.append(aggregate_patches(maps, patch_size=5, pretrain_dim=100, target_dim=90))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_concurrent_callers() -> None:
    """Several threads at once, on configurations that push each other out of the cache."""
    maps = make_maps([(1, 40, 15, 15), (1, 30, 8, 8)])
    expected = {dim: aggregate_patches(maps, pretrain_dim=50, target_dim=dim) for dim in range(30, 60)}
    wrong: list[int] = []

    def work(first: int) -> None:
        for dim in [*range(first, 60), *range(30, first)]:
            if not np.array_equal(aggregate_patches(maps, pretrain_dim=50, target_dim=dim), expected[dim]):
                wrong.append(dim)

    threads = [threading.Thread(target=work, args=(first,)) for first in (30, 37, 44, 51)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


_ON_ONE_SET = """
import sys
import numpy as np
from ensemblead import _core
from ensemblead.kernels.patches import aggregate_patches
assert _core.instruction_set() == sys.argv[1], _core.instruction_set()
inputs = np.load(sys.argv[2])
results = {}
for name in ("float32", "float16"):
    maps = [inputs[key].astype(name) for key in ("first", "second")]
    last = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in maps]
    results[name] = aggregate_patches(maps, pretrain_dim=60, target_dim=75)
    results[name + "_last"] = aggregate_patches(last, pretrain_dim=60, target_dim=75)
results["streamed"] = aggregate_patches([inputs["large"]], pretrain_dim=512, target_dim=512)
np.savez(sys.argv[3], **results)
"""


@pytest.mark.parametrize("instruction_set", ["baseline", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set(instruction_set: str, tmp_path: Path) -> None:
    skip_without(instruction_set)
    names = ["first", "second", "large"]
    shapes = [(1, 40, 13, 29), (1, 30, 7, 9), (1, 64, 64, 48)]
    maps = dict(zip(names, make_maps(shapes), strict=True))
    np.savez(tmp_path / "in.npz", **maps)
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    subprocess.run(
        [
            sys.executable,
            "-c",
            _ON_ONE_SET,
            instruction_set,
            str(tmp_path / "in.npz"),
            str(tmp_path / "out.npz"),
        ],
        env=environment,
        check=True,
    )
    with np.load(tmp_path / "out.npz") as found:
        for dtype in ("float32", "float16"):
            used = [maps[name].astype(dtype) for name in ("first", "second")]
            expected = reference.aggregate_patches(used, 3, [60, 60], 75, "adaptive")
            np.testing.assert_allclose(found[dtype], expected, atol=5e-5)
            np.testing.assert_array_equal(found[dtype + "_last"], found[dtype])
        expected = reference.aggregate_patches([maps["large"]], 3, [512], 512, "adaptive")
        np.testing.assert_allclose(found["streamed"], expected, atol=5e-5)


# --- bad input ------------------------------------------------------------------------------------


def a_map(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("maps", "options", "error", "message"),
    [
        ([], {}, ValueError, "feature_maps is empty"),
        (
            a_map(1, 2, 3, 3),
            {},
            TypeError,
            "feature_maps must be a list of arrays, one per layer, got ndarray",
        ),
        ([[1.0]], {}, TypeError, r"feature_maps\[0\] must be a NumPy, CuPy or torch array, got list"),
        (
            [a_map(2, 3, 3)],
            {},
            ValueError,
            r"feature_maps\[0\] must be 4-D \[B, C, H, W\], got shape \(2, 3, 3\)",
        ),
        (
            [a_map(1, 2, 3, 3), a_map(1, 2, 3)],
            {},
            ValueError,
            r"feature_maps\[1\] must be 4-D \[B, C, H, W\], got shape \(1, 2, 3\)",
        ),
        (
            [a_map(1, 2, 3, 3, dtype="float64")],
            {},
            TypeError,
            r"feature_maps\[0\] must be float32, float16 or bfloat16, got float64",
        ),
        (
            [a_map(1, 2, 3, 3), a_map(1, 2, 3, 3, dtype="float16")],
            {},
            TypeError,
            r"feature_maps\[1\] has dtype float16 but feature_maps\[0\] has float32",
        ),
        ([a_map(0, 2, 3, 3)], {}, ValueError, r"feature_maps\[0\] is empty, got shape \(0, 2, 3, 3\)"),
        ([a_map(1, 2, 3, 3), a_map(1, 2, 0, 3)], {}, ValueError, r"feature_maps\[1\] is empty"),
        ([a_map(1, 0, 3, 3)], {"mode": "concat"}, ValueError, r"feature_maps\[0\] is empty"),
        (
            [a_map(2, 2, 3, 3), a_map(1, 2, 3, 3)],
            {},
            ValueError,
            r"feature_maps\[1\] has batch size 1 but feature_maps\[0\] has 2",
        ),
        (
            [a_map(1, 2, 3, 6)[..., ::2]],
            {},
            ValueError,
            r"feature_maps\[0\] is not contiguous .*; pass a contiguous array",
        ),
        ([a_map(2, 2, 4, 3).transpose(0, 1, 3, 2)], {}, ValueError, "pass a contiguous array"),
        ([a_map(1, 2, 3, 3)], {"patch_size": 2}, ValueError, "patch_size must be odd, got 2"),
        ([a_map(1, 2, 3, 3)], {"patch_size": 0}, ValueError, "patch_size must be at least 1, got 0"),
        ([a_map(1, 2, 3, 3)], {"patch_size": -3}, ValueError, "patch_size must be at least 1, got -3"),
        ([a_map(1, 2, 3, 3)], {"patch_size": 40001}, ValueError, "patch_size must be below 32768, got 40001"),
        ([a_map(1, 9, 3, 3)], {"patch_size": 32767}, ValueError, "patch_size is too large .* got 32767"),
        ([a_map(1, 2, 3, 3)], {"patch_size": 3.0}, TypeError, "patch_size must be an integer, got float"),
        ([a_map(1, 2, 3, 3)], {"patch_size": True}, TypeError, "patch_size must be an integer, got bool"),
        ([a_map(1, 2, 3, 3)], {"target_dim": 0}, ValueError, "target_dim must be at least 1, got 0"),
        ([a_map(1, 2, 3, 3)], {"target_dim": 2**31}, ValueError, "target_dim must be below 2147483648"),
        ([a_map(1, 2, 3, 3)], {"target_dim": None}, TypeError, "target_dim must be an integer, got NoneType"),
        ([a_map(1, 2, 3, 3)], {"pretrain_dim": 0}, ValueError, "pretrain_dim must be at least 1, got 0"),
        ([a_map(1, 2, 3, 3)], {"pretrain_dim": 2**40}, ValueError, "pretrain_dim is too large"),
        (
            [a_map(1, 2, 3, 3)],
            {"pretrain_dim": [4, -1]},
            ValueError,
            "pretrain_dim must be at least 1, got -1",
        ),
        (
            [a_map(1, 2, 3, 3)],
            {"pretrain_dim": [4, 4]},
            ValueError,
            r"pretrain_dim must have one value per layer \(1\), got 2",
        ),
        (
            [a_map(1, 2, 3, 3)],
            {"pretrain_dim": "all"},
            ValueError,
            "pretrain_dim must be .*'auto', got 'all'",
        ),
        (
            [a_map(1, 2, 3, 3)],
            {"pretrain_dim": [4.0]},
            TypeError,
            "pretrain_dim must be an integer, got float",
        ),
        (
            [a_map(1, 2, 3, 3)],
            {"mode": "mean"},
            ValueError,
            "mode must be 'adaptive' or 'concat', got 'mean'",
        ),
        ([a_map(1, 2, 3, 3)], {"mode": 1}, TypeError, "mode must be 'adaptive' or 'concat', got int"),
    ],
)
def test_bad_input(maps: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aggregate_patches(maps, **options)


def test_frameworks_do_not_mix() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"feature_maps\[1\] is a torch array but feature_maps\[0\] a numpy"):
        aggregate_patches([a_map(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)])


def test_maps_that_require_grad_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"feature_maps\[0\] cannot be read: .*grad"):
        aggregate_patches([torch.zeros(1, 2, 3, 3, requires_grad=True)])


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (a_map(1, 3, 3, 5), ValueError, r"output must have shape \(1, 3, 3, 4\), got \(1, 3, 3, 5\)"),
        (a_map(1, 3, 3, 4, dtype="float64"), TypeError, "output must be float32, got float64"),
        (a_map(1, 3, 3, 8)[..., ::2], ValueError, "output is not contiguous"),
    ],
)
def test_the_core_checks_its_output(output: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core.aggregate_patches([a_map(1, 2, 3, 3)], output, 3, [8], 4, "adaptive", num_threads=1)


def test_the_core_refuses_a_read_only_output() -> None:
    output = a_map(1, 3, 3, 4)
    output.flags.writeable = False
    with pytest.raises(ValueError, match="output is read-only"):
        _core.aggregate_patches([a_map(1, 2, 3, 3)], output, 3, [8], 4, "adaptive", num_threads=1)
