"""Visual anomaly detection with memory-bank ensembles."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ensemblead.common.errors import EnsembleADError
from ensemblead.common.extras import EXTRAS, missing_extra
from ensemblead.common.other_names import name_hint
from ensemblead.kernels.build import __version__, cuda_available

if TYPE_CHECKING:
    from ensemblead import datasets as datasets
    from ensemblead import evaluation as evaluation
    from ensemblead import metrics as metrics
    from ensemblead.common.predictions import Predictions
    from ensemblead.config.registry import create, register
    from ensemblead.conversion import convert
    from ensemblead.datasets import Folder, MVTecAD, VisA
    from ensemblead.deploy.runtime import load_exported
    from ensemblead.detectors.draem import DRAEM
    from ensemblead.detectors.efficientad import EfficientAD, distil_teacher
    from ensemblead.detectors.fastflow import FastFlow
    from ensemblead.detectors.padim import PaDiM
    from ensemblead.detectors.patchcore import PatchCore
    from ensemblead.detectors.reverse_distillation import ReverseDistillation
    from ensemblead.distributed.executors import Executors
    from ensemblead.ensembles.backbones import BackboneEnsemble
    from ensemblead.ensembles.check import check_detector
    from ensemblead.ensembles.loading import load
    from ensemblead.ensembles.tiles import TiledEnsemble
    from ensemblead.kernels.coreset import select_coreset
    from ensemblead.kernels.patches import aggregate_patches
    from ensemblead.kernels.tiling import smooth_seams, tile, untile
    from ensemblead.kernels.weighted import weighted_top_k
    from ensemblead.memory import MemoryBank
    from ensemblead.metrics import aupro, auroc
    from ensemblead.monitoring import DriftMonitor
    from ensemblead.networks import FeatureExtractor
    from ensemblead.report.comparison import compare
    from ensemblead.report.report import Report, evaluate
    from ensemblead.retrieval.embedders import Embedder
    from ensemblead.retrieval.ensemble import EmbeddingEnsemble
    from ensemblead.retrieval.index import ImageIndex
    from ensemblead.retrieval.metrics import retrieval_metrics
    from ensemblead.retrieval.rerank import rerank
    from ensemblead.retrieval.weights import search_weights

__all__ = [
    "DRAEM",
    "BackboneEnsemble",
    "DriftMonitor",
    "EfficientAD",
    "Embedder",
    "EmbeddingEnsemble",
    "EnsembleADError",
    "Executors",
    "FastFlow",
    "FeatureExtractor",
    "Folder",
    "ImageIndex",
    "MVTecAD",
    "MemoryBank",
    "PaDiM",
    "PatchCore",
    "Predictions",
    "Report",
    "ReverseDistillation",
    "TiledEnsemble",
    "VisA",
    "__version__",
    "aggregate_patches",
    "aupro",
    "auroc",
    "check_detector",
    "compare",
    "convert",
    "create",
    "cuda_available",
    "distil_teacher",
    "evaluate",
    "load",
    "load_exported",
    "register",
    "rerank",
    "retrieval_metrics",
    "search_weights",
    "select_coreset",
    "smooth_seams",
    "tile",
    "untile",
    "weighted_top_k",
]

# Rooms that are attributes after `import ensemblead`.
_ROOMS = ("datasets", "evaluation", "metrics")

# Name -> module. Loaded when first asked for, so that `import ensemblead` stays quick and needs no extra.
_LAZY = {
    "BackboneEnsemble": "ensemblead.ensembles.backbones",
    "FastFlow": "ensemblead.detectors.fastflow",
    "EfficientAD": "ensemblead.detectors.efficientad",
    "Executors": "ensemblead.distributed.executors",
    "DRAEM": "ensemblead.detectors.draem",
    "DriftMonitor": "ensemblead.monitoring",
    "Embedder": "ensemblead.retrieval.embedders",
    "EmbeddingEnsemble": "ensemblead.retrieval.ensemble",
    "FeatureExtractor": "ensemblead.networks",
    "Folder": "ensemblead.datasets",
    "ImageIndex": "ensemblead.retrieval.index",
    "MVTecAD": "ensemblead.datasets",
    "MemoryBank": "ensemblead.memory",
    "PaDiM": "ensemblead.detectors.padim",
    "PatchCore": "ensemblead.detectors.patchcore",
    "Predictions": "ensemblead.common.predictions",
    "Report": "ensemblead.report.report",
    "ReverseDistillation": "ensemblead.detectors.reverse_distillation",
    "TiledEnsemble": "ensemblead.ensembles.tiles",
    "VisA": "ensemblead.datasets",
    "aggregate_patches": "ensemblead.kernels.patches",
    "aupro": "ensemblead.metrics",
    "auroc": "ensemblead.metrics",
    "check_detector": "ensemblead.ensembles.check",
    "compare": "ensemblead.report.comparison",
    "convert": "ensemblead.conversion",
    "create": "ensemblead.config.registry",
    "distil_teacher": "ensemblead.detectors.efficientad",
    "evaluate": "ensemblead.report.report",
    "load": "ensemblead.ensembles.loading",
    "load_exported": "ensemblead.deploy.runtime",
    "register": "ensemblead.config.registry",
    "rerank": "ensemblead.retrieval.rerank",
    "retrieval_metrics": "ensemblead.retrieval.metrics",
    "search_weights": "ensemblead.retrieval.weights",
    "select_coreset": "ensemblead.kernels.coreset",
    "smooth_seams": "ensemblead.kernels.tiling",
    "tile": "ensemblead.kernels.tiling",
    "untile": "ensemblead.kernels.tiling",
    "weighted_top_k": "ensemblead.kernels.weighted",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY and name not in _ROOMS:
        hint = None if name.startswith("_") else name_hint(name, __dir__())
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{f'; {hint}' if hint else ''}")
    try:
        room = importlib.import_module(_LAZY.get(name, f"{__name__}.{name}"))
        value = room if name in _ROOMS else getattr(room, name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise missing_extra(error.name, f"ensemblead.{name}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, *_ROOMS))
