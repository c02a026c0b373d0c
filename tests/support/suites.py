"""A small suite: two detectors without weights on two drawn categories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Config = dict[str, Any]
SMALL: Config = {"resize": (24, 28), "image_size": None, "coreset_fraction": 1.0}
SMALL_PADIM: Config = {"backbone": "gabor", "resize": (24, 28), "image_size": None, "num_dimensions": 8}
GABOR: Config = {"type": "PatchCore", "backbone": "gabor", **SMALL}


def two_by_two(data: Path) -> Config:
    """Two detectors on both categories of `draw_two_categories`."""
    return {
        "seed": 2,
        "bootstrap": 20,
        "device": "cpu",
        "detectors": [
            {"name": "one", **GABOR, "layers": ["layer1"]},
            {"name": "two", "type": "BackboneEnsemble", "members": [GABOR, {**GABOR, "layers": ["layer2"]}]},
        ],
        "datasets": [{"type": "MVTecAD", "root": str(data), "name": "parts"}],
    }
