"""Data sets, metrics, and what a detector is worth on them."""

from .datasets import Category, Dataset, Folder, MVTecAD, Sample, VisA
from .evaluate import ScoredImage, evaluate
from .metrics import aupro, auroc, average_precision, f1_max
from .report import Details, ImageResult, Report, Row, TypeRow
from .results import CellResult, SuiteResults
from .running import run
from .suite import Suite

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
