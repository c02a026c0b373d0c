"""Detectors: images in, `Predictions` out. A folder per published method; `method.py` is the page for
authors.
"""

from ensemblead.common.predictions import Predictions
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.draem import DRAEM
from ensemblead.detectors.efficientad import EfficientAD
from ensemblead.detectors.fastflow import FastFlow
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
