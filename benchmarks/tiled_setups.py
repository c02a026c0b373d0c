"""The setups that bench_tiled.py compares, and how one of them is measured, each in a process of its own."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import PeakMemory, in_child

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.datasets.categories import Category
from ensemblead.evaluation import evaluate
from ensemblead.images import read_image

METHODS = ("PatchCore", "PaDiM")
TILE = 256
# Single-image calls: before the clock starts, and with it.
WARM_UP, TIMED = 5, 30
# Images that the peak of predict is taken over.
PREDICTED = 32
# Images that learn, and that are tested, at several scales.
OF_SCALES = 60
_TIMES = ("fit_seconds", "images_per_second")

Size = int | tuple[int, int]


def member(method: str, weights: Any, seed: int = 0, **options: Any) -> Any:
    """A detector over resnet18 with its method's defaults; `weights` is a folder, or None for random ones."""
    source = None if weights is None else Path(weights) / "resnet18.safetensors"
    common: dict[str, Any] = {"weights": source, "device": "cpu", "seed": seed, **options}
    if method == "PaDiM":
        return ead.PaDiM("resnet18", **common)
    return ead.PatchCore("resnet18", ("layer2", "layer3"), **common)


def single(method: str, weights: Any, size: Size, seed: int = 0, **options: Any) -> Any:
    """One model on whole images, squashed to a square of that side."""
    sides = (size, size) if isinstance(size, int) else size
    return member(method, weights, seed, resize=sides, image_size=None, **options)


def tiled(method: str, weights: Any, size: Size, stride: int, seed: int = 0, **options: Any) -> Any:
    """A model per tile of 256 pixels (one for all with `shared`)."""
    return ead.TiledEnsemble(member(method, weights, seed), TILE, stride, image_size=size, **options)


# The paper's names: one model at 256 or 512 pixels, one model on all of 4 or 9 tiles, a model per tile.
SETUPS: dict[str, Callable[[str, Any, int], Any]] = {
    "SM256": lambda method, weights, seed: single(method, weights, 256, seed),
    "SM512": lambda method, weights, seed: single(method, weights, 512, seed),
    "ST4": lambda method, weights, seed: tiled(method, weights, 512, 256, seed, shared=True),
    "ST9": lambda method, weights, seed: tiled(method, weights, 512, 128, seed, shared=True),
    "ENS4": lambda method, weights, seed: tiled(method, weights, 512, 256, seed),
    "ENS9": lambda method, weights, seed: tiled(method, weights, 512, 128, seed),
}


def measure_setup(path: Path, weights: Path, method: str, setup: str, seed: int) -> dict[str, float]:
    """Fit, evaluate, time and weigh one setup."""
    category = MVTecAD(path).categories[0]
    detector = SETUPS[setup](method, weights, seed)
    found = measure_fit(detector, category)
    found |= measure_quality(detector, category)
    test = [sample.path for sample in category.test]
    found["latency"] = latency(detector, test)
    return found | weigh(detector, test[:PREDICTED])


def measure_fit(detector: Any, category: Category) -> dict[str, float]:
    """Seconds, and peak bytes beyond what was there before; the network is loaded and warm."""
    network = detector.member.network_ if isinstance(detector, ead.TiledEnsemble) else detector.network_
    network.grid(TILE)
    memory, start = PeakMemory(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how few images a rate rests on
        detector.fit(category.train)
    return {"fit_seconds": time.perf_counter() - start, "fit_peak": float(memory.read())}


def measure_quality(detector: Any, category: Category) -> dict[str, float]:
    """The metrics of the test set, and how many of its images go through in a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = evaluate(detector, category, bootstrap=0).rows[0]
    names = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate", "images_per_second")
    return {name: float(getattr(row, name)) for name in names}


def weigh(detector: Any, images: Any) -> dict[str, float]:
    """Numbers that the saved model holds, and the peak of predicting with it in another process."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        detector.save(model)
        return {
            "parameters": float(stored_parameters(model)),
            "predict_peak": float(in_child(predict_peak, model, images)),
        }


def stored_parameters(model: Path) -> int:
    """Numbers that a saved model holds besides the network and the calibration."""
    from safetensors import safe_open

    total = 0
    for file in model.rglob("*.safetensors"):
        if file.name == "bank.safetensors":
            names = ["rows"]
        elif file.name.startswith("gaussians."):
            names = [file.name.removeprefix("gaussians.").removesuffix(".safetensors")]
        else:
            continue
        with safe_open(file, "np") as tensors:
            total += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)
    if not total:
        raise RuntimeError("the saved model has no numbers of its own")
    return total


