"""Rows of results that are made of cells, measured one by one and kept as soon as they are known."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common import in_child
from record import RESULTS, Figure, FiguresOf, commit, load_results, write_results


class Kept:
    """One row of the results, made of cells (seeds, say). Without `again` a known cell is not measured."""

    def __init__(self, figures: FiguresOf, what: str, again: bool) -> None:
        self._figures, self._what = figures, what
        self._cells = self._known()
        self._again = again

    @property
    def benchmark(self) -> str:
        return self._figures.benchmark

    def _known(self) -> dict[str, dict[str, Any]]:
        for document in load_results(RESULTS):
            if document["benchmark"] == self._figures.benchmark:
                for row in document["rows"]:
                    if row["what"] == self._what:
                        return dict(row["details"].get("cells", {}))
        return {}

    def knows(self, key: str) -> bool:
        return key in self._cells and not self._again

    def measure(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Measure a cell in a child process and write the row anew, unless it is known."""
        measure_together([self], key, lambda: [in_child(function, *arguments)])

    def add(self, key: str, cell: Mapping[str, Any]) -> None:
        self._cells[key] = {**cell, "commit": commit()}

    def forget(self) -> None:
        """Leave out what is known of earlier runs."""
        self._cells = {}

    def report(self) -> None:
        """Show the row at the end of the run, in place of how it stood after an earlier cell."""
        rows = self._figures.figures.rows
        rows[:] = [row for row in rows if row.what != self._what]
        rows.append(self.figure())

    def values(self, name: str) -> list[float]:
        return [float(cell[name]) for _, cell in sorted(self._cells.items())]

    def spread(self, name: str) -> str:
        """Mean and standard deviation over the cells, as text."""
        values = self.values(name)
        if len(values) < 2:
            return f"{values[0]:.3f}"
        return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"

    def figure(self) -> Figure:
        """The row as it stands."""
        raise NotImplementedError


def measure_together(
    rows: Sequence[Kept], key: str, function: Callable[[], Sequence[Mapping[str, Any]]]
) -> bool:
    """One cell of each row, by one call that returns them in that order; whether anything was measured."""
    if all(row.knows(key) for row in rows):
        return False
    for row, cell in zip(rows, function(), strict=True):
        row.add(key, cell)
    write_results(rows[0].benchmark, [row.figure() for row in rows], [])
    return True


def keep(
    rows: Sequence[Kept], key: str, function: Callable[[], Sequence[Mapping[str, Any]]], limit: int | None
) -> None:
    """Measure a cell, keep it and show it; of a trial (a limit of images is given) only show it."""
    if limit is None:
        measured = measure_together(rows, key, function)
    else:
        for row, cell in zip(rows, function(), strict=True):
            row.forget()
            row.add(key, cell)
        measured = True
    if measured:
        for row in rows:
            row.report()
