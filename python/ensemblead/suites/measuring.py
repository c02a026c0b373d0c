"""Measuring one cell of a suite: fit, predict, measure. What goes wrong becomes part of its result."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.memory import reset_peak_memory
from ensemblead.datasets.categories import Category
from ensemblead.detectors.parts import Note, no_note
from ensemblead.distributed.working import KINDS
from ensemblead.evaluation.measure import ScoredImage, check_category, measure_category
from ensemblead.evaluation.results import CategoryResult
from ensemblead.suites.cells import cell_key
from ensemblead.suites.results import CellResult, Failure
from ensemblead.suites.suite import GALLERY, Cell, Settings, model_for

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

# Hooks.
OnImage: TypeAlias = Callable[[CellResult, ScoredImage], None]
Progress: TypeAlias = Callable[[Cell, str, int, int], None]


def new_detector(cell: Cell) -> Detector:
    from ensemblead.config.registry import construct

    detector: Detector = construct(dict(cell.entry.description))
    return detector


class _HookError(Exception):
    """Carries what a hook raised past the handling of a cell's own failures."""

    def __init__(self, raised: Exception) -> None:
        super().__init__()
        self.raised = raised


@dataclass(frozen=True)
class _Steps:
    """The `progress` of a fit, which is told more in notes."""

    step: Callable[[str, int, int], None]
    note: Note

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.step(stage, done, total)


class CellRun:
    """One cell: fit, predict, measure."""

    def __init__(
        self,
        cell: Cell,
        settings: Settings,
        result: CellResult,
        on_image: OnImage | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._cell, self._settings, self._result = cell, settings, result
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

    @property
    def lines(self) -> list[str]:
        """The library's warnings."""
        return list(self._lines)

    def issue_foreign_warnings(self) -> None:
        """Issue those of others."""
        for one in self._foreign:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)

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
        return new_detector(self._cell).fit(
            list(category.train), errors=self._settings.errors, progress=_Steps(self._step, self._note)
        )

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

    def _note(self, text: str, stays: bool) -> None:
        with _hook_errors():
            getattr(self._progress, "note", no_note)(text, stays)

    @contextmanager
    def _keeping_warnings(self) -> Iterator[None]:
        """Keep the library's warnings as lines, and others as they are, until `issue_warnings`."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                yield
            finally:
                for one in caught:
                    if one.category in KINDS.values():
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
