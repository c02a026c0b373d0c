"""`aggregate_patches` beside the explicit unfold pipeline in torch, as the reference implementation runs it.

The workload is WideResNet50 at 224 pixels: layer2 [B, 512, 28, 28], layer3 [B, 1024, 14, 14], 1024 -> 1024.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from common import (  # noqa: E402
    DeviceCopy,
    Rotating,
    bandwidth_share,
    interleaved,
    interleaved_on_gpu,
    peak_memory,
    peak_on_gpu,
    ratio,
)
from record import FiguresOf  # noqa: E402

from ensemblead.kernels.patches import aggregate_patches  # noqa: E402

BATCH = 8
THREADS = 2


def make_maps(batch: int, dtype: str = "float32", channels_last: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 512, 28, 28), (batch, 1024, 14, 14)]
    maps = [torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for shape in shapes]
    return [x.to(memory_format=torch.channels_last) for x in maps] if channels_last else maps


@torch.inference_mode()  # type: ignore[untyped-decorator]
def unfold_pipeline(maps: Sequence[Any], dim: int = 1024) -> Any:
    """Unfold, resize every (c, ky, kx) plane, pool each layer to `dim`, then all of them: [B, H, W, dim]."""
    functional = torch.nn.functional
    batch, (height, width) = maps[0].shape[0], maps[0].shape[2:]
    layers = []
    for x in maps:
        planes = functional.unfold(x, 3, padding=1).reshape(batch, -1, *x.shape[2:])
        if x.shape[2:] != (height, width):
            planes = functional.interpolate(
                planes, size=(height, width), mode="bilinear", align_corners=False
            )
        rows = planes.permute(0, 2, 3, 1).reshape(batch * height * width, 1, -1)
        layers.append(functional.adaptive_avg_pool1d(rows, dim))
    joined = torch.stack(layers, dim=1).reshape(batch * height * width, 1, -1)
    return functional.adaptive_avg_pool1d(joined, dim).reshape(batch, height, width, dim)


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def set_up(batch: int) -> list[Any]:
    torch.set_num_threads(THREADS)
    return make_maps(batch)


def warm_up(function: Any) -> None:
    """A call so small that its scratch counts for nothing: that of the measured one is not there yet."""
    torch.set_num_threads(THREADS)
    function([torch.zeros(1, 32, 2, 2), torch.zeros(1, 32, 1, 1)])


def test_against_unfold(figures: FiguresOf) -> None:
    maps = make_maps(BATCH)
    source = torch.randn(BATCH, 28, 28, 1024)
    target = torch.empty_like(source)
    difference = float((aggregate_patches(maps) - unfold_pipeline(maps)).abs().max())
    assert difference <= 1e-5 * max(float(x.abs().max()) for x in maps)
    timings = interleaved(
        {
            "unfold": lambda: unfold_pipeline(maps),
            "ours": lambda: aggregate_patches(maps),
            "copy": lambda: target.copy_(source),
            "clone": source.clone,
        },
        repeats=9,
    )
    figures.add(
        f"WR50 at 224, batch {BATCH}, {THREADS} threads: unfold pipeline / ours",
        ratio(timings["unfold"], timings["ours"]),
        "x",
        at_least=15,
        timings=timings,
    )
    figures.add(
        "the same: ours / a copy of the output into a new array",
        ratio(timings["ours"], timings["clone"]),
        "x",
        timings=timings,
    )
    figures.add(
        "the same: ours / a copy of the output into an old array",
        ratio(timings["ours"], timings["copy"]),
        "x",
        timings=timings,
    )


@pytest.mark.parametrize("batch", [1, 32])
def test_other_batches(figures: FiguresOf, batch: int) -> None:
    maps = make_maps(batch)
    timings = interleaved(
        {"unfold": lambda: unfold_pipeline(maps), "ours": lambda: aggregate_patches(maps)}, repeats=5
    )
    what = f"WR50 at 224, batch {batch}, {THREADS} threads: unfold pipeline / ours"
    figures.add(what, ratio(timings["unfold"], timings["ours"]), "x", timings=timings)


def test_memory(figures: FiguresOf) -> None:
    output = BATCH * 28 * 28 * 1024 * 4
    for name, function, most in (
        ("ours", aggregate_patches, 10.0),
        ("unfold pipeline", unfold_pipeline, None),
    ):
        peak = peak_memory(
            functools.partial(set_up, BATCH), function, warm_up=functools.partial(warm_up, function)
        )
        figures.add(
            f"memory beyond input and output, batch {BATCH}: {name}",
            100 * max(0, peak - output) / output,
            "% of output",
            at_most=most,
        )


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("variant", ["float32", "float16", "bfloat16", "channels_last"])
def test_latency(benchmark: Any, variant: str, batch: int) -> None:
    dtype = "float32" if variant == "channels_last" else variant
    maps = make_maps(batch, dtype, variant == "channels_last")
    benchmark.pedantic(aggregate_patches, args=(maps,), rounds=9, iterations=3, warmup_rounds=2)


def test_latency_of_concat(benchmark: Any) -> None:
    maps = make_maps(BATCH)
    benchmark.pedantic(aggregate_patches, args=(maps,), kwargs={"mode": "concat"}, rounds=9, warmup_rounds=2)


GPU_BATCH = 64  # of the detectors' half precision: three quarters of a gigabyte in three sets


@pytest.mark.parametrize("mode", ["adaptive", "concat"])
@pytest.mark.parametrize("variant", ["bfloat16", "bfloat16 channels last", "float32"])
def test_gpu(figures: FiguresOf, gpu: str, variant: str, mode: str) -> None:
    sets = []
    for _ in range(3):
        maps = make_maps(GPU_BATCH, variant.split()[0], "channels last" in variant)
        sets.append([[x.cuda().contiguous(memory_format=_layout(x)) for x in maps]])
    copy = DeviceCopy()
    ours = Rotating(functools.partial(aggregate_patches, mode=mode), sets)
    output: Any = ours()
    moved = output.nbytes + sum(x.nbytes for x in sets[0][0])
    expected = aggregate_patches([x[:1].cpu() for x in sets[0][0]], mode=mode)
    assert float((output[:1].cpu() - expected).abs().max()) <= 1e-5 * float(expected.abs().max()) + 1e-6
    timings = interleaved_on_gpu({"copy": copy, "ours": ours})
    figures.add(
        f"WR50 at 224, batch {GPU_BATCH}, {variant}, {mode}: share of the copy's bandwidth",
        bandwidth_share(moved, timings["ours"], copy, timings["copy"]),
        "x",
        at_least=0.6,
        device=gpu,
        note=f"{timings['ours'].median * 1e3:.3f} ms; {moved / timings['ours'].median / 1e12:.2f} TB/s",
        timings=timings,
    )


def test_gpu_memory(figures: FiguresOf, gpu: str) -> None:
    maps = [x.cuda() for x in make_maps(GPU_BATCH, "bfloat16")]
    output = GPU_BATCH * 28 * 28 * 1024 * 4
    peak = peak_on_gpu(lambda: aggregate_patches(maps))
    figures.add(
        f"memory beyond input and output, batch {GPU_BATCH}: ours",
        100 * max(0, peak - output) / output,
        "% of output",
        at_most=10,
        device=gpu,
    )


def _layout(x: Any) -> Any:
    return (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
