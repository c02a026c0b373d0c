"""PatchCore."""

from ensemblead.detectors.patchcore.detector import PatchCore

__all__ = ["PatchCore"]
