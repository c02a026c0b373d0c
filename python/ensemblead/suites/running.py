"""Running a suite: every detector on every category, without those that are done; failures do not end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ensemblead.common.files import StrPath
from ensemblead.common.validation import in_part, part_of, whole_number
from ensemblead.common.warnings import warn
from ensemblead.config.documents import Source
from ensemblead.distributed.executors import check_executor
from ensemblead.images import check_output_outside
from ensemblead.suites.cell_units import measured_by
from ensemblead.suites.cells import CellStore, cell_key
from ensemblead.suites.measuring import CellRun, OnImage, Progress, new_detector
from ensemblead.suites.results import CellResult, SuiteResults
from ensemblead.suites.suite import Cell, Suite, model_for

OnResult: TypeAlias = Callable[[CellResult], None]


def run(
    configuration: Suite | Source | Mapping[str, Any] | StrPath,
    out: StrPath,
    *,
    on_image: OnImage | None = None,
    on_result: OnResult | None = None,
    progress: Progress | None = None,
    executor: Any = None,
    part: tuple[int, int] | None = None,
    retries: int = 1,
) -> SuiteResults:
    """Measure every detector of a suite on every category of its data sets.

    Each finished cell (a detector on a category) is written to `out/cells` at once, and `out/results.csv`,
    `results.json` and `results.md` are written anew; at the end there is an `out/reports/*.html` for every
    detector on every data set. A cell that is there already, under the same configuration, data and version
    of the library, is not run again: an interrupted run is resumed by calling this again, and after a change
    only what it concerns is run. A cell that fails is recorded, the others go on, and the next run tries it
    again; so it does with one whose files change while it is measured, which is reported and not kept. Errors
    of the configuration, the data sets' folders and networks that cannot be had come before the first cell.

    Args:
        configuration: A `Suite`, a mapping of its form, or a YAML or JSON file; see `suites.suite`.
        out: The folder to write to.
        on_image: Called with the cell and each test image as it is scored. Errors of hooks end the run.
        on_result: Called with each `CellResult` as it is done or has failed; not for those of earlier runs.
        progress: Called with the cell, what is being done, how much of it is done, and how much there is;
            with `executor` as a cell is done, with "cells". If it has a method `note(text, stays)`, trainings
            tell it the parts of their loss.
        executor: A `concurrent.futures.Executor` (see `BackboneEnsemble.fit`), whose workers measure the
            cells. They must see `out` and all files under the same paths.
        part: `(k, n)`: measure every n-th cell alone, from the k-th on. Others may measure the other parts at
            the same time, into the same `out`. Tables and pages are written by the part that finds all cells
            done, and by any run without `part`.
        retries: With `executor`, how often a cell is tried again whose worker failed.

    Raises:
        PartialFitError: The executor broke; what is done is kept, and calling again goes on.
        ValueError: All that is wrong with the configuration, see `Suite.parse`; an `out` among the images.
            NotADirectoryError for an `out` that is a file; what loading a network or a saved model raises.
    """
    own = (1, 1) if part is None else part_of("part", part)
    retries = whole_number("retries", retries, 0)
    if executor is not None:
        check_executor(executor)
        if on_image is not None:
            raise ValueError("on_image goes without executor=: images are scored by its workers")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder, got the file {folder}")
    suite = _as_suite(configuration)
    check_output_outside(out, frozenset[str]().union(*(cell.category.folders for cell in suite.cells())))
    store = CellStore(folder / "cells")
    results = _results_so_far(suite, store)
    waiting = [
        (i, cell)
        for i, cell in enumerate(suite.cells())
        if results.cells[i].finished is None and in_part(i, own)
    ]
    _check_networks([cell for _, cell in waiting])
    folder.mkdir(parents=True, exist_ok=True)
    if part is None:
        results.write(folder)
    if executor is None:
        measured = _measured_here(results, store, waiting, on_image, progress)
    else:
        measured = measured_by(executor, results, store, waiting, retries, progress)
    for i, result, lines in measured:
        results.cells[i] = result
        if part is None:
            results.write(folder)
        if lines:
            warn("\n".join(f"{result}: {line}" for line in lines))
        if on_result is not None:
            on_result(result)
    if part is not None:
        _look_for_others(results, store)
    if part is None or results.is_complete:
        results.write(folder)
        results.write_pages(folder)
    return results


def _measured_here(
    results: SuiteResults,
    store: CellStore,
    waiting: list[tuple[int, Cell]],
    on_image: OnImage | None,
    progress: Progress | None,
) -> Iterator[tuple[int, CellResult, list[str]]]:
    """The cells one after the other: their places, results, and the library's warnings."""
    for i, cell in waiting:
        runner = CellRun(cell, results.suite.settings, results.cells[i], on_image, progress)
        result = runner.execute()
        if result.finished is not None and result.key:
            store.save(cell, result.key, result.finished)
        yield i, result, runner.lines
        runner.issue_foreign_warnings()


def _look_for_others(results: SuiteResults, store: CellStore) -> None:
    """Take in what other parts have measured meanwhile."""
    for i, cell in enumerate(results.suite.cells()):
        known = results.cells[i]
        if known.status == "pending":
            found = store.load(cell, known.key, results.suite.settings.gallery)
            results.cells[i] = replace(known, finished=found, reused=found is not None)


def _results_so_far(suite: Suite, store: CellStore) -> SuiteResults:
    """With what earlier runs measured and the pages can show; the other cells are pending."""
    results = SuiteResults.of(suite)
    for i, cell in enumerate(suite.cells()):
        key = cell_key(cell, suite.settings)
        found = store.load(cell, key, suite.settings.gallery)
        results.cells[i] = replace(results.cells[i], key=key, finished=found, reused=found is not None)
    return results


def _as_suite(configuration: Suite | Source | Mapping[str, Any] | StrPath) -> Suite:
    if isinstance(configuration, Suite):
        return configuration
    if isinstance(configuration, (Mapping, Source)):
        return Suite.parse(configuration)
    return Suite.read(configuration)


def _check_networks(cells: list[Cell]) -> None:
    """Load the networks of the cells, one after the other, so that an error comes before hours of work."""
    from ensemblead.ensembles.loading import load_detector

    described: dict[str, Cell] = {}
    for cell in cells:
        place = str(model_for(cell.entry, cell.category)) if cell.entry.is_saved else cell.entry.name
        described.setdefault(place, cell)
    for place, cell in described.items():
        try:
            # On the device that the cell is run on: the one of the fit need not be there.
            device = cell.entry.description["device"] if cell.entry.is_saved else None
            detector = load_detector(place, device=device) if cell.entry.is_saved else new_detector(cell)
            detector.load_networks()
        except ValueError as error:
            raise ValueError(f"detector {cell.entry.name!r}: {error}") from error
