"""Categories of images with masks and splits: MVTec AD, VisA, folders."""

from ensemblead.datasets.categories import Category, Dataset, Sample
from ensemblead.datasets.layouts import Folder, MVTecAD, VisA

__all__ = ["Category", "Dataset", "Folder", "MVTecAD", "Sample", "VisA"]
