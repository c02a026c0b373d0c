"""Two checkouts of ensemblead against each other: seconds of fit and predict, peak memory, import time,
lines.

    python benchmarks/compare_checkouts.py --before ../before --after . --data mvtec_bottle \\
        --weights resnet18.safetensors --out benchmarks/results/house.json

Each measurement runs in a process of its own. The two checkouts take turns, and medians are compared. Both
need their built core beside their Python files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

# What a process measures. It uses names alone that both checkouts have.
MEASURE = """
import json, os, resource, sys, time
started = time.perf_counter()
import ensemblead as ead
imported = time.perf_counter() - started
assert ead.__file__.startswith(os.environ["CHECKOUT"]), ead.__file__
import numpy as np, torch, warnings
warnings.simplefilter("ignore")
kind, data, weights = sys.argv[1:]
paths, test = (
    sorted(os.path.join(data, kind, name) for name in os.listdir(os.path.join(data, kind)))
    for kind in ("train/good", "test/good")
)
options = dict(weights=weights, device="cpu", seed=0)
if kind == "whole":
    detector = ead.PatchCore("resnet18", ("layer2", "layer3"), resize=256, image_size=224, **options)
    train = paths[:209]
else:
    size = int(kind.split("-")[1])
    member = ead.PatchCore("resnet18", ("layer2", "layer3"), **options)
    detector = ead.TiledEnsemble(member, size // 2, size // 4, image_size=size)
    train = paths[:62 if size == 512 else 12]
    test = test[:8]
start = time.perf_counter()
detector.fit(train)
fitted = time.perf_counter() - start
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
found = detector.predict(test)
predicted = (time.perf_counter() - start) / len(test)
figures = {"import_s": imported, "fit_s": fitted, "predict_s_per_image": predicted}
figures |= {"fit_peak_mb": before / 1024}
figures |= {"images": len(train), "scores": [round(float(s), 4) for s in found.anomaly_score[:4]]}
print(json.dumps(figures))
"""
KINDS = ("whole", "tiled-512", "tiled-2048")


def measure(checkout: Path, kind: str, data: Path, weights: Path) -> dict[str, Any]:
    """One process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "python"), "CHECKOUT": str(checkout)}
    command = [sys.executable, "-c", MEASURE, kind, str(data), str(weights)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{checkout}, {kind}: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def lines(checkout: Path) -> int:
    """Of the Python package."""
    files = (checkout / "python" / "ensemblead").rglob("*.py")
    return sum(len(file.read_text().splitlines()) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("before", "after", "data", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    results: dict[str, Any] = {"processor": platform.processor() or platform.machine()}
    results |= {"cores": os.cpu_count(), "lines": {name: lines(path) for name, path in checkouts.items()}}
    for kind in arguments.kinds:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
        for _ in range(arguments.rounds):
            for name, path in checkouts.items():
                runs[name].append(measure(path, kind, arguments.data, arguments.weights))
        medians = {
            name: {
                key: statistics.median(run[key] for run in own)
                for key in ("import_s", "fit_s", "predict_s_per_image", "fit_peak_mb")
            }
            for name, own in runs.items()
        }
        ratios = {key: medians["after"][key] / medians["before"][key] for key in medians["after"]}
        results[kind] = {"medians": medians, "ratios": ratios, "runs": runs}
        print(kind, json.dumps(ratios), flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
