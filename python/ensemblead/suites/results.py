"""The results of a suite: reports by detector and data set, and the tables made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ensemblead.common.files import csv_line, file_names, write_atomically
from ensemblead.evaluation.results import COLUMNS, CategoryResult, Row
from ensemblead.kernels.build import __version__
from ensemblead.report.page import page_cells
from ensemblead.report.report import Report
from ensemblead.report.text import (
    MARKDOWN,
    csv_cells,
    details_document,
    markdown_cell,
    markdown_name,
    markdown_table,
    types_csv,
    write_json,
)
from ensemblead.suites.suite import Cell, Suite, settings_dict


@dataclass(frozen=True)
class Failure:
    """Why a cell has no results."""

    kind: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {' '.join(self.message.split())}"


@dataclass(frozen=True)
class CellResult:
    """One cell of a suite: a detector on a category.

    Attributes:
        detector, dataset, category: Their names.
        key: The hash that it is kept under; "" before it is known, and if it is not kept, because files
            changed while it was measured.
        finished: What was measured; None if it failed or was not run yet.
        failure: Why it failed; None if it did not.
        reused: Whether an earlier run measured it.
    """

    detector: str
    dataset: str
    category: str
    key: str = ""
    finished: CategoryResult | None = None
    failure: Failure | None = None
    reused: bool = False

    @property
    def status(self) -> str:
        """ "done", "failed" or "pending"."""
        if self.finished is not None:
            return "done"
        return "pending" if self.failure is None else "failed"

    def __repr__(self) -> str:
        return f"CellResult({self}: {self.status})"

    def __str__(self) -> str:
        place = self.category if self.category == self.dataset else f"{self.dataset}/{self.category}"
        return f"{self.detector} on {place}"


@dataclass
class SuiteResults:
    """The cells of a suite in its order.

    Attributes:
        suite: What was run.
        cells: One `CellResult` per detector and category.
    """

    suite: Suite
    cells: list[CellResult] = field(default_factory=list)

    def __repr__(self) -> str:
        done = sum(cell.finished is not None for cell in self.cells)
        return f"SuiteResults({done} of {len(self.cells)} cells done, {len(self.failures)} failed)"

    @classmethod
    def of(cls, suite: Suite) -> SuiteResults:
        """With every cell pending."""
        return cls(suite, [pending(cell) for cell in suite.cells()])

    @property
    def failures(self) -> list[CellResult]:
        """Cells that failed."""
        return [cell for cell in self.cells if cell.failure is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every cell is done."""
        return all(cell.finished is not None for cell in self.cells)

    def report(self, detector: str, dataset: str) -> Report:
        """The `Report` of one detector on one data set: of the categories that are done.

        Raises KeyError if none is.
        """
        found = self._cells_of(detector, dataset)
        done = [(cell, cell.finished) for cell in found if cell.finished is not None]
        if not done:
            raise KeyError(f"no results of {detector!r} on {dataset!r}")
        warnings = [f"{cell.category}: {line}" for cell, finished in done for line in finished.warnings]
        if len(done) < len(found):
            warnings.append(f"mean: over {len(done)} of {len(found)} categories, the others are not done")
        settings = {"dataset": dataset, "detector": detector, **settings_dict(self.suite.settings)}
        details = {cell.category: finished.details for cell, finished in done}
        return Report([finished.row for _, finished in done], details, warnings, settings)

    def reports(self) -> dict[tuple[str, str], Report]:
        """All reports by (detector, dataset); those without a category that is done are left out."""
        places = dict.fromkeys((cell.detector, cell.dataset) for cell in self.cells)
        done = {(cell.detector, cell.dataset) for cell in self.cells if cell.finished is not None}
        return {place: self.report(*place) for place in places if place in done}

    def rows(self) -> list[tuple[str, str, Row, str]]:
        """(detector, dataset, row, error) for every cell that was run; a row "mean" ends the categories of a
        detector on a data set of several.
        """
        table = []
        for detector, dataset in dict.fromkeys((cell.detector, cell.dataset) for cell in self.cells):
            own = self._cells_of(detector, dataset)
            for cell in own:
                if cell.finished is not None:
                    table.append((detector, dataset, cell.finished.row, ""))
                elif cell.failure is not None:
                    table.append((detector, dataset, Row(cell.category), str(cell.failure)))
            if len(own) > 1 and any(cell.finished is not None for cell in own):
                table.append((detector, dataset, _mean(self.report(detector, dataset)), ""))
        return table

    def write(self, out: Path) -> None:
        """`results.csv`, `.json` and `.md` and `types.csv` in a folder, each whole or not at all."""
        self.to_csv(out / "results.csv")
        self.types_to_csv(out / "types.csv")
        self.to_json(out / "results.json")
        write_atomically(out / "results.md", self.to_markdown())

    def write_pages(self, out: Path) -> list[Path]:
        """`reports/<detector>-<dataset>.html` in a folder for every detector on every data set, in the order
        of `reports`; see `Report.to_html`. One that is there and shows these very cells is left as it is.
        """
        reports = self.reports()
        names = file_names([f"{one}-{dataset}" for one, dataset in reports], limit=80, plain=True)
        paths = [out / "reports" / f"{name}.html" for name in names]
        gallery = self.suite.settings.gallery
        for path, ((detector, dataset), report) in zip(paths, reports.items(), strict=True):
            own = self._cells_of(detector, dataset)
            # Not whether cells are reused: a page may be of another configuration, whose cells are there too.
            report.settings["cells"] = shown = _shown_cells(detector, dataset, own, gallery)
            if not shown or not path.exists() or page_cells(path) != shown:
                report.to_html(path, max_images=gallery)
        return paths

    def _cells_of(self, detector: str, dataset: str) -> list[CellResult]:
        return [cell for cell in self.cells if (cell.detector, cell.dataset) == (detector, dataset)]

    def to_csv(self, path: Path) -> None:
        """`rows` with the columns `detector`, `dataset`, those of `Row`, and `error`."""
        lines = [csv_line(["detector", "dataset", *COLUMNS, "error"])]
        for detector, dataset, row, error in self.rows():
            unknown = [row.category] + [""] * (len(COLUMNS) - 1)
            lines.append(
                csv_line([detector, dataset, *(unknown if error else csv_cells(row, COLUMNS)), error])
            )
        write_atomically(path, "".join(lines))

    def types_to_csv(self, path: Path) -> None:
        """Types of defects: the columns `detector`, `dataset`, `category` and those of `TypeRow`."""
        found = (
            ((cell.detector, cell.dataset, cell.category), cell.finished.details)
            for cell in self.cells
            if cell.finished is not None
        )
        write_atomically(path, types_csv(("detector", "dataset"), found))

    def to_json(self, path: Path) -> None:
        """The suite with every default filled in, all cells with their intervals and remarks, and the means.
        Image scores and curves are in the files of the cells.
        """
        means = [
            {"detector": detector, "dataset": dataset, **asdict(_mean(report))}
            for (detector, dataset), report in self.reports().items()
            if len(report.rows) > 1
        ]
        document = {
            "version": __version__,
            "settings": settings_dict(self.suite.settings),
            "detectors": [{"name": one.name, **one.description} for one in self.suite.detectors],
            "datasets": {
                name: [category.name for category in dataset.categories]
                for name, dataset in self.suite.datasets.items()
            },
            "complete": self.is_complete,
            "cells": [_cell_document(cell) for cell in self.cells],
            "means": means,
        }
        write_json(path, document)

    def to_markdown(self) -> str:
        """A table of means where there are several, one of all rows, failures and warnings."""
        rows = self.rows()
        lines = ["# Results", ""]
        means = [one for one in rows if one[2].category == "mean"]
        if means:
            lines += ["## Means over categories", "", *_table(means, categories=False), ""]
        for name in self.suite.datasets:
            lines += [f"## {name}", "", *_table([one for one in rows if one[1] == name]), ""]
        failed = [f"- {cell}: {cell.failure}" for cell in self.failures]
        if failed:
            lines += ["## Failed", "", *failed, ""]
        left = sum(cell.status == "pending" for cell in self.cells)
        if left:
            lines += [f"{left} of {len(self.cells)} cells are not done yet.", ""]
        remarks = [
            f"- {cell}: {line}"
            for cell in self.cells
            if cell.finished is not None
            for line in cell.finished.warnings
        ]
        if remarks:
            lines += ["## Remarks", "", *remarks, ""]
        return "\n".join(lines)