def predict_peak(model: Path, images: Any) -> int:
    """Bytes that predicting the images, batch by batch, takes beyond the model, whose network is warm."""
    detector = ead.load(model)
    detector._network_leaves()[0].network_.grid(TILE)
    memory = PeakMemory()
    for _ in detector.predict_batches(images):
        pass
    return memory.read()


def latency(detector: Any, paths: Sequence[str]) -> float:
    """Seconds for one decoded image, resized, scored and mapped: the median of 30 calls after 5.

    EfficientAD's way (Batzner et al., WACV 2024), on a CPU: one image at a time, the model warm, decoding not
    counted.
    """
    images = [read_image(path)[None] for path in paths[:8]]
    seconds = []
    for number in range(WARM_UP + TIMED):
        image = images[number % len(images)]
        start = time.perf_counter()
        detector.predict(image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def measure_resolution(path: Path, weights: Path, method: str, kind: str, size: int) -> dict[str, float]:
    """Fit and evaluate at one resolution: one model on the whole image, or one per tile of 256 pixels."""
    category = MVTecAD(path).categories[0]
    whole = kind == "single" or size == TILE
    # A batch of large images is as many pixels as one of small ones.
    batch = max(1, 16 * TILE**2 // size**2)
    detector: Any = (
        single(method, weights, size, batch_size=batch) if whole else tiled(method, weights, size, TILE // 2)
    )
    return measure_fit(detector, category) | measure_quality(detector, category)


def measure_scales(path: Path, weights: Path, network: str, scales: tuple[float, ...]) -> dict[str, float]:
    """Fit and evaluate one model for all tiles of 256 pixels of a scale, out of images of 512; no times."""
    category = some_of(MVTecAD(path).categories[0], OF_SCALES)
    source = Path(weights) / f"{network}.safetensors"
    torch.set_num_threads(1)
    detector = ead.TiledEnsemble(
        ead.PatchCore(network, weights=source, device="cpu"),
        TILE,
        TILE,
        image_size=2 * TILE,
        scales=scales,
        shared=True,
    )
    found = measure_fit(detector, category) | measure_quality(detector, category)
    rows = sum(one.learned_["bank_rows"] for one in detector.members_ if isinstance(one, ead.PatchCore))
    found["bank_rows"] = float(rows)
    return {name: value for name, value in found.items() if name not in _TIMES}


def some_of(category: Category, most: int) -> Category:
    """A category with so many images of each kind at most, evenly spread over its sorted lists."""
    train, test = (
        tuple(images[i * len(images) // most] for i in range(most)) if len(images) > most else images
        for images in (category.train, category.test)
    )
    return replace(category, train=train, test=test)


class Drawn:
    """Images drawn when asked for, so that they take no memory themselves."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (self._size // 8, self._size // 8, 3), dtype=np.uint8)
        return coarse.repeat(8, 0).repeat(8, 1)


def measure_memory(kind: str, size: int, count: int, budget: int) -> dict[str, float]:
    """Peak bytes of a fit beyond the network, and of predicting 4 images beyond the model. The single model
    sees one image at a time, the ensemble batches of 8 tiles.
    """
    detector: Any
    if kind == "single":
        detector = single("PatchCore", None, size, batch_size=1)
        single("PatchCore", None, TILE, batch_size=1).fit(Drawn(2, TILE))
    else:
        tiles = member("PatchCore", None, batch_size=8)
        detector = ead.TiledEnsemble(tiles, TILE, TILE, image_size=size, memory_budget=budget)
        ead.TiledEnsemble(tiles, TILE, TILE, image_size=2 * TILE).fit(Drawn(2, 2 * TILE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory, start = PeakMemory(), time.perf_counter()
        detector.fit(Drawn(count, size))
        fitted, seconds = memory.read(), time.perf_counter() - start
    known = {"fit_peak": float(fitted), "fit_seconds": seconds}
    return known | weigh(detector, Drawn(4, size))


def tiles_of(images: np.ndarray[Any, Any], stride: int) -> torch.Tensor:
    """The tiles of uint8 `[N, 512, 512, 3]`, image by image: uint8 `[N, tiles, 3, 256, 256]`."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return ead.tile(pixels, TILE, stride).flatten(0, 1).transpose(0, 1).contiguous()
