"""Detectors made of detectors."""

from ensemblead.ensembles.backbones import BackboneEnsemble

__all__ = ["BackboneEnsemble"]
