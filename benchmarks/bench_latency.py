"""Latency of a single image: one decoded photograph of 512 x 512 pixels to its verdict, with everything warm.

    OMP_NUM_THREADS=2 python -m pytest benchmarks/bench_latency.py [--anomalib PYTHON] [--weights FOLDER]
        [--before CHECKOUT]

PatchCore by every engine and precision and as an exported model, with ResNet18, WideResNet50 and the preset
`patchcore-large`. `--anomalib PYTHON` is the interpreter of an environment with anomalib[openvino] 2.7: its
PatchCore is measured by torch and by its exports, in a process of its own (anomalib_latency.py), with as many
threads and as many rows in its bank. `--before CHECKOUT` is another checkout of this library with its core
built, whose PatchCore is measured by its defaults in the same way (checkout_latency.py). `--weights` is the
folder of bench_detection.py. A network without a file there has random weights (`network_weights`), and the
photographs are drawn.

All candidates take turns of several calls, round after round, so that ratios hold. Run it on a quiet machine.
`--images N --rows M --results FOLDER` is a trial with N rounds and banks of M rows.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("nncf")
pytest.importorskip("onnxruntime")

import numpy as np
import torch
from answering import answering, seconds_of_calls
from common import SETTLE, network_weights
from PIL import Image
from record import FiguresOf

import ensemblead as ead
from ensemblead.common.openvino import openvino_core
from ensemblead.networks.engines.openvino import cpu_capabilities

SIDE, FITTED, ROWS = 512, 16, 2048
QUANTIZED_WITH, VERIFIED_WITH = 4, 10
LARGE = "patchcore-large"
BATCH = 16
# The anchor of all rows: torch as it was before there were engines.
TORCH, INT8 = "torch float32", "OpenVINO int8"
ENGINES = {
    TORCH: ("torch", "float32"),
    "OpenVINO float32": ("openvino", "float32"),
    "OpenVINO bfloat16": ("openvino", "bfloat16"),
    INT8: ("openvino", "int8"),
}
EXPORTS = {
    "ONNX export float32": ("onnx", "float32"),
    "OpenVINO export float32": ("openvino", "float32"),
    "OpenVINO export bfloat16": ("openvino", "bfloat16"),
    "OpenVINO export int8": ("openvino", "int8"),
}
BARE = "the network alone, OpenVINO int8"
# A call takes the number of images to predict one by one, and returns the seconds of each.
Call = Callable[[int], list[float]]


@dataclass(frozen=True)
class Setup:
    """What is measured of one detector.

    Attributes:
        calls: in a turn. rounds: turns of every candidate. rows: of each bank.
        exports: names of `EXPORTS`.
        is_compared: whether anomalib has the like of it.
        faster, than_anomalib: targets, how many times as fast as torch, here and in an earlier checkout, and
            as anomalib's fastest export.
        around: a target, the time of `predict` over that of the network alone, in int8.
    """

    calls: int
    rounds: int
    rows: int = ROWS
    exports: tuple[str, ...] = tuple(EXPORTS)
    is_compared: bool = True
    faster: float | None = None
    than_anomalib: float | None = None
    around: float | None = None


SETUPS = {
    "resnet18": Setup(8, 20, faster=3.0, than_anomalib=2.0),
    "wide_resnet50_2": Setup(5, 16, around=1.25),
    LARGE: Setup(3, 8, exports=("OpenVINO export float32", "OpenVINO export int8"), is_compared=False),
}


def photographs(count: int) -> Any:
    """Blotches over fine grain, uint8 `[count, SIDE, SIDE, 3]`."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        blotches = Image.fromarray(rng.integers(60, 200, (16, 16, 3), dtype=np.uint8))
        pixels = np.asarray(blotches.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        made.append(np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8))
    return np.stack(made)


def unfitted(name: str, weights: Sequence[Path], rows: int) -> Any:
    options: dict[str, Any] = {"device": "cpu", "precision": "float32", "coreset_size": rows}
    if name == LARGE:
        return ead.BackboneEnsemble.patchcore_large(weights=weights, **options)
    return ead.PatchCore(name, weights=weights[0], **options)


def one_by_one(predict: Callable[[Any], object], images: Any) -> Call:
    """Calls with one image after the other, each `[1, H, W, 3]`."""
    return partial(seconds_of_calls, predict, images[:, None])


