"""`PatchCore.fit` and `.predict` beside the bare forward pass over the same images, preprocessed beforehand.

Ours starts from JPEG files: decoding, resizing, the network, embeddings, coreset, calibration, search and
maps are all in it. The opponent is the network alone, as far as the last layer needed, without hooks, over
batches that lie ready in its own memory layout. Weights are random: they change no time but that of the
coreset, whose share is reported.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from common import Timing, interleaved, ratio  # noqa: E402
from PIL import Image  # noqa: E402
from record import FiguresOf  # noqa: E402

import ensemblead as ead  # noqa: E402
from ensemblead import PatchCore, aggregate_patches  # noqa: E402
from ensemblead.images import iterate_batches, open_images  # noqa: E402

THREADS = 2
FITTED, PREDICTED = 209, 64
# The network of the target, and a small one, whose search weighs more.
TARGETS: dict[str, float | None] = {"wide_resnet50_2": 1.25, "resnet18": None}
# Milliseconds on a GPU.
ONE_IMAGE = {"wide_resnet50_2": 10.0}
# Of published settings: decided before `fit`, and 224 x 224 pixels, which the pixels in memory have.
GEOMETRY = {"resize": 256, "image_size": 224}
STEM = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3")
networks = pytest.mark.parametrize("network", TARGETS)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """JPEG files of 512 x 512 pixels: blotches over fine grain, as large on disk as photographs are."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number in range(FITTED):
        rng = np.random.default_rng(number)
        blotches = Image.fromarray(rng.integers(60, 200, (16, 16, 3), dtype=np.uint8))
        pixels = np.asarray(blotches.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number:03}.jpg"))
        Image.fromarray(noisy).save(paths[-1], quality=92)
    return paths


def detector_of(network: str, device: str = "cpu", **options: Any) -> PatchCore:
    return PatchCore(network, weights=None, device=device, **{**GEOMETRY, **options})


def prepared(detector: PatchCore, files: list[str]) -> list[Any]:
    """The network's input for all files, batch by batch, normalised and laid out as it wants them."""
    with iterate_batches(open_images(files), [detector.geometry], detector.batch_size) as batches:
        return [detector.network_.normalize(batch.images[detector.geometry]) for batch in batches]


@torch.inference_mode()  # type: ignore[untyped-decorator]
def forward(layers: Any, batches: list[Any]) -> None:
    for batch in batches:
        layers(batch)


def bare(detector: PatchCore, batches: list[Any]) -> functools.partial[None]:
    """The forward pass alone; the network's own modules, in sequence."""
    module = detector.network_.module
    layers = torch.nn.Sequential(*(getattr(module, name) for name in STEM)).eval()
    return functools.partial(forward, layers, batches)


class Stages:
    """How long each stage of a fit took, as its `progress`."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        return ", ".join(f"{name} {took:.2f} s" for name, took in self.seconds.items())


@networks
def test_fit(figures: FiguresOf, files: list[str], network: str) -> None:
    detector = detector_of(network)
    alone = bare(detector, prepared(detector, files))
    detector.fit(files[:16])
    alone.func(alone.args[0], alone.args[1][:1])
    stages: list[Stages] = []

    def fit() -> None:
        stages.append(Stages())
        detector.fit(files, progress=stages[-1])

    rounds = 3 if network == "wide_resnet50_2" else 5
    timings = interleaved({"forward": alone, "fit": fit}, repeats=rounds, warm=True)
    note = f"{rounds} rounds; the last: {stages[-1]}; forward {timings['forward'].median:.1f} s"
    what = f"{network} at 224, {len(files)} images: fit / bare forward"
    _add(figures, what, timings, "fit", "forward", TARGETS[network], note)


@networks
def test_predict(figures: FiguresOf, files: list[str], network: str) -> None:
    detector = detector_of(network)
    few = files[:PREDICTED]
    batches = prepared(detector, few)
    detector.fit(files)
    bank = detector.memory_bank_
    maps = (detector.network_(batch) for batch in batches)
    embedded = [aggregate_patches(of_batch, pretrain_dim="auto").flatten(0, 2) for of_batch in maps]
    timings = interleaved(
        {
            "forward": bare(detector, batches),
            "predict": lambda: detector.predict(few),
            "search": lambda: [bank.search(rows) for rows in embedded],
        }
    )
    size = f"{network} at 224, {PREDICTED} images, bank of {len(bank)}"
    milliseconds = {name: timing.median / PREDICTED * 1e3 for name, timing in timings.items()}
    note = ", ".join(f"{name} {took:.1f}" for name, took in milliseconds.items()) + " ms per image"
    _add(figures, f"{size}: predict / bare forward", timings, "predict", "forward", TARGETS[network], note)
    _add(figures, f"{size}: search / bare forward", timings, "search", "forward", None, "")


def _add(
    figures: FiguresOf,
    what: str,
    timings: dict[str, Timing],
    ours: str,
    opponent: str,
    target: float | None,
    note: str,
    device: str = "cpu",
) -> None:
    value = ratio(timings[ours], timings[opponent])
    figures.add(what, value, "x", at_most=target, note=note, device=device, timings=timings)


# --- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["files", "pixels"])
@networks
def test_gpu(figures: FiguresOf, files: list[str], gpu: str, network: str, images: str) -> None:
    """From files, decoding included, and from pixels in memory at the network's size. By the clock."""
    detector = detector_of(network, "cuda", **({} if images == "files" else {"resize": None}))
    given = files if images == "files" else _pixels(files)
    with iterate_batches(open_images(given), [detector.geometry], detector.batch_size) as found:
        batches = [detector.network_.normalize(batch.images[detector.geometry]) for batch in found]
    detector.fit(given)
    timings = interleaved(
        {
            "forward": bare(detector, batches),
            "fit": lambda: detector.fit(given),
            "predict": lambda: detector.predict(given),
        },
        repeats=5,
        synchronize=torch.cuda.synchronize,
    )
    rates = ", ".join(f"{name} {FITTED / timing.median:.0f}" for name, timing in timings.items())
    what = f"{network} at 224, {FITTED} images from {images}, {detector.network_.dtype}".replace("torch.", "")
    for call in ("fit", "predict"):
        note = f"images/s: {rates}" if call == "predict" else ""
        _add(figures, f"{what}: {call} / bare forward", timings, call, "forward", TARGETS[network], note, gpu)


@networks
def test_gpu_one_image(figures: FiguresOf, files: list[str], gpu: str, tmp_path: Path, network: str) -> None:
    """One decoded photograph to its verdict, warm, the network launched kernel by kernel, or as one graph.
    By the clock.
    """
    image = np.asarray(Image.open(files[0]).convert("RGB"))[None]
    detector_of(network, "cuda").fit(files).save(tmp_path / "model", include_backbone=True)
    detectors = {own: ead.load(tmp_path / "model", engine=own) for own in ("torch", "cuda-graph")}
    timings = interleaved(
        {own: functools.partial(one.predict, image) for own, one in detectors.items()},
        repeats=30,
        synchronize=torch.cuda.synchronize,
    )
    for own, timing in timings.items():
        target = ONE_IMAGE.get(network) if own == "cuda-graph" else None
        what = f"{network} at 224, one decoded image, engine={own!r}: predict"
        figures.add(what, 1e3 * timing.median, "ms", at_most=target, device=gpu, timings={own: timing})


def _pixels(files: list[str]) -> Any:
    return np.stack([np.asarray(Image.open(path).convert("RGB"))[144:368, 144:368] for path in files])
