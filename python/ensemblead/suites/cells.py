"""The finished cells of a suite on disk: what makes a run resume where it stopped.

A cell is one detector on one category. It is kept in one JSON file under a key that is a hash of all that its
numbers depend on: the detector's full description and the files that it names, the settings, the library's
version, and the files of the category (paths, labels, sizes, times of change). So whatever is changed is run
anew, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ensemblead.common.files import as_file_name, sha256_of
from ensemblead.datasets.categories import Category, Errors, file_fact
from ensemblead.distributed.files import folder_facts, with_paths
from ensemblead.evaluation.gallery import Pictures
from ensemblead.evaluation.results import COLUMNS, NAN, CategoryResult, Details, ImageResult, Row, TypeRow
from ensemblead.kernels.build import __version__
from ensemblead.report.text import write_json
from ensemblead.suites.suite import Cell, Settings, model_for, settings_dict

_FORMAT = 1


def cell_key(cell: Cell, settings: Settings) -> str:
    """A hash of everything that the cell's numbers depend on.

    Files count by path, size and time of change, saved models by their manifest, which has the checksums of
    the rest. An image that is gone is an error that names it, or, with `errors="skip"`, counts as gone: once
    it is back, the cell is run anew.
    """
    document = {
        "format": _FORMAT,
        "version": __version__,
        "detector": _identity(cell),
        # The gallery changes no number.
        "settings": {name: one for name, one in settings_dict(settings).items() if name != "gallery"},
        "category": _category_identity(cell.category, settings.errors),
    }
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(cell: Cell) -> Any:
    """The description, in which files and folders that it names have their sizes and times."""
    description = cell.entry.description
    if cell.entry.is_saved:
        return {**description, "model": sha256_of(model_for(cell.entry, cell.category) / "model.json")}
    return with_paths(description, _path_identity)


def _path_identity(path: str) -> list[Any]:
    return [os.path.abspath(path), folder_facts(path)] if os.path.isdir(path) else _file_identity(path)


def _category_identity(category: Category, errors: Errors) -> Any:
    def identity(path: str) -> list[Any]:
        return file_fact(_file_identity, path, errors) or [os.path.abspath(path), None]

    return {
        "name": category.name,
        "train": [identity(path) for path in category.train],
        "test": [
            [
                identity(sample.path),
                sample.label,
                sample.defect_type,
                # Masks are not skipped.
                sample.mask_path and file_fact(_file_identity, sample.mask_path, "raise", "mask"),
            ]
            for sample in category.test
        ],
        "notes": category.notes,
    }


def _file_identity(path: str) -> list[Any]:
    found = os.stat(path)
    # However it is spelled: other machines run cells by whole paths.
    return [os.path.abspath(path), found.st_size, found.st_mtime_ns]


class CellStore:
    """The folder of finished cells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, cell: Cell, key: str) -> Path:
        """Where a cell is kept; the name in front is for people, the key alone counts."""
        name = as_file_name(f"{cell.entry.name}-{cell.category.name}", limit=80, plain=True)
        known = list(self.folder.glob(f"*.{key[:24]}.json")) if self.folder.is_dir() else []
        return known[0] if known else self.folder / f"{name}.{key[:24]}.json"

    def load(self, cell: Cell, key: str, gallery: int = 0) -> CategoryResult | None:
        """A finished cell; None if it is not there, not what was written, or keeps fewer pictures than a page
        of so many images shows.
        """
        try:
            document = json.loads(self.path(cell, key).read_text(encoding="utf-8"))
            found = from_document(document) if document["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        pictures = None if found is None else found.details.pictures
        if found is not None and pictures is not None:
            return found if len(pictures.kept) >= min(gallery, len(found.details.images)) else None
        return found

    def save(self, cell: Cell, key: str, finished: CategoryResult) -> None:
        document = {
            "key": key,
            "detector": cell.entry.name,
            "dataset": cell.dataset,
            "description": cell.entry.description,
            **as_document(finished),
        }
        write_json(self.path(cell, key), document, indent=None)


def as_document(finished: CategoryResult) -> dict[str, Any]:
    """The whole result in JSON's types, curves and pictures included."""
    details = finished.details
    return {
        "row": asdict(finished.row),
        "warnings": list(finished.warnings),
        "intervals": {name: list(pair) for name, pair in details.intervals.items()},
        "error_bounds": dict(details.error_bounds),
        "exact": details.exact,
        "duplicates": [list(pair) for pair in details.duplicates],
        "images": [asdict(image) for image in details.images],
        "threshold_source": details.threshold_source,
        "inspected": details.inspected,
        "made_by": dict(details.made_by),
        "types": [asdict(row) for row in details.types],
        "pictures": None if details.pictures is None else details.pictures.to_json(),
        "curves": {name: [axis.tolist() for axis in curve] for name, curve in details.curves.items()},
    }


def from_document(document: Mapping[str, Any]) -> CategoryResult:
    """The result that `as_document` wrote; ValueError, KeyError or TypeError if it is another thing."""
    values = document["row"]
    if set(values) != set(COLUMNS):
        raise ValueError("the columns are those of another version")
    row = Row(**_with_nan(values))
    details = Details(
        tuple(ImageResult(**image) for image in document["images"]),
        {name: (low, high) for name, (low, high) in document["intervals"].items()},
        document["error_bounds"],
        document["exact"],
        tuple((train, test) for train, test in document["duplicates"]),
        {name: (np.array(x, float), np.array(y, float)) for name, (x, y) in document["curves"].items()},
        pictures=None if document["pictures"] is None else Pictures.from_json(document["pictures"]),
        threshold_source=document["threshold_source"],
        inspected=document.get("inspected", ""),
        # Cells of earlier versions have neither.
        types=tuple(TypeRow(**_with_nan(one)) for one in document.get("types", ())),
        made_by=document.get("made_by", {}),
    )
    return CategoryResult(row, details, tuple(document["warnings"]))


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: NAN if value is None else value for name, value in values.items()}
