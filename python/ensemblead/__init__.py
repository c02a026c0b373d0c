"""Visual anomaly detection with memory-bank ensembles."""

from ensemblead._core import __version__

__all__ = ["__version__"]
