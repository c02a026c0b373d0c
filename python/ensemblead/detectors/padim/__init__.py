"""PaDiM."""

from ensemblead.detectors.padim.detector import PaDiM

__all__ = ["PaDiM"]
