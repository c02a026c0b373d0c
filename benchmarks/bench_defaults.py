"""What the whole photograph and `score="topk"` are worth against the published crop and score, type by type.

    python benchmarks/bench_defaults.py --data ../shared/data --weights resnet18.safetensors \\
        --out benchmarks/results/defaults.json

PatchCore with ResNet18 on every data set in the folder, in MVTec layout: the two geometries, the two scores,
image AUROC of all defects and of each type against all good test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import ensemblead as ead

GEOMETRIES: dict[str, dict[str, Any]] = {
    "whole": {},
    "256, crop 224": {"resize": 256, "image_size": 224},
}


def measure(category: Any, weights: Path, geometry: str) -> dict[str, dict[str, float]]:
    """Image AUROC by score and type of defect."""
    detector = ead.PatchCore("resnet18", weights=weights, device="cpu", **GEOMETRIES[geometry])
    detector.fit(list(category.train))
    labels = np.array([sample.label for sample in category.test])
    types = np.array([sample.defect_type for sample in category.test])
    found = {}
    for score in ("topk", "max"):
        detector.score = score  # the bank does not depend on it
        batches = detector.predict_batches([sample.path for sample in category.test])
        scores = np.concatenate([batch.anomaly_score for batch in batches])
        own = {"all": float(ead.auroc(scores, labels))}
        for kind in sorted(map(str, set(types[labels]))):
            which = ~labels | (types == kind)
            own[kind] = float(ead.auroc(scores[which], labels[which]))
        found[score] = own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for folder in sorted(path for path in arguments.data.iterdir() if (path / "train").is_dir()):
        (category,) = ead.MVTecAD(folder).categories
        results[category.name] = {name: measure(category, arguments.weights, name) for name in GEOMETRIES}
        print(category.name, json.dumps(results[category.name]), flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
