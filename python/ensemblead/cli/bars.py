"""Progress on stderr: on a terminal one bar per stage under way, and a line in between; else a line every
half minute.
"""

from __future__ import annotations

import sys
import time
from typing import TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_WORDS = {
    "augment": "comparing turned images",
    "embed": "reading images",
    "judge": "judging images by the others",
    "select": "selecting the coreset",
    "train": "training",
    "calibrate": "leave-one-out scores",
    "join": "merging tiles",
    "units": "fitting on workers",
    "predict": "predicting",
    "quantize": "quantizing",
    "verify": "verifying",
    "prepare": "preparing engines",
    "measure": "measuring",
    "evaluate": "evaluating",
    "index": "building the search structure",
    "duplicates": "comparing images",
    "weights": "measuring weights",
    "refit": "training on all images",
}
_SECONDS_BETWEEN_LINES = 30.0  # where stderr is no terminal
_SECONDS_OF_A_RATE = 300.0  # that it is measured over: steps of a training may take many seconds
_Stage: TypeAlias = tuple[str, str]  # the prefix and the stage


class _Words(ProgressColumn):
    """What goes on. Where the line is short, it is cut, and the bar too, so that the numbers stay."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _Amount(ProgressColumn):
    """How much is done, how much there is, and how much of it per second."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        speed = task.finished_speed or task.speed
        rate = "" if speed is None else f"  {speed:.1f}/s"
        return Text(f"{int(task.completed)}/{int(task.total)}{rate}", style="progress.download")


class Bars:
    """Progress of one command. `Bars()` is a `progress` callback: `bars(stage, done, total)`.

    A bar disappears when its stage is done. While no stage is under way, a line that moves names the step, so
    that a terminal never stands still. At most four lines are shown at a time.
    """

    def __init__(self, step: str = "starting") -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(table_column=Column(no_wrap=True)),
            _Words(),
            BarColumn(bar_width=24),
            _Amount(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            speed_estimate_period=_SECONDS_OF_A_RATE,
            disable=not console.is_terminal,
            transient=True,
        )
        self._said = None if console.is_terminal else time.monotonic()
        self._prefix = ""
        self._noted = ""  # of the stage that comes next
        self._tasks: dict[_Stage, tuple[TaskID, int]] = {}  # with how much was done
        self._overall: TaskID | None = None
        self._step = self._progress.add_task(step, total=None)

    def __enter__(self) -> Bars:
        self._progress.start()
        self._progress.refresh()  # the first line, before anything is imported
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """Name what goes on until the next stage."""
        self._remove_bars()
        self._progress.reset(self._step, description=f"{self._prefix} {text}".strip(), visible=True)

    def prefix(self, text: str) -> None:
        """Put a text before the stages from now on, such as a category's name."""
        self._prefix = text
        self._remove_bars()

    def overall(self, text: str, done: int, total: int) -> None:
        """One bar over everything, with the time that is left; it stays while stages come and go."""
        if self._overall is None:
            self._overall = self._progress.add_task(text, total=total)
        self._progress.update(self._overall, description=text, completed=done, total=total)

    def note(self, text: str, stays: bool) -> None:
        """Say more beside the bar of the stage under way; or, if it stays, in a line of its own."""
        if stays:
            self._progress.console.print(f"ensemblead: {text}", highlight=False, markup=False, soft_wrap=True)
        else:
            self._noted = text

    def __call__(self, stage: str, done: int, total: int) -> None:
        # A stage that starts over belongs to the next member of an ensemble. Stages may take turns: tiles are
        # fitted group by group.
        key = self._prefix, stage
        words = f"{self._prefix} {_WORDS.get(stage, stage)}".strip()
        noted, self._noted = self._noted, ""
        task, before = self._tasks.get(key, (None, 0))
        if task is None or done < before:
            if task is not None:
                self._progress.remove_task(task)
            task = self._progress.add_task(words, total=total)
        described = f"{words}: {noted}" if noted else words
        self._progress.update(task, description=described, completed=done, total=total)
        self._tasks[key] = task, done
        if self._said is not None and time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            said = [f"{done} of {total}", noted, self._time_left(task)]
            print(f"ensemblead: {words}: {', '.join(filter(None, said))}", file=sys.stderr)
        if done >= total:
            self._progress.remove_task(task)
            del self._tasks[key]
        self._progress.update(self._step, description=words, visible=not self._tasks)

    def _time_left(self, task: TaskID) -> str:
        """Of a stage, from a minute on; as the bars on a terminal have it."""
        left = next(one.time_remaining for one in self._progress.tasks if one.id == task)
        return f"{left / 60.0:.0f} min left" if left is not None and left >= 60.0 else ""

    def _remove_bars(self) -> None:
        for task, _ in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks = {}
