"""tile, untile and smooth_seams beside a copy into a newly allocated array and the loops they replace.

The ceiling is a copy of as many bytes as the output has, by the same framework, in the same run. Every result
is kept until its round is over, so that all sides write to memory they have just been given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from common import (
    DeviceCopy,
    Rotating,
    bandwidth_share,
    interleaved,
    interleaved_on_gpu,
    peak_memory,
    ratio,
)

from ensemblead.kernels.tiling import smooth_seams, tile, untile

TARGET = 0.6  # of the speed of the copy
REPEATS = 5
WORKLOADS = {
    "8x3x512x512, tile 256 stride 128": ((8, 3, 512, 512), 256, 128),
    "1x3x2048x2048, tile 256 stride 128": ((1, 3, 2048, 2048), 256, 128),
    "1x3x2048x2048, tile 512 stride 512": ((1, 3, 2048, 2048), 512, 512),
}
CELLS = [
    pytest.param(framework, dtype, workload, id=f"{framework}-{dtype}-{workload}")
    for workload in WORKLOADS
    for framework, dtype in [
        ("numpy", "float32"),
        ("numpy", "uint8"),
        ("torch", "float32"),
        ("torch", "uint8"),
        ("torch", "bfloat16"),
    ]
]


def make_images(framework: str, dtype: str, shape: tuple[int, ...]) -> Any:
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    if framework == "numpy":
        return values.astype(dtype)
    torch = pytest.importorskip("torch")
    return torch.from_numpy(values).to(getattr(torch, dtype))


def copy(array: Any) -> Any:
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


# --- what a straightforward program does: a loop over tiles and a count buffer ------------------------


def naive_tile(images: Any, tile_size: int, stride: int) -> Any:
    height, width = images.shape[-2:]
    pad = [-(n - tile_size) % stride for n in (height, width)]
    numpy = isinstance(images, np.ndarray)
    if numpy:
        images = np.pad(images, ((0, 0), (0, 0), (0, pad[0]), (0, pad[1])))
    else:
        torch = pytest.importorskip("torch")
        images = torch.nn.functional.pad(images, (0, pad[1], 0, pad[0]))
    stack = np.stack if numpy else torch.stack
    rows = []
    for y in range(0, images.shape[-2] - tile_size + 1, stride):
        starts = range(0, images.shape[-1] - tile_size + 1, stride)
        rows.append(stack([images[..., y : y + tile_size, x : x + tile_size] for x in starts]))
    return stack(rows)


def naive_untile(tiles: Any, image_size: tuple[int, int], stride: int) -> Any:
    rows, cols, batch, channels, h, w = tiles.shape
    shape = (batch, channels, (rows - 1) * stride + h, (cols - 1) * stride + w)
    if isinstance(tiles, np.ndarray):
        total, counts = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    else:
        torch = pytest.importorskip("torch")
        total, counts = torch.zeros(shape), torch.zeros(shape)
    for i in range(rows):
        for j in range(cols):
            y, x = i * stride, j * stride
            total[..., y : y + h, x : x + w] += tiles[i, j]
            counts[..., y : y + h, x : x + w] += 1
    mean = (total / counts)[..., : image_size[0], : image_size[1]]
    return mean.astype(tiles.dtype) if isinstance(tiles, np.ndarray) else mean.to(tiles.dtype)


def naive_smooth(maps: Any, tile_size: int, stride: int) -> Any:
    """Blurs everything with SciPy, then copies the bands."""
    ndimage = pytest.importorskip("scipy.ndimage")
    host = maps if isinstance(maps, np.ndarray) else maps.float().numpy()
    blurred = ndimage.gaussian_filter(host, sigma=(0, 0, 2.0, 2.0), mode="reflect", truncate=4.0)
    smoothed, r = host.copy(), int(0.1 * tile_size)
    for axis, size in ((-2, host.shape[-2]), (-1, host.shape[-1])):
        starts = range(0, size - tile_size + stride, stride)
        for edge in {edge for start in starts for edge in (start, start + tile_size) if 0 < edge < size}:
            band = np.s_[..., edge - r : edge + r, :] if axis == -2 else np.s_[..., edge - r : edge + r]
            smoothed[band] = blurred[band]
    if isinstance(maps, np.ndarray):
        return smoothed
    return pytest.importorskip("torch").from_numpy(smoothed).to(maps.dtype)


# --- the measurements ---------------------------------------------------------------------------------


def keeping(call: Callable[[], Any], kept: list[Any]) -> Callable[[], None]:
    return lambda: kept.append(call())


def compare(figures: Any, what: str, ours: Any, naive: Any, like: Any, peak: int) -> None:
    """Times ours, the loops and the copy in turn; `like` has the size of the output."""
    kept: list[Any] = []

    def fresh_copy() -> None:
        kept.append(copy(like))

    def release() -> None:
        kept.clear()

    calls = {"ours": keeping(ours, kept), "copy": fresh_copy, "naive": keeping(naive, kept)}
    # `release` is part of the round, timed but never compared.
    timings = interleaved({**calls, "release": release}, repeats=REPEATS)
    speed = ratio(timings["copy"], timings["ours"])
    faster = ratio(timings["naive"], timings["ours"])
    output, milliseconds = like.nbytes, timings["ours"].median * 1e3
    figures.add(
        f"{what}: speed of a copy",
        speed,
        "x",
        at_least=TARGET,
        note=f"{faster:.1f}x the loops; {milliseconds:.2f} ms; peak {peak / output:.2f}x output",
        timings=timings,
        peak_bytes=peak,
        output_bytes=output,
        naive_over_ours=faster,
    )


def prepare(framework: str, dtype: str, shape: tuple[int, ...], tiling: tuple[int, int] | None) -> Any:
    images = make_images(framework, dtype, shape)
    return images if tiling is None else tile(images, *tiling)


def run_tile(images: Any, tile_size: int, stride: int) -> Any:
    return tile(images, tile_size, stride)


def run_untile(tiles: Any, image_size: tuple[int, int], stride: int) -> Any:
    return untile(tiles, image_size, stride)


def run_smooth(maps: Any, tile_size: int, stride: int) -> Any:
    return smooth_seams(maps, tile_size, stride)


def warm_up(framework: str) -> None:
    """Starts the threads, whose stacks are no part of a call's memory."""
    images = make_images(framework, "float32", (1, 1, 1024, 1024))
    smooth_seams(untile(tile(images, 256, 128), 1024, 128), 256)


