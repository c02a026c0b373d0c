"""Folders and csv files of data sets, and which of their images are held out to test on."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ensemblead.common.files import StrPath
from ensemblead.common.validation import did_you_mean
from ensemblead.images.folders import is_image, scan_folder


def existing_folder(root: StrPath) -> Path:
    base = Path(root).absolute()
    if not base.is_dir():
        raise FileNotFoundError(f"no such folder: {base}")
    return base.resolve() if ".." in base.parts else base


def folders_in(base: Path, given: StrPath | Sequence[StrPath]) -> list[Path]:
    several = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    return [existing_folder(base / folder) for folder in several]


def chosen_categories(category: str | None, known: Sequence[str], where: Path) -> list[str]:
    """All known categories, or the one asked for. ValueError, with near matches, if it is unknown."""
    if category is None:
        return list(known)
    if category not in known:
        raise ValueError(f"category {category!r} is not in {where}; {did_you_mean(category, known)}")
    return [category]


def scan(folder: Path, exclude: Collection[Path] = ()) -> tuple[list[Path], list[str]]:
    """The images in a folder and below it, sorted, and its other files; none if there is no folder."""
    if not folder.is_dir():
        return [], []
    found = scan_folder(folder, exclude)
    return sorted(map(Path, found.images)), list(found.ignored)


def scan_all(folders: Iterable[Path], exclude: Collection[Path] = ()) -> tuple[list[Path], list[str]]:
    scanned = [scan(folder, exclude) for folder in folders]
    images = sorted({path for found, _ in scanned for path in found})
    return images, [path for _, ignored in scanned for path in ignored]


def stray_images(folder: Path) -> list[str]:
    """Images that lie in a folder of folders itself, where a layout has none."""
    return sorted(str(path) for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []


def check_holdout(holdout: float) -> None:
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"holdout must be in (0, 1), got {holdout}")


def hold_out(paths: list[Path], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Images to fit on, and a share of them, chosen by the seed, to test on; at least one of each."""
    count = min(max(1, round(share * len(paths))), len(paths) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(paths))[:count].tolist())
    kept = [path for position, path in enumerate(paths) if position not in chosen]
    return kept, [path for position, path in enumerate(paths) if position in chosen]


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or ()
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} as csv: {error}") from error
    if any(column not in names for column in columns):
        raise ValueError(f"{path} must have the columns {', '.join(columns)}, got {list(names)}")
    return [{column: row[column] or "" for column in columns} for row in rows]


def folder_name(text: str, table: Path) -> str:
    """A category's name out of a csv, which becomes a part of file names. ValueError if it is a path."""
    if text in ("", ".", "..") or any(sign in text for sign in ("/", os.sep, "\0")):
        raise ValueError(f"{table} must name categories by their folders, got {text!r}")
    return text


def relative_path(text: str, table: Path) -> str:
    """A path out of a csv, relative to the data set. ValueError if it leads out of it."""
    place = PurePosixPath(text)
    if not text or "\0" in text or place.is_absolute() or ".." in place.parts or Path(text).is_absolute():
        raise ValueError(f"{table} must name files inside of the data set, got {text!r}")
    return text
