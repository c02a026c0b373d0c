"""DRAEM."""

from ensemblead.detectors.draem.detector import DRAEM

__all__ = ["DRAEM"]
