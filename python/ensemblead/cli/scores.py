"""`scores.csv`: written row by row, and put together from parts."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemblead.common.files import csv_line, valid_text, write_atomically
from ensemblead.common.warnings import warn

if TYPE_CHECKING:
    from ensemblead.detectors import Predictions

COLUMNS = ("path", "anomaly_score", "is_anomalous", "threshold")
# Of a part: the row's place among all images goes before the rest.
_PART_COLUMNS = ("image", *COLUMNS)
_PART = re.compile(r"scores\.part-(\d+)-of-(\d+)\.csv")


class ScoresFile:
    """`scores.csv`, or that of a part: its rows are written as they come, to a file with "partial" in its
    name, which is renamed when all are there. After an error or an interrupt that file has the images that
    were scored.

    Args:
        folder: where it lies.
        part: `(k, n)`, or None for all images.
        paths: of all images, those of other parts included.
    """

    def __init__(self, folder: Path, part: tuple[int, int] | None, paths: Sequence[str | None]) -> None:
        name = "" if part is None else f".part-{part[0]}-of-{part[1]}"
        self.path = folder / f"scores{name}.csv"
        self.images = self.anomalous = 0
        self._partial = folder / f"scores.partial{name}.csv"
        self._places = None if part is None else {str(path): place for place, path in enumerate(paths)}

    def __enter__(self) -> ScoresFile:
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8", newline="")
        self._file.write(csv_line(COLUMNS if self._places is None else _PART_COLUMNS))
        return self

    def add(self, batch: Predictions, threshold: float) -> None:
        """Write a batch; ValueError where a score or a map is NaN or infinite, for that has no verdict."""
        for path, score, anomaly_map in zip(batch.paths, batch.anomaly_score, batch.anomaly_map, strict=True):
            for name, values in (("anomaly_score", score), ("anomaly_map", anomaly_map)):
                if not np.isfinite(values).all():
                    raise ValueError(f"{name} must be finite, got NaN or infinity for {path}")
        for path, score, called in zip(batch.paths, batch.anomaly_score, batch.is_anomalous, strict=True):
            place = () if self._places is None else (self._places[str(path)],)
            # Nine digits are a float32 to the last bit: another comparison comes to the same verdict.
            cells = valid_text(str(path)), f"{score:.9g}", bool(called), f"{threshold:.17g}"
            self._file.write(csv_line((*place, *cells)))
            self.images += 1
            self.anomalous += bool(called)
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._partial, self.path)
        elif self.images:
            warn(f"{self.images} images were scored before this; they are in {self._partial}")
        else:
            self._partial.unlink(missing_ok=True)


def merge_scores(folder: Path) -> tuple[Path, int, int, int]:
    """Write `scores.csv` from those of all parts, in the order of the images: its path, and how many images,
    anomalous ones and parts there are. Files of parts stay.

    Raises:
        FileNotFoundError: there is no part, or one is missing.
        ValueError: parts of several divisions or thresholds, or a file that is none of `predict`.
    """
    files = [(path, _PART.fullmatch(path.name)) for path in folder.glob("scores.part-*.csv")]
    parts = {(int(match[1]), int(match[2])): path for path, match in files if match}
    if not parts:
        raise FileNotFoundError(f"no scores.part-K-of-N.csv in {folder}; predict --part K/N writes them")
    counts = sorted({count for _, count in parts})
    if len(counts) > 1:
        raise ValueError(f"{folder} holds parts of {' and of '.join(map(str, counts))}; remove the old ones")
    absent = [number for number in range(1, counts[0] + 1) if (number, counts[0]) not in parts]
    if absent:
        raise FileNotFoundError(
            f"part {absent[0]}/{counts[0]} is not in {folder}: it was not done, or not to its end"
        )
    rows = sorted((row for path in parts.values() for row in _rows(path)), key=lambda row: int(row[0]))
    thresholds = {row[-1] for row in rows}
    repeated = any(len({row[column] for row in rows}) < len(rows) for column in (0, 1))
    if len(thresholds) > 1 or repeated:
        raise ValueError(f"the parts in {folder} are of several models or sets of images: predict anew")
    lines = [csv_line(COLUMNS), *(csv_line(row[1:]) for row in rows)]
    path = write_atomically(folder / "scores.csv", "".join(lines))
    return path, len(rows), sum(row[3] == "True" for row in rows), counts[0]


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    wrong = [row for row in rows if len(row) != len(_PART_COLUMNS) or not row[0].isdecimal()]
    if head != list(_PART_COLUMNS) or wrong:
        raise ValueError(f"{path} is not what predict --part writes")
    return rows
