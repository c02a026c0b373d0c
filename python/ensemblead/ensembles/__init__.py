"""Detectors made of detectors."""

from ensemblead.ensembles.backbones import BackboneEnsemble
from ensemblead.ensembles.tiles import TiledEnsemble

__all__ = ["BackboneEnsemble", "TiledEnsemble"]