def engine_of(model: Path, choice: tuple[str, str], images: Any) -> Any:
    """A saved detector by an engine and precision."""
    engine, precision = choice
    detector = ead.load(model, engine=engine, precision="float32" if precision == "int8" else precision)
    if precision == "int8":
        detector.quantize(images, max_images=QUANTIZED_WITH)
    return detector


def exported(detector: Any, folder: Path, choice: tuple[str, str], images: Any) -> Any:
    form, precision = choice
    # How far scores move is not asked here: bounds are for real weights.
    allowed: dict[str, Any] = {"tolerance": 1.0, "allow_flag_changes": VERIFIED_WITH}
    detector.export(folder, format=form, precision=precision, verify=images[:VERIFIED_WITH], **allowed)
    return ead.load_exported(folder, threads=torch.get_num_threads())


def network_alone(detector: Any, size: int) -> Callable[[], object]:
    """The int8 network of a PatchCore as OpenVINO has it, for a batch that lies ready."""
    network = detector._frozen.network
    model = openvino_core("a benchmark").read_model(network.quantized.graph, network.quantized.constants)
    height, width = detector.geometry.output_size(SIDE, SIDE)
    model.reshape([size, 3, height, width])
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = openvino_core("a benchmark").compile_model(model, "CPU", settings).create_infer_request()
    values = np.random.default_rng(0).standard_normal((size, 3, height, width), dtype=np.float32)
    return lambda: request.infer([values], share_inputs=True)


@contextmanager
def anomalib_of(python: str, task: dict[str, Any], folder: Path) -> Iterator[dict[str, Call]]:
    """What anomalib's models, fitted and exported in a process of their own, are called by."""
    with answering(python, "anomalib_latency.py", folder) as other:
        names = other.ask(task)["candidates"]
        yield {f"anomalib, {own}": lambda count, own=own: other.ask([own, count]) for own in names}


