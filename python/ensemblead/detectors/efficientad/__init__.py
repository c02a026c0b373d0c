"""EfficientAD, and a teacher of one's own for it."""

from ensemblead.detectors.efficientad.detector import EfficientAD
from ensemblead.detectors.efficientad.distillation import distil_teacher

__all__ = ["EfficientAD", "distil_teacher"]
