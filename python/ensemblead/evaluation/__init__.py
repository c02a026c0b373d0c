"""Data sets, metrics, results and suites: the names that users import, each from the room that has it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemblead.datasets import Category, Dataset, Folder, MVTecAD, Sample, VisA
    from ensemblead.evaluation.evaluate import ScoredImage, evaluate
    from ensemblead.evaluation.results import Details, ImageResult, Report, Row, TypeRow
    from ensemblead.metrics import aupro, auroc, average_precision, f1_max
    from ensemblead.suites.results import CellResult, SuiteResults
    from ensemblead.suites.running import run
    from ensemblead.suites.suite import Suite

# Name -> module. Loaded when first asked for: suites stand above this room.
_PLACES = {
    **dict.fromkeys(("Category", "Dataset", "Folder", "MVTecAD", "Sample", "VisA"), "ensemblead.datasets"),
    **dict.fromkeys(("ScoredImage", "evaluate"), "ensemblead.evaluation.evaluate"),
    **dict.fromkeys(("Details", "ImageResult", "Report", "Row", "TypeRow"), "ensemblead.evaluation.results"),
    **dict.fromkeys(("aupro", "auroc", "average_precision", "f1_max"), "ensemblead.metrics"),
    **dict.fromkeys(("CellResult", "SuiteResults"), "ensemblead.suites.results"),
    "run": "ensemblead.suites.running",
    "Suite": "ensemblead.suites.suite",
}

__all__ = [
    "Category",
    "CellResult",
    "Dataset",
    "Details",
    "Folder",
    "ImageResult",
    "MVTecAD",
    "Report",
    "Row",
    "Sample",
    "ScoredImage",
    "Suite",
    "SuiteResults",
    "TypeRow",
    "VisA",
    "aupro",
    "auroc",
    "average_precision",
    "evaluate",
    "f1_max",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