@contextmanager
def checkout_of(before: Path, task: dict[str, Any], folder: Path) -> Iterator[dict[str, Call]]:
    """What the PatchCore of another checkout is called by, in a process of its own."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=before, capture_output=True, text=True, check=True).stdout.strip()
    with answering(sys.executable, "checkout_latency.py", folder) as other:
        other.ask({**task, "checkout": str(before.resolve())})
        yield {f"as of {commit}": other.ask}


def by_turns(candidates: dict[str, Call], setup: Setup) -> dict[str, list[list[float]]]:
    """Seconds of every call of every candidate, one list for each turn."""
    for call in candidates.values():
        call(2)
    found: dict[str, list[list[float]]] = {name: [] for name in candidates}
    for _ in range(setup.rounds):
        for name, call in candidates.items():
            gc.collect()
            time.sleep(SETTLE)
            found[name].append(call(setup.calls))
    return found


def times(slower: list[list[float]], faster: list[list[float]]) -> float:
    """The median over rounds of the ratio of medians."""
    pairs = zip(slower, faster, strict=True)
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)


def percentile(turns: list[list[float]], share: float) -> float:
    """Milliseconds."""
    return 1e3 * float(np.percentile([one for turn in turns for one in turn], share))


def fastest(found: dict[str, list[list[float]]], names: Sequence[str]) -> str:
    return min(names, key=lambda name: percentile(found[name], 50))


@pytest.fixture
def weights(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> list[Path]:
    """A file of each network."""
    names = [name]
    if name == LARGE:
        names = [one.backbone for one in ead.BackboneEnsemble.patchcore_large().members]
    return [network_weights(one, request.config.getoption("--weights"), tmp_path) for one in names]


@pytest.mark.parametrize("name", SETUPS)
def test_latency(
    figures: FiguresOf, pytestconfig: pytest.Config, tmp_path: Path, name: str, weights: list[Path]
) -> None:
    setup = SETUPS[name]
    python, before = pytestconfig.getoption("--anomalib"), pytestconfig.getoption("--before")
    for option, attribute in (("--images", "rounds"), ("--rows", "rows")):
        if (given := pytestconfig.getoption(option)) is not None:
            setup = replace(setup, **{attribute: given})
    images = photographs(FITTED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of thresholds by few images, which no figure rests on
        candidates, quantized = own_candidates(name, weights, images, setup, tmp_path)
    with ExitStack() as others:
        theirs: dict[str, Call] = {}
        earlier: dict[str, Call] = {}
        if setup.is_compared:
            np.save(tmp_path / "images.npy", images)
            task = {
                "network": name,
                "weights": str(weights[0]),
                "images": str(tmp_path / "images.npy"),
                "rows": setup.rows,
                "threads": torch.get_num_threads(),
            }
            if python is not None:
                theirs = others.enter_context(anomalib_of(python, task, tmp_path))
            if before is not None:
                earlier = others.enter_context(checkout_of(before, task, tmp_path))
        found = by_turns({**candidates, **theirs, **earlier}, setup)
    report(figures, name, setup, found, list(theirs), list(earlier))
    if setup.around is not None:
        around_the_network(figures, name, setup, quantized, images)


def own_candidates(
    name: str, weights: Sequence[Path], images: Any, setup: Setup, folder: Path
) -> tuple[dict[str, Call], Any]:
    """All candidates of ours, and the detector in int8."""
    detector = unfitted(name, weights, setup.rows).load_networks().fit(images)
    detector.save(folder / "model", include_backbone=True)
    del detector
    candidates: dict[str, Call] = {}
    loaded = {}
    for own, choice in ENGINES.items():
        if choice[1] != "bfloat16" or "BF16" in cpu_capabilities():
            loaded[own] = engine_of(folder / "model", choice, images)
            candidates[own] = one_by_one(loaded[own].predict, images)
    for own in setup.exports:
        choice = EXPORTS[own]
        if choice[1] == "bfloat16" and "BF16" not in cpu_capabilities():
            continue
        source = loaded[INT8 if choice[1] == "int8" else TORCH]
        candidates[own] = one_by_one(exported(source, folder / own, choice, images).predict, images)
    if not isinstance(loaded[INT8], ead.BackboneEnsemble):
        alone = network_alone(loaded[INT8], 1)
        candidates[BARE] = one_by_one(lambda _: alone(), images)
    return candidates, loaded[INT8]


def report(
    figures: FiguresOf,
    name: str,
    setup: Setup,
    found: dict[str, list[list[float]]],
    theirs: Sequence[str],
    earlier: Sequence[str],
) -> None:
    ours = [own for own in found if own not in (*theirs, *earlier, BARE)]
    exports = [own for own in theirs if "export" in own]
    best = fastest(found, exports) if exports else None
    for own, turns in found.items():
        columns: dict[str, Any] = {
            "ms, median": percentile(turns, 50),
            "ms, 99 %": percentile(turns, 99),
            "as fast as torch float32": f"{times(found[TORCH], turns):.2f} x",
            "as anomalib's fastest export": "" if best is None else f"{times(found[best], turns):.2f} x",
            "calls": str(sum(map(len, turns))),
        }
        what = f"{name}, {own}"
        figures.add(what, columns["ms, median"], "ms", columns=columns, seconds=turns)
    own = fastest(found, ours)
    for slower in (TORCH, *earlier):
        value = times(found[slower], found[own])
        figures.add(f"{name}: {slower} / the fastest of ours", value, "x", at_least=setup.faster, note=own)
    if best is not None:
        value, note = times(found[best], found[own]), f"{best} / {own}"
        what = f"{name}: anomalib's fastest export / the fastest of ours"
        figures.add(what, value, "x", at_least=setup.than_anomalib, note=note)
        alike = [one for one in ours if "export" in one and "float32" in one]
        same = [one for one in exports if "float32" in one]
        first, second = fastest(found, same), fastest(found, alike)
        what = f"{name}: anomalib's fastest export / ours, both in float32"
        figures.add(what, times(found[first], found[second]), "x", note=f"{first} / {second}")


def around_the_network(figures: FiguresOf, name: str, setup: Setup, quantized: Any, images: Any) -> None:
    """What `predict` takes beside the network in int8: of one decoded image, and of a batch."""
    for size in (1, BATCH):
        alone, given = network_alone(quantized, size), images[:size]
        found = by_turns(
            {
                "predict": one_by_one(lambda _, given=given: quantized.predict(given), images),
                "alone": one_by_one(lambda _, alone=alone: alone(), images),
            },
            replace(setup, calls=setup.calls if size == 1 else 1),
        )
        value = times(found["predict"], found["alone"])
        spent = {own: percentile(turns, 50) / size for own, turns in found.items()}
        note = f"{spent['predict']:.1f} and {spent['alone']:.1f} ms an image"
        what = f"{name} in int8, batch of {size}: predict / the network alone"
        figures.add(what, value, "x", at_most=setup.around, note=note, seconds=found)
