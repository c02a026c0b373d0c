"""Frozen networks: images in, feature maps of named layers out."""

from ensemblead.features.extractor import FeatureExtractor

__all__ = ["FeatureExtractor"]
