"""Data sets, metrics, results and suites: the names that users import, each from the room that has it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemblead.datasets import Category, Dataset, Folder, MVTecAD, Sample, VisA
    from ensemblead.evaluation.measure import ScoredImage
    from ensemblead.evaluation.results import Details, ImageResult, Row, TypeRow
    from ensemblead.evaluation.thresholds import TradeOff, TradeOffPoint, trade_off
    from ensemblead.metrics import aupro, auroc, average_precision, f1_max
    from ensemblead.report.report import Report, evaluate
    from ensemblead.suites.results import CellResult, SuiteResults
    from ensemblead.suites.running import run
    from ensemblead.suites.suite import Suite

# Name -> module. Loaded when first asked for: reports and suites stand above this room.
# No module of this room may have one of these names, for an import of the module would hide what is shown.
_PLACES = {
    **dict.fromkeys(("Category", "Dataset", "Folder", "MVTecAD", "Sample", "VisA"), "ensemblead.datasets"),
    "ScoredImage": "ensemblead.evaluation.measure",
    **dict.fromkeys(("Details", "ImageResult", "Row", "TypeRow"), "ensemblead.evaluation.results"),
    **dict.fromkeys(("TradeOff", "TradeOffPoint", "trade_off"), "ensemblead.evaluation.thresholds"),
    **dict.fromkeys(("Report", "evaluate"), "ensemblead.report.report"),
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
    "TradeOff",
    "TradeOffPoint",
    "TypeRow",
    "VisA",
    "aupro",
    "auroc",
    "average_precision",
    "evaluate",
    "f1_max",
    "run",
    "trade_off",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
