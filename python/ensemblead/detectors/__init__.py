"""Detectors: images in, `Predictions` out. A folder per published method; `method.py` is the page for
authors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ensemblead.common.predictions import Predictions
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.method import (
    Accumulator,
    Fitted,
    Method,
    NormalSample,
    Run,
    Scores,
    Seen,
    TrainingData,
)

if TYPE_CHECKING:
    from ensemblead.detectors.draem import DRAEM
    from ensemblead.detectors.efficientad import EfficientAD
    from ensemblead.detectors.fastflow import FastFlow
    from ensemblead.detectors.padim import PaDiM
    from ensemblead.detectors.patchcore import PatchCore
    from ensemblead.detectors.reverse_distillation import ReverseDistillation

__all__ = [
    "DRAEM",
    "Accumulator",
    "Detector",
    "EfficientAD",
    "FastFlow",
    "Fitted",
    "Method",
    "NormalSample",
    "PaDiM",
    "PatchCore",
    "Predictions",
    "ReverseDistillation",
    "Run",
    "Scores",
    "Seen",
    "TrainingData",
]

# Methods are loaded when they are asked for: a saved model is of one of them.
_METHODS = {
    "DRAEM": "draem",
    "EfficientAD": "efficientad",
    "FastFlow": "fastflow",
    "PaDiM": "padim",
    "PatchCore": "patchcore",
    "ReverseDistillation": "reverse_distillation",
}


def __getattr__(name: str) -> Any:
    if name not in _METHODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_METHODS[name]}"), name)
