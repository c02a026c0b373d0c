"""`select_coreset` beside NumPy's matrix product and the plain loop, and `project` beside NumPy's product.

The effective rate of a selection is 2 * N * D * M / time: the work of computing every distance once. Noise is
the worst case. Real features come from `--features FILE.npy` ([N, 128] float32); without it a synthetic
stand-in of low rank is measured under its own name, without targets. `--rows N` makes a quick trial.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from common import (
    Sgemm,
    Timing,
    interleaved,
    interleaved_on_gpu,
    peak_memory,
    peak_on_gpu,
    ratio,
)
from record import FiguresOf

from ensemblead.kernels.coreset import project, random_projection, select_coreset

ROWS, DIMS = 163_856, 128
TARGETS = {("noise", 0.01): 0.7, ("noise", 0.1): 0.7, ("real", 0.01): 3.0, ("real", 0.1): 5.0}
GPU_TARGETS = {0.01: 5.0, 0.1: 60.0}  # milliseconds, on an H200
TOLERANCE = 1e-4
STARTS = np.arange(10)
STAND_IN = "low-rank stand-in (synthetic)"


def noise(rows: int, dims: int = DIMS) -> Any:
    return np.random.default_rng(0).standard_normal((rows, dims), dtype=np.float32)


def stand_in(rows: int, dims: int = DIMS) -> Any:
    """Twelve directions of falling variance, and a little noise."""
    rng = np.random.default_rng(0)
    directions = (
        rng.standard_normal((12, dims), dtype=np.float32) / np.arange(1, 13, dtype=np.float32)[:, None]
    )
    features = rng.standard_normal((rows, 12), dtype=np.float32) @ directions
    return features + np.float32(0.03) * rng.standard_normal((rows, dims), dtype=np.float32)


def load(path: str, rows: int) -> Any:
    features = np.load(path)
    if features.ndim != 2 or features.dtype != np.float32:
        raise ValueError(f"--features must hold [N, D] float32, got {features.shape} {features.dtype}")
    return np.ascontiguousarray(features[:rows])


def source(config: pytest.Config, kind: str) -> tuple[str, Callable[[], Any]]:
    """The name in the table, and what makes the features."""
    rows = config.getoption("--rows") or ROWS
    if kind == "noise":
        return "noise", functools.partial(noise, rows)
    path = config.getoption("--features")
    if path:
        return "real features", functools.partial(load, path, rows)
    return STAND_IN, functools.partial(stand_in, rows)


def select(features: Any, fraction: float) -> Any:
    return select_coreset(features, fraction, projection_dim=None, start_indices=STARTS)


def plain_loop(features: Any, fraction: float) -> Any:
    """What a straightforward program does: norms once, then a product and a minimum per pick."""
    norms = np.einsum("ij,ij->i", features, features)
    distances = [np.sqrt(np.maximum(norms - 2 * features @ features[s] + norms[s], 0)) for s in STARTS]
    values = np.mean(distances, axis=0, dtype=np.float32) ** 2
    picks = np.empty(max(1, int(len(features) * fraction)), np.int64)
    for turn in range(len(picks)):
        pick = picks[turn] = values.argmax()
        np.minimum(values, norms - 2 * (features @ features[pick]) + norms[pick], out=values)
    return picks


def shortfall(features: Any, picks: Any, block: int = 64) -> float:
    """Replays the picks in float64: how far, at worst, one falls short of the largest value at its turn."""
    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    norms = np.einsum("ij,ij->i", x, x)

    def squares(rows: Any) -> Any:
        return np.maximum(norms - 2 * x[rows] @ x.T + norms[rows][:, None], 0)

    values = np.sqrt(squares(STARTS)).mean(axis=0) ** 2
    worst = 0.0
    for first in range(0, len(picks), block):
        chosen = picks[first : first + block]
        for pick, distances in zip(chosen, squares(chosen), strict=True):
            largest = values.max()
            if largest > 0:
                worst = max(worst, 1.0 - float(np.sqrt(values[pick] / largest)))
            np.minimum(values, distances, out=values)
    return worst


def shortfall_on_gpu(features: Any, picks: Any, block: int = 64) -> float:
    """The same of tensors, where they are: a CPU would take a minute for the 16,385 picks of 10 %."""
    import torch

    x = features.double()
    x -= x.mean(0)
    norms = x.square().sum(1)

    def squares(rows: Any) -> Any:
        return (norms - 2 * x[rows] @ x.T + norms[rows][:, None]).clamp_min_(0)

    values = squares(torch.from_numpy(STARTS).to(x.device)).sqrt().mean(0).square()
    worst = values.new_zeros(())
    for chosen in picks.split(block):
        for pick, distances in zip(chosen, squares(chosen), strict=True):
            largest = values.max().clamp_min(1e-300)
            worst = torch.maximum(worst, 1 - (values.take(pick) / largest).sqrt())
            values = torch.minimum(values, distances)
    return float(worst)


def rate_over_sgemm(timings: dict[str, Timing], sgemm: Sgemm, flops: float) -> float:
    return ratio(timings["sgemm"], timings["ours"]) * flops / sgemm.flops


@pytest.mark.parametrize("fraction", [0.01, 0.1])
@pytest.mark.parametrize("kind", ["noise", "real"])
def test_rate(request: pytest.FixtureRequest, figures: FiguresOf, kind: str, fraction: float) -> None:
    name, make = source(request.config, kind)
    features, sgemm = make(), Sgemm()
    picks = select(features, fraction)
    worst = shortfall(features, picks)
    assert worst <= TOLERANCE
    timings = interleaved({"sgemm": sgemm, "ours": lambda: select(features, fraction)}, repeats=5)
    rows, dims = features.shape
    judged = name != STAND_IN and not request.config.getoption("--rows")
    target = TARGETS[kind, fraction] if judged else None  # a trial of few rows meets none
    figures.add(
        f"{fraction:.0%} of {rows} x {dims}, {name}: effective rate",
        rate_over_sgemm(timings, sgemm, 2.0 * rows * dims * len(picks)),
        "x sgemm",
        at_least=target,
        note=f"{timings['ours'].median:.3f} s; replay within {worst:.1e}",
        timings=timings,
        sgemm_flops_per_second=sgemm.rate(timings["sgemm"]),
    )


@pytest.mark.parametrize("kind", ["noise", "real"])
def test_against_the_plain_loop(request: pytest.FixtureRequest, figures: FiguresOf, kind: str) -> None:
    name, make = source(request.config, kind)
    features = make()
    timings = interleaved(
        {"loop": lambda: plain_loop(features, 0.01), "ours": lambda: select(features, 0.01)}, repeats=5
    )
    what = f"1% of {len(features)} x {features.shape[1]}, {name}: plain NumPy loop / ours"
    figures.add(what, ratio(timings["loop"], timings["ours"]), "x", timings=timings)


@pytest.mark.parametrize("fraction", [0.01, 0.1])
@pytest.mark.parametrize("kind", ["noise", "real"])
def test_memory(request: pytest.FixtureRequest, figures: FiguresOf, kind: str, fraction: float) -> None:
    name, make = source(request.config, kind)
    rows, dims = make().shape
    peak = peak_memory(
        make,
        functools.partial(select, fraction=fraction),
        warm_up=functools.partial(select, noise(1000), 0.1),
    )
    figures.add(
        f"{fraction:.0%} of {rows} x {dims}, {name}: memory beyond the input",
        100 * peak / (rows * dims * 4),
        "% of input",
        note=f"{peak / 2**20:.0f} MiB",
    )


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("rows", [10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("make", [noise, stand_in], ids=["noise", "low-rank"])
def test_scaling(
    request: pytest.FixtureRequest, figures: FiguresOf, make: Any, rows: int, fraction: float
) -> None:
    most = request.config.getoption("--rows")
    if most and rows > most:
        pytest.skip(f"more than the {most} rows of this trial")
    features, sgemm = make(rows), Sgemm()
    timings = interleaved({"sgemm": sgemm, "ours": lambda: select(features, fraction)}, repeats=5)
    picks = max(1, int(rows * fraction))
    name = "noise" if make is noise else STAND_IN
    figures.add(
        f"scaling, {name}: {fraction:.1%} of {rows} x {DIMS}",
        timings["ours"].median,
        "s",
        note=f"{rate_over_sgemm(timings, sgemm, 2.0 * rows * DIMS * picks):.2f}x sgemm",
        timings=timings,
    )


def test_projection(request: pytest.FixtureRequest, figures: FiguresOf) -> None:
    rows = request.config.getoption("--rows") or ROWS
    features, weights = noise(rows, 1024), random_projection(1024, 128, 0)
    np.testing.assert_allclose(project(features, weights), features @ weights.T, atol=1e-4)
    timings = interleaved(
        {"numpy": lambda: np.matmul(features, weights.T), "ours": lambda: project(features, weights)},
        repeats=5,
    )
    what = f"project {rows} x 1024 to 128: NumPy's product / ours"
    note = f"{timings['ours'].median:.3f} s"
    figures.add(what, ratio(timings["numpy"], timings["ours"]), "x", note=note, timings=timings)


@pytest.mark.parametrize("fraction", [0.01, 0.1])
@pytest.mark.parametrize("kind", ["noise", "real"])
def test_gpu(
    request: pytest.FixtureRequest, figures: FiguresOf, gpu: str, kind: str, fraction: float
) -> None:
    import torch

    name, make = source(request.config, kind)
    features = make()
    rows, dims = features.shape
    placed = torch.from_numpy(features).cuda()
    picks = select(placed, fraction)
    worst = shortfall_on_gpu(placed, picks)
    assert worst <= TOLERANCE
    timings = interleaved_on_gpu({"ours": lambda: select(placed, fraction)})
    judged = not request.config.getoption("--rows")
    rate = 2e-12 * rows * dims * len(picks) / timings["ours"].median
    what = f"{fraction:.0%} of {rows} x {dims}, {name}"
    figures.add(
        f"{what}: time",
        timings["ours"].median * 1e3,
        "ms",
        at_most=GPU_TARGETS[fraction] if judged else None,
        device=gpu,
        note=f"replay within {worst:.1e}; effectively {rate:.1f} TFLOP/s",
        timings=timings,
    )
    peak = peak_on_gpu(lambda: select(placed, fraction))
    figures.add(
        f"{what}: memory beyond the input",
        100 * peak / (rows * dims * 4),
        "% of input",
        at_most=10 if judged else None,
        device=gpu,
        note=f"{peak / 2**20:.1f} MiB",
    )


def test_gpu_projection(request: pytest.FixtureRequest, figures: FiguresOf, gpu: str) -> None:
    import torch

    rows = request.config.getoption("--rows") or ROWS
    features = torch.from_numpy(noise(rows, 1024)).cuda()
    weights = torch.from_numpy(random_projection(1024, 128, 0)).cuda()
    torch.testing.assert_close(project(features, weights), features @ weights.T, rtol=1e-4, atol=1e-4)
    timings = interleaved_on_gpu(
        {"torch": lambda: features @ weights.T, "ours": lambda: project(features, weights)}
    )
    what = f"project {rows} x 1024 to 128: torch's float32 product / ours"
    note = f"{timings['ours'].median * 1e3:.2f} ms"
    figures.add(what, ratio(timings["torch"], timings["ours"]), "x", device=gpu, note=note, timings=timings)
