"""Visual anomaly detection with memory-bank ensembles."""

from ensemblead._core import __version__, cuda_available
from ensemblead.errors import EnsembleADError

__all__ = ["EnsembleADError", "__version__", "cuda_available"]
