"""Frozen networks: images in, feature maps of named layers (or vectors) out."""

from ensemblead.networks.extractor import FeatureExtractor

__all__ = ["FeatureExtractor"]
