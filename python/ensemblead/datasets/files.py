"""Folders, csv files and masks found by name: what the data sets are put together from."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from ensemblead.common.files import StrPath
from ensemblead.common.validation import did_you_mean, some_of
from ensemblead.datasets.categories import Sample
from ensemblead.images import IMAGE_SUFFIXES

MissingMasks: TypeAlias = Literal["raise", "exclude"]


class MaskFolder:
    """The masks in one folder, by name: never by their place in a sorted list."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._used: set[Path] = set()
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if is_image(path):
                    self._by_stem[path.stem].append(path)

    def find(self, stem: str) -> str | None:
        """The mask of the image with this stem; None if there is none."""
        found = [path for name in (f"{stem}_mask", stem) for path in self._by_stem.get(name, ())]
        if len(found) > 1:
            raise ValueError(
                f"image {stem!r} must have one mask, got {some_of([str(path) for path in found])}"
            )
        self._used.update(found)
        return str(found[0]) if found else None

    def notes(self) -> list[str]:
        unused = [path for paths in self._by_stem.values() for path in paths if path not in self._used]
        if not unused:
            return []
        names = some_of([path.name for path in unused])
        return [f"{len(unused)} mask(s) in {self._folder} belong to no test image: {names}"]


def pair_masks(
    images: Sequence[Path], folder: Path, truth: Path | None
) -> tuple[list[str | None], list[str]]:
    """For each image below `folder` the mask of its name in the same place below `truth`; and remarks."""
    if truth is None:
        return [None] * len(images), []
    known: dict[Path, MaskFolder] = {}
    masks = []
    for path in images:
        below = path.relative_to(folder).parent
        if below not in known:
            known[below] = MaskFolder(truth / below)
        masks.append(known[below].find(path.stem))
    return masks, [note for found in known.values() for note in found.notes()]


def missing_mask_notes(
    samples: Sequence[Sample], where: str, expected: bool, policy: MissingMasks
) -> list[str]:
    """Remarks on defective images without a mask, or the error that `policy` asks for."""
    lacking = [sample.path for sample in samples if sample.mask_path is None]
    if not lacking:
        return []
    if not expected:
        return [f"there are no masks ({where}): pixel metrics are not defined"]
    message = f"{len(lacking)} defective image(s) have no mask in {where}: {some_of(lacking)}"
    if policy == "raise":
        raise ValueError(f'{message} (missing_masks="exclude" leaves them out of the pixel metrics)')
    return [f"{message}; left out of the pixel metrics"]


def check_missing_masks(policy: str) -> None:
    if policy not in ("raise", "exclude"):
        raise ValueError(f'missing_masks must be "raise" or "exclude", got {policy!r}')


def existing_folder(root: StrPath) -> Path:
    base = Path(root).absolute()
    if not base.is_dir():
        raise FileNotFoundError(f"no such folder: {base}")
    return base


def child(base: Path, category: str, known: Sequence[str]) -> Path:
    if category not in known:
        raise ValueError(no_such_category(category, known, base))
    return base / category


def no_such_category(category: str, known: Sequence[str], where: Path) -> str:
    return f"category {category!r} is not in {where}; {did_you_mean(category, known)}"


def folders_in(base: Path, given: StrPath | Sequence[StrPath]) -> list[Path]:
    several = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    return [existing_folder(base / folder) for folder in several]


def subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def scan(folder: Path) -> tuple[list[Path], int]:
    """The images in a folder and below it, sorted, and how many other files there are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if is_image(path)]
    return images, len(files) - len(images)


def scan_all(folders: Iterable[Path]) -> tuple[list[Path], int]:
    scanned = [scan(folder) for folder in folders]
    images = sorted({path for found, _ in scanned for path in found})
    return images, sum(ignored for _, ignored in scanned)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = [column for column in columns if column not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(f"{path} must have the columns {', '.join(columns)}, got {reader.fieldnames}")
        return [{column: row[column] or "" for column in columns} for row in reader]
