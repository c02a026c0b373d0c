"""What helps a memory bank where: one layer, two layers joined, or a bank for each; L2 or cosine distance.

    OMP_NUM_THREADS=1 taskset -c 1 python -m pytest benchmarks/bench_banks.py --data FOLDER --weights FOLDER

`--data` and `--weights` are those of bench_detection.py. All settings of a category and network learn from
one pass over the images, as members of an ensemble, so no times are measured. Scores do not depend on that.

`-k half` needs no data: the memory of a bank of 100,000 rows of 768 dimensions in float32 and float16, loaded
from a file, and the time of its search. Rows are synthetic: of 64 directions and noise, or noise alone.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from common import PeakMemory, in_child, interleaved
from record import FiguresOf
from safetensors.torch import load_file, save_file

import ensemblead as ead
from ensemblead.datasets import MVTecAD
from ensemblead.evaluation import evaluate
from ensemblead.memory import BankState, MemoryBank

CATEGORIES = {"bottle": "mvtec_bottle", "cookies": "aws_cookies", "magnetic tile": "magnetic_tile"}
NETWORKS = {"resnet18": ("layer2", "layer3"), "efficientnet_lite0": ("blocks.2", "blocks.4")}
METRICS = ("l2", "cosine")


class Replay:
    """Predictions that were made before, as a detector: what `evaluate` asks of one."""

    def __init__(self, geometry: Any, predictions: Any) -> None:
        self.geometry, self._predictions = geometry, predictions

    def predict_batches(self, images: Any) -> Iterator[Any]:
        yield self._predictions


def settings(network: str) -> dict[str, dict[str, Any]]:
    first, second = NETWORKS[network]
    layers: dict[str, dict[str, Any]] = {
        f"{first} alone": {"layers": (first,)},
        f"{second} alone": {"layers": (second,)},
        "joint": {"layers": (first, second)},
        "per_layer": {"layers": (first, second), "banks": "per_layer"},
    }
    return {
        f"{name}, {metric}": {**own, "metric": metric} for metric in METRICS for name, own in layers.items()
    }


def fitted(path: Path, weights: Path, network: str) -> dict[str, ead.PatchCore]:
    """A detector of each setting, fitted together."""
    shared = {"weights": weights / f"{network}.safetensors", "resize": (256, 256), "device": "cpu"}
    members = {name: ead.PatchCore(network, **own, **shared) for name, own in settings(network).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of thresholds, which are not compared here
        ead.BackboneEnsemble(list(members.values())).fit(MVTecAD(path).categories[0].train)
    return members


def measured(path: Path, members: dict[str, ead.PatchCore]) -> dict[str, dict[str, float]]:
    """Metrics by setting; the members share one pass over the test images."""
    category = MVTecAD(path).categories[0]
    images = [sample.path for sample in category.test]
    parts: list[list[Any]] = [[] for _ in members]
    for batch in ead.BackboneEnsemble(list(members.values())).predict_members(images):
        for own, predictions in zip(parts, batch, strict=True):
            own.append(predictions)
    found = {}
    for (name, member), own in zip(members.items(), parts, strict=True):
        joined = type(own[0]).concatenate(own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = evaluate(Replay(member.geometry, joined), category, bootstrap=0).rows[0]
        own.clear()
        found[name] = {
            "image AUROC": row.image_auroc,
            "pixel AUROC": row.pixel_auroc,
            "AUPRO": row.aupro,
            "bank rows": float(member.learned_["bank_rows"]),
        }
    return found


def measure(path: Path, weights: Path, network: str) -> dict[str, dict[str, float]]:
    return measured(path, fitted(path, weights, network))


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("network", NETWORKS)
def test_banks(figures: FiguresOf, material: tuple[Path, Path], category: str, network: str) -> None:
    path = material[0] / CATEGORIES[category]
    if not path.is_dir():
        pytest.skip(f"--data has no {path.name}")
    for setting, columns in in_child(measure, path, material[1], network).items():
        what = f"{category}, {network}: {setting}"
        figures.add(what, columns["image AUROC"], "image AUROC", columns=columns)


# --- rows in half precision -----------------------------------------------------------------------

ROWS, DIMS, DIRECTIONS, QUERIES = 100_000, 768, 64, 1024
DTYPES = ("float32", "float16")


def made_rows(count: int, kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, DIMS, generator=generator)
    if kind == "noise":
        return noise
    basis = torch.randn(DIRECTIONS, DIMS, generator=torch.Generator().manual_seed(0))
    return noise.mul_(0.5) + torch.randn(count, DIRECTIONS, generator=generator) @ basis


def write(path: Path, kind: str) -> None:
    rows = made_rows(ROWS, kind, 1)
    for dtype in DTYPES:
        save_file({"rows": rows.to(getattr(torch, dtype))}, path / f"{kind}-{dtype}.safetensors")


def loaded(path: Path, kind: str, dtype: str) -> MemoryBank:
    rows = load_file(path / f"{kind}-{dtype}.safetensors")["rows"]
    state = BankState(rows, torch.zeros(ROWS, dtype=torch.int64), None, 1.0, ROWS)
    return MemoryBank.from_state(MemoryBank(0.5, dtype=dtype).parameters(), state)


def memory_of(path: Path, kind: str, dtype: str) -> dict[str, float]:
    """Megabytes resident, after loading and after a search, and the peak, beyond what was before."""
    queries = made_rows(QUERIES, kind, 2)
    warm = MemoryBank(0.5)
    warm.add(made_rows(2000, kind, 3), 0)
    warm.fit().search(queries)
    memory, before = PeakMemory(), resident()
    bank = loaded(path, kind, dtype)
    after_load = resident()
    bank.search(queries)
    megabytes = {"loaded": after_load - before, "searched": resident() - before, "peak": memory.read()}
    return {name: value / 1e6 for name, value in megabytes.items()}


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", ["low rank", "noise"])
def test_half(figures: FiguresOf, tmp_path: Path, kind: str) -> None:
    in_child(write, tmp_path, kind)
    found = {dtype: in_child(memory_of, tmp_path, kind, dtype) for dtype in DTYPES}
    for dtype, megabytes in found.items():
        columns = {f"{name}, MB": value for name, value in megabytes.items()}
        figures.add(f"bank of 100000 x 768, {kind}: {dtype}", megabytes["searched"], "MB", columns=columns)
    queries = made_rows(QUERIES, kind, 2)
    banks = {dtype: loaded(tmp_path, kind, dtype) for dtype in DTYPES}
    timings = interleaved({dtype: partial(bank.search, queries) for dtype, bank in banks.items()})
    slower = timings["float16"].median / timings["float32"].median
    what = f"search of 1024 in 100000 x 768, {kind}: float16 / float32"
    figures.add(what, slower, "x", timings=timings)
