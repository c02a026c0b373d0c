"""FastFlow."""

from ensemblead.detectors.fastflow.detector import FastFlow

__all__ = ["FastFlow"]
