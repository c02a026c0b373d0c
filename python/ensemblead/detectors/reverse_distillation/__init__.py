"""Reverse Distillation."""

from ensemblead.detectors.reverse_distillation.detector import ReverseDistillation

__all__ = ["ReverseDistillation"]
