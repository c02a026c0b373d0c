"""Test sets without training images, for models that are fitted already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemblead.datasets import Category, Dataset


def good_and_bad(good: Path, bad: Path | None, masks: Path | None, missing_masks: str) -> Dataset:
    """A test set of a folder of normal images, one of anomalous images, and one of their masks."""
    from ensemblead.datasets import Dataset

    name = good.absolute().parent.name or good.absolute().name
    others = {"anomalous": bad, "masks": masks}
    placed: dict[str, Any] = {key: path and path.absolute() for key, path in others.items()}
    return Dataset(name, [_tested(Path(), name, missing_masks, normal=good.absolute(), **placed)])


def untrained(root: Path, category: str | None, missing_masks: str) -> Dataset | None:
    """A data set in MVTec layout whose categories have no `train`; None if any has."""
    from ensemblead.datasets import Dataset

    base = root.absolute()
    if category is not None:
        base = base / category
    folders = [base] if (base / "test").is_dir() else _categories_in(base)
    if not folders or any((folder / "train").is_dir() for folder in folders):
        return None
    name = base.name if len(folders) == 1 else root.absolute().name
    return Dataset(name, [_tested_category(folder, missing_masks) for folder in folders])


def _categories_in(base: Path) -> list[Path]:
    if not base.is_dir() or (base / "train").is_dir():
        return []
    from ensemblead.images.folders import subfolders

    return [folder for folder in subfolders(base) if (folder / "test").is_dir()]


def _tested_category(folder: Path, missing_masks: str) -> Category:
    from ensemblead.images.folders import subfolders

    kinds = [path.name for path in subfolders(folder / "test") if path.name != "good"]
    truth = folder / "ground_truth"
    found = _tested(
        folder,
        folder.name,
        missing_masks,
        normal=folder / "test" / "good",
        anomalous=[folder / "test" / kind for kind in kinds] or None,
        masks=[truth / kind for kind in kinds] or None if truth.is_dir() else None,
    )
    return replace(found, searched=(str(folder / "test"),))


def _tested(root: Path, name: str, missing_masks: str, *, normal: Path, **others: Any) -> Category:
    """The category of a `Folder` that is tested alone."""
    from ensemblead.datasets import Folder

    options: Any = {"name": name, "missing_masks": missing_masks, **others}
    (category,) = Folder(root, normal=None, test_normal=normal, **options).categories
    return category
