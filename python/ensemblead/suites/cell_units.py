"""Cells of a suite as units of work for an executor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ensemblead.datasets.categories import Category, Sample
from ensemblead.distributed.executors import sharing_cores
from ensemblead.distributed.files import with_absolute_paths
from ensemblead.distributed.units import Task, collected
from ensemblead.distributed.working import at_work, modules_of
from ensemblead.suites.cells import CellStore, as_document, from_document
from ensemblead.suites.measuring import CellRun, Progress
from ensemblead.suites.results import CellResult, Failure, SuiteResults, pending
from ensemblead.suites.suite import Cell, Entry, Settings, settings_dict


def measured_by(
    executor: Any,
    results: SuiteResults,
    store: CellStore,
    waiting: list[tuple[int, Cell]],
    retries: int,
    progress: Progress | None,
) -> Iterator[tuple[int, CellResult, list[str]]]:
    """The cells as workers are done with them: their places, results, and the library's warnings.

    Raises PartialFitError as `collected`.
    """
    settings = results.suite.settings
    common = {
        "settings": settings_dict(settings),
        "folder": os.path.abspath(store.folder),
        "sharing": sharing_cores(executor),
    }
    tasks = [
        {
            **common,
            "cell": _plain(cell),
            "key": results.cells[i].key,
            "modules": modules_of(cell.entry.description),
        }
        for i, cell in waiting
    ]

    def now() -> tuple[list[str], list[str]]:
        known = {str(cell): store.load(cell, results.cells[i].key) for i, cell in waiting}
        done = [name for name, found in known.items() if found is not None]
        return done, [name for name, found in known.items() if found is None]

    for done, (place, record) in enumerate(collected(executor, measure_cell, tasks, retries, now), 1):
        i, cell = waiting[place]
        yield i, _result(results.cells[i], cell, record, store), record["lines"]
        if progress is not None:
            progress(cell, "cells", done, len(tasks))


def measure_cell(task: Task) -> dict[str, Any]:
    """On a worker: measure a cell and keep it, unless it is there."""
    cell, settings = _cell(task["cell"]), Settings(**task["settings"])
    store = CellStore(Path(task["folder"]))
    with at_work(task["sharing"], task["modules"]):
        if store.load(cell, task["key"], settings.gallery) is not None:
            return {"key": task["key"], "failure": None, "finished": None, "lines": []}
        runner = CellRun(cell, settings, pending(cell))
        result = runner.execute()
        if result.finished is not None and result.key:
            store.save(cell, result.key, result.finished)
        runner.issue_foreign_warnings()
    is_lost = result.finished is not None and not result.key  # files changed: it belongs under no key
    return {
        "key": result.key,
        "failure": None if result.failure is None else asdict(result.failure),
        "finished": as_document(result.finished) if is_lost and result.finished is not None else None,
        "lines": runner.lines,
    }


def _result(known: CellResult, cell: Cell, record: dict[str, Any], store: CellStore) -> CellResult:
    known = replace(known, key=record["key"])
    if record["failure"] is not None:
        return replace(known, failure=Failure(**record["failure"]))
    if record["finished"] is not None:
        return replace(known, finished=from_document(record["finished"]))
    finished = store.load(cell, record["key"])
    if finished is None:
        raise FileNotFoundError(
            f"out: a worker has kept {cell}, and it is not in {store.folder}: out must be on a path that "
            "every worker shares"
        )
    return replace(known, finished=finished)


def _plain(cell: Cell) -> dict[str, Any]:
    """A cell in JSON's types, with whole paths."""
    category, description = cell.category, dict(cell.entry.description)
    if cell.entry.is_saved:
        description["model"] = os.path.abspath(description["model"])
    samples = [
        {
            **asdict(one),
            "path": os.path.abspath(one.path),
            "mask_path": one.mask_path and os.path.abspath(one.mask_path),
        }
        for one in category.test
    ]
    own = {**asdict(category), "train": [os.path.abspath(path) for path in category.train], "test": samples}
    entry = {"name": cell.entry.name, "description": with_absolute_paths(description)}
    plain: dict[str, Any] = json.loads(json.dumps({"entry": entry, "dataset": cell.dataset, "category": own}))
    return plain


def _cell(plain: dict[str, Any]) -> Cell:
    own = dict(plain["category"])
    own |= {name: tuple(own[name]) for name in ("train", "notes", "searched")}
    own["test"] = tuple(Sample(**one) for one in own["test"])
    return Cell(Entry(**plain["entry"]), plain["dataset"], Category(**own))