@pytest.mark.parametrize(("framework", "dtype", "workload"), CELLS)
def test_tile(benchmark: Any, figures: Any, framework: str, dtype: str, workload: str) -> None:
    shape, tile_size, stride = WORKLOADS[workload]
    images = make_images(framework, dtype, shape)
    tiles = benchmark.pedantic(tile, (images, tile_size, stride), rounds=5, warmup_rounds=1)
    peak = peak_memory(
        functools.partial(prepare, framework, dtype, shape, None),
        functools.partial(run_tile, tile_size=tile_size, stride=stride),
        warm_up=functools.partial(warm_up, framework),
    )
    ours = functools.partial(tile, images, tile_size, stride)
    naive = functools.partial(naive_tile, images, tile_size, stride)
    assert bool((naive() == tiles).all())
    compare(figures, f"tile {framework} {dtype} {workload}", ours, naive, tiles, peak)


FLOAT_CELLS = [cell for cell in CELLS if cell.values[1] != "uint8"]


@pytest.mark.parametrize(("framework", "dtype", "workload"), FLOAT_CELLS)
def test_untile(benchmark: Any, figures: Any, framework: str, dtype: str, workload: str) -> None:
    shape, tile_size, stride = WORKLOADS[workload]
    images = make_images(framework, dtype, shape)
    tiles = tile(images, tile_size, stride)
    back = benchmark.pedantic(untile, (tiles, shape[2:], stride), rounds=5, warmup_rounds=1)
    assert bool((back == images).all())
    peak = peak_memory(
        functools.partial(prepare, framework, dtype, shape, (tile_size, stride)),
        functools.partial(run_untile, image_size=shape[2:], stride=stride),
        warm_up=functools.partial(warm_up, framework),
    )
    ours = functools.partial(untile, tiles, shape[2:], stride)
    naive = functools.partial(naive_untile, tiles, shape[2:], stride)
    compare(figures, f"untile {framework} {dtype} {workload}", ours, naive, images, peak)


@pytest.mark.parametrize(("framework", "dtype", "workload"), FLOAT_CELLS)
def test_smooth_seams(benchmark: Any, figures: Any, framework: str, dtype: str, workload: str) -> None:
    shape, tile_size, stride = WORKLOADS[workload]
    maps = make_images(framework, dtype, shape)
    benchmark.pedantic(smooth_seams, (maps, tile_size, stride), rounds=5, warmup_rounds=1)
    peak = peak_memory(
        functools.partial(prepare, framework, dtype, shape, None),
        functools.partial(run_smooth, tile_size=tile_size, stride=stride),
        warm_up=functools.partial(warm_up, framework),
    )
    ours = functools.partial(smooth_seams, maps, tile_size, stride)
    naive = functools.partial(naive_smooth, maps, tile_size, stride)
    compare(figures, f"smooth_seams {framework} {dtype} {workload}", ours, naive, maps, peak)


# --- on a GPU: memory is the ceiling, so bytes read and written are held against a copy's ---------------

GPU_TARGET = 0.7
GPU_CELLS = [
    pytest.param(dtype, shape, id=f"{dtype}-{'x'.join(map(str, shape))}")
    for dtype in ("float32", "bfloat16", "uint8")
    for shape in ((32, 3, 512, 512), (2, 3, 2048, 2048))
]


@pytest.mark.parametrize(("dtype", "shape"), GPU_CELLS)
@pytest.mark.parametrize("operation", ["tile", "untile", "smooth_seams"])
def test_gpu(figures: Any, gpu: str, operation: str, dtype: str, shape: tuple[int, ...]) -> None:
    if operation != "tile" and dtype == "uint8":
        pytest.skip("for floating point only")
    images = make_images("torch", dtype, shape)
    inputs = tile(images, 256, 128) if operation == "untile" else images
    call = {
        "tile": functools.partial(run_tile, tile_size=256, stride=128),
        "untile": functools.partial(run_untile, image_size=shape[2:], stride=128),
        "smooth_seams": functools.partial(run_smooth, tile_size=256, stride=128),
    }[operation]
    expected = call(inputs)
    ours = Rotating(call, [[inputs.cuda()] for _ in range(3)])
    output: Any = ours()
    assert float((output.cpu().float() - expected.float()).abs().max()) <= (1e-3 if dtype == "float32" else 2)
    moved, copy = inputs.nbytes + output.nbytes, DeviceCopy()
    timings = interleaved_on_gpu({"copy": copy, "ours": ours})
    sides = "x".join(map(str, shape))
    figures.add(
        f"{operation} {dtype} {sides}, tile 256 stride 128: share of the copy's bandwidth",
        bandwidth_share(moved, timings["ours"], copy, timings["copy"]),
        "x",
        at_least=GPU_TARGET,
        device=gpu,
        note=f"{timings['ours'].median * 1e3:.3f} ms; {moved / timings['ours'].median / 1e12:.2f} TB/s",
        timings=timings,
    )
