"""Presets of transformers on a CPU: one image to its verdict by each engine, beside the network alone.

    OMP_NUM_THREADS=2 python -m pytest benchmarks/bench_transformers.py

Weights are random, since those of DINOv2 and DINOv3 are not at hand. They change no time of the network, but
that of the search, which rules out rows by their distances: it is that of features without meaning. Detection
needs real weights: `bench_detection.py --preset NAME --weights FOLDER`. The photographs are drawn, of
512 x 512 pixels. Run it on a quiet machine; `--images N` is a trial of N rounds.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")

import torch
from bench_latency import photographs
from common import interleaved, network_weights, ratio
from record import FiguresOf

import ensemblead as ead
from ensemblead.config.presets import preset_description
from ensemblead.images import iterate_batches, open_images
from ensemblead.networks.engines.openvino import cpu_capabilities

# Training images of each preset: AnomalyDINO's are few, and learned in eight directions.
FITTED = {"anomaly_dino": 4, "rad": 32}
ENGINES = {
    "torch float32": {"engine": "torch"},
    "OpenVINO float32": {"engine": "openvino"},
    "OpenVINO bfloat16": {"engine": "openvino", "precision": "bfloat16"},
}
ROUNDS = 5


@pytest.mark.parametrize("preset", FITTED)
def test_single_image(figures: FiguresOf, pytestconfig: pytest.Config, tmp_path: Path, preset: str) -> None:
    images = photographs(FITTED[preset] + 1)
    description = preset_description(preset)
    weights = network_weights(description["backbone"], None, tmp_path)
    detector = ead.create({**description, "weights": str(weights), "device": "cpu"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of thresholds by few images, which no figure rests on
        detector.fit(images[:-1]).save(tmp_path / "model", include_backbone=True)
    calls = {}
    for name, choice in ENGINES.items():
        if choice.get("precision") == "bfloat16" and "BF16" not in cpu_capabilities():
            continue
        loaded = ead.load(tmp_path / "model", **choice)
        calls[name] = partial(loaded.predict, images[-1:])
        network = loaded.network_
        with iterate_batches(open_images(images[-1:]), [loaded.geometry], 1) as batches:
            (batch,) = batches
        calls[f"the network alone, {name}"] = partial(
            network, network.normalize(batch.images[loaded.geometry])
        )
    found = interleaved(calls, repeats=pytestconfig.getoption("--images") or ROUNDS)
    banks = detector.memory_banks_ if detector.banks == "per_layer" else [detector.memory_bank_]
    note = f"banks of {len(banks[0]):,} rows: {len(banks)}; {torch.get_num_threads()} threads"
    for name, timing in found.items():
        figures.add(f"{preset}: {name}", 1e3 * timing.median, "ms", seconds=timing, note=note)
        if name in ENGINES:
            alone = found[f"the network alone, {name}"]
            figures.add(f"{preset}: predict / the network alone, {name}", ratio(timing, alone), "x")