def _shown_cells(detector: str, dataset: str, cells: Sequence[CellResult], gallery: int) -> str:
    """A hash of what a page shows: which cells there are, which of them are done, under which keys, and how
    many images. "" if one of them has no key, which would distinguish it.
    """
    if any(cell.finished is not None and not cell.key for cell in cells):
        return ""
    known = [(cell.category, cell.key if cell.finished is not None else "") for cell in cells]
    return hashlib.sha256(json.dumps([__version__, detector, dataset, known, gallery]).encode()).hexdigest()


def pending(cell: Cell) -> CellResult:
    """The result of a cell that was not run yet."""
    return CellResult(cell.entry.name, cell.dataset, cell.category.name)


def _mean(report: Report) -> Row:
    """The summary, called "mean" even if only one category is done."""
    return Row(**{**asdict(report.summary), "category": "mean"})


def _cell_document(cell: CellResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "detector": cell.detector,
        "dataset": cell.dataset,
        "category": cell.category,
        "status": cell.status,
    }
    if cell.finished is not None:
        document |= {
            "key": cell.key,
            **asdict(cell.finished.row),
            **details_document(cell.finished.details),
            "warnings": list(cell.finished.warnings),
        }
    if cell.failure is not None:
        document["error"] = asdict(cell.failure)
    return document


# The columns of a report's table, with the seconds of the fit before those of the prediction.
_PLACE = [name for _, name in MARKDOWN].index("predict_seconds")
_TABLE = (*MARKDOWN[:_PLACE], ("fit, s", "fit_seconds"), *MARKDOWN[_PLACE:])


def _table(rows: Sequence[tuple[str, str, Row, str]], *, categories: bool = True) -> list[str]:
    """Markdown; with the category in the second column, or the data set."""
    lines = []
    for detector, dataset, row, error in rows:
        cells = [markdown_cell(getattr(row, name), None, name) for _, name in _TABLE]
        if error:
            cells = ["failed", *["-"] * (len(_TABLE) - 1)]
        lines.append(
            [markdown_name(detector), markdown_name(row.category if categories else dataset), *cells]
        )
    heads = ["detector", "category" if categories else "data set"]
    return markdown_table(heads, [title for title, _ in _TABLE], lines)


def as_documents(cells: Sequence[CellResult]) -> list[Mapping[str, Any]]:
    """The cells in JSON's types."""
    return [_cell_document(cell) for cell in cells]
