"""Running a suite: every detector on every category, without those that are done; failures do not end it."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.files import StrPath
from ensemblead.common.memory import reset_peak_memory
from ensemblead.common.warnings import ThresholdWarning, warn
from ensemblead.config.documents import Source
from ensemblead.datasets.categories import Category
from ensemblead.evaluation.measure import ScoredImage, check_category, measure_category
from ensemblead.evaluation.results import CategoryResult
from ensemblead.images import check_output_outside
from ensemblead.suites.cells import CellStore, cell_key
from ensemblead.suites.results import CellResult, Failure, SuiteResults
from ensemblead.suites.suite import GALLERY, Cell, Suite, model_for

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

# Hooks.
OnImage: TypeAlias = Callable[[CellResult, ScoredImage], None]
OnResult: TypeAlias = Callable[[CellResult], None]
Progress: TypeAlias = Callable[[Cell, str, int, int], None]


def run(
    configuration: Suite | Source | Mapping[str, Any] | StrPath,
    out: StrPath,
    *,
    on_image: OnImage | None = None,
    on_result: OnResult | None = None,
    progress: Progress | None = None,
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
        progress: Called with the cell, what is being done, how much of it is done, and how much there is.

    Raises:
        ValueError: All that is wrong with the configuration, see `Suite.parse`; an `out` among the images.
            NotADirectoryError for an `out` that is a file; what loading a network or a saved model raises.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder, got the file {folder}")
    suite = _as_suite(configuration)
    check_output_outside(out, frozenset[str]().union(*(cell.category.folders for cell in suite.cells())))
    store = CellStore(folder / "cells")
    results = _results_so_far(suite, store)
    waiting = [(i, cell) for i, cell in enumerate(suite.cells()) if results.cells[i].finished is None]
    _check_networks([cell for _, cell in waiting])
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder)
    for i, cell in waiting:
        runner = _CellRun(cell, suite, results.cells[i], on_image, progress)
        results.cells[i] = result = runner.execute()
        if result.finished is not None and result.key:
            store.save(cell, result.key, result.finished)
        results.write(folder)
        runner.issue_warnings()
        if on_result is not None:
            on_result(result)
    results.write_pages(folder)
    return results


def _results_so_far(suite: Suite, store: CellStore) -> SuiteResults:
    """With what earlier runs measured and the pages can show; the other cells are pending."""
    results = SuiteResults.of(suite)
    for i, cell in enumerate(suite.cells()):
        key = cell_key(cell, suite.settings)
        found = store.load(cell, key)
        if found is not None and not _can_show(found, suite.settings.gallery):
            found = None
        results.cells[i] = replace(results.cells[i], key=key, finished=found, reused=found is not None)
    return results


def _can_show(found: CategoryResult, count: int) -> bool:
    """Whether the pictures of so many images, or of all there are, have been kept."""
    pictures = found.details.pictures
    return pictures is None or len(pictures.kept) >= min(count, len(found.details.images))


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
            detector = load_detector(place, device=device) if cell.entry.is_saved else _new(cell)
            detector.load_networks()
        except ValueError as error:
            raise ValueError(f"detector {cell.entry.name!r}: {error}") from error


def _new(cell: Cell) -> Detector:
    from ensemblead.config.registry import construct

    detector: Detector = construct(dict(cell.entry.description))
    return detector


class _HookError(Exception):
    """Carries what a hook raised past the handling of a cell's own failures."""

    def __init__(self, raised: Exception) -> None:
        super().__init__()
        self.raised = raised


class _CellRun:
    """One cell: fit, predict, measure."""

    def __init__(
        self,
        cell: Cell,
        suite: Suite,
        result: CellResult,
        on_image: OnImage | None,
        progress: Progress | None,
    ) -> None:
        self._cell, self._settings, self._result = cell, suite.settings, result
        self._on_image, self._progress = on_image, progress
        self._lines: list[str] = []
        self._foreign: list[warnings.WarningMessage] = []

    def execute(self) -> CellResult:
        """The cell's result; its failure, whatever it is, becomes part of it."""
        # Anew: the cells before this one may have taken hours.
        self._result = replace(self._result, key=self._key())
        reset_peak_memory()
        try:
            with self._keeping_warnings():
                found = self._measure()
        except _HookError as error:
            raise error.raised from None
        except Exception as error:
            trace = "".join(traceback.format_exception(error))
            return replace(self._result, failure=Failure(type(error).__name__, str(error), trace))
        if not self._result.key or self._key() != self._result.key:
            # Which state of the files was measured is unknown, so it belongs under no key.
            self._result = replace(self._result, key="")
            self._lines.append("files changed while this was measured: it is not kept, run again to keep it")
        self._lines = list(dict.fromkeys([*self._lines, *found.warnings]))
        return replace(self._result, finished=replace(found, warnings=tuple(self._lines)))

    def _key(self) -> str:
        """By the files as they are now; "" if one that must be there is not."""
        try:
            return cell_key(self._cell, self._settings)
        except (OSError, UnreadableImageError):
            return ""

    def issue_warnings(self) -> None:
        """Issue the warnings of the cell, its name in front."""
        for one in self._foreign:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if self._lines:
            warn("\n".join(f"{self._cell}: {line}" for line in self._lines))

    def _measure(self) -> CategoryResult:
        options = self._settings.options()
        check_category(self._cell.category, options)
        return measure_category(
            self._load() if self._cell.entry.is_saved else self._fit,
            self._cell.category,
            replace(options, gallery=max(options.gallery, GALLERY)),
            None if self._on_image is None else self._see,
            lambda _, done, total: self._step("evaluate", done, total),
        )

    def _fit(self, category: Category) -> Detector:
        return _new(self._cell).fit(list(category.train), errors=self._settings.errors, progress=self._step)

    def _load(self) -> Detector:
        from ensemblead.ensembles.loading import load_detector

        device = self._cell.entry.description["device"]
        return load_detector(model_for(self._cell.entry, self._cell.category), device=device)

    def _see(self, image: ScoredImage) -> None:
        assert self._on_image is not None
        with _hook_errors():
            self._on_image(self._result, image)

    def _step(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            with _hook_errors():
                self._progress(self._cell, stage, done, total)

    @contextmanager
    def _keeping_warnings(self) -> Iterator[None]:
        """Keep the library's warnings as lines, and others as they are, until `issue_warnings`."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                yield
            finally:
                for one in caught:
                    if one.category in (UserWarning, ThresholdWarning):
                        self._lines += [
                            line for line in str(one.message).splitlines() if line not in self._lines
                        ]
                    else:
                        self._foreign.append(one)


@contextmanager
def _hook_errors() -> Iterator[None]:
    """Around a hook, whose errors are not the cell's failure."""
    try:
        yield
    except Exception as error:
        raise _HookError(error) from error
