"""Detectors: images in, `Predictions` out. One file per published method."""

from ensemblead.detectors.base import Detector, Predictions
from ensemblead.detectors.padim import PaDiM
from ensemblead.detectors.patchcore import PatchCore

__all__ = ["Detector", "PaDiM", "PatchCore", "Predictions"]
