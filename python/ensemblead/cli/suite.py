"""`ensemblead evaluate --config FILE` where FILE holds a suite: many detectors on many data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import FAILED, print_json
from ensemblead.common.files import valid_text
from ensemblead.config.documents import Source

if TYPE_CHECKING:
    from ensemblead.suites.results import CellResult, SuiteResults
    from ensemblead.suites.suite import Cell

_SHOWN = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate", "images_per_second")
# Options that a suite states itself.
_OTHERS = (
    "good",
    "bad",
    "masks",
    "category",
    "layout",
    "missing_masks",
    "bootstrap",
    "seed",
    "similar",
    "similar_weights",
    "weights",
    "device",
    "skip_unreadable",
)


def run_suite(
    context: typer.Context,
    source: Source,
    given: Sequence[str],
    out: Path,
    gallery: int,
    part: tuple[int, int] | None,
    bars: Bars,
) -> SuiteResults:
    """Run a suite or a part of it, with `gallery` in place of its own if that is on the command line.

    `given` are arguments beside the file, which a suite has no use for.
    """
    from ensemblead.suites.running import run
    from ensemblead.suites.suite import Suite

    def is_given(name: str) -> bool:
        return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"

    beside = [*given, *(f"--{name.replace('_', '-')}" for name in _OTHERS if is_given(name))]
    if beside:
        raise ValueError(
            f"{source.name} holds a suite, which names its data sets and settings itself: "
            f"leave out {', '.join(beside)}"
        )
    suite = Suite.parse(source)
    if is_given("gallery"):
        suite = replace(suite, settings=replace(suite.settings, gallery=gallery))
    progress = _Progress(bars, [str(cell) for cell in suite.cells()])
    return run(suite, out, progress=progress, on_result=_report_failure, part=part)


class _Progress:
    """One bar over all cells, and those of the cell under way."""

    def __init__(self, bars: Bars, cells: Sequence[str]) -> None:
        self._bars, self._cells = bars, cells
        self._current = ""
        self.note = bars.note

    def __call__(self, cell: Cell, stage: str, done: int, total: int) -> None:
        if self._current != str(cell):
            self._current = str(cell)
            self._bars.prefix(f"{cell}:")
            self._bars.overall("all cells", self._cells.index(self._current), len(self._cells))
        self._bars(stage, done, total)


def show_suite(results: SuiteResults, out: Path, warned: Sequence[str] | None) -> None:
    """Print the results: as JSON with the warnings, or as a table for None. Exit with 1 if a cell failed."""
    if warned is None:
        _show(results, out)
    else:
        print_json({**_document(results, out), "warnings": list(warned)})
    if results.failures:
        raise typer.Exit(FAILED)


def _report_failure(cell: CellResult) -> None:
    if cell.failure is not None:
        typer.echo(f"ensemblead: {cell} failed: {cell.failure}", err=True)


def _document(results: SuiteResults, out: Path) -> dict[str, Any]:
    from ensemblead.suites.results import as_documents

    return {
        "out": str(out),
        "cells": as_documents(results.cells),
        "failed": len(results.failures),
        "reused": sum(cell.reused for cell in results.cells),
    }


def _show(results: SuiteResults, out: Path) -> None:
    """The main columns in a table."""
    console = Console()
    titles = [name.replace("_", " ") for name in _SHOWN]
    table = Table("detector", "data set", "category", *titles, box=None, pad_edge=False)
    for detector, dataset, row, error in results.rows():
        values = [getattr(row, name) for name in _SHOWN]
        cells = ["-" if value != value else f"{value:.4g}" for value in values]
        names = (detector, dataset, row.category)
        table.add_row(*map(escape, map(valid_text, names)), *(["failed", *cells[1:]] if error else cells))
    console.print(table)
    reused = sum(cell.reused for cell in results.cells)
    earlier = f" ({reused} of {len(results.cells)} cells from an earlier run)" if reused else ""
    waiting = sum(cell.status == "pending" for cell in results.cells)
    place = f"results{earlier}: {out}"
    if waiting:
        place = f"{waiting} of {len(results.cells)} cells wait for other parts"
    console.print(place, highlight=False, soft_wrap=True, markup=False)
