"""Categories of images with masks and splits: MVTec AD, VisA, folders."""

from ensemblead.datasets.categories import Category, Dataset, Sample
from ensemblead.datasets.folders import Folder
from ensemblead.datasets.mvtec import MVTecAD
from ensemblead.datasets.visa import VisA

__all__ = ["Category", "Dataset", "Folder", "MVTecAD", "Sample", "VisA"]
