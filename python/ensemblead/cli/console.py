"""How commands speak: results on stdout, everything else on stderr, one line per error, and exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ensemblead.common.errors import EnsembleADError, WeightsUnavailableError
from ensemblead.common.extras import EXTRAS, missing_extra
from ensemblead.common.warnings import ThresholdWarning

# Exit codes, as `ensemblead --help` states them.
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

_TRACEBACK = "ENSEMBLEAD_TRACEBACK"
_P = ParamSpec("_P")


def show_tracebacks(wanted: bool) -> None:
    """`--debug`, for this process and those it starts."""
    if wanted:
        os.environ[_TRACEBACK] = "1"


def report_error(error: BaseException) -> int:
    """Tell of an error in one line on stderr; the exit code that it means. What is not ours is raised again.

    ENSEMBLEAD_TRACEBACK=1 (or --debug) raises everything.
    """
    if isinstance(error, KeyboardInterrupt):
        print("ensemblead: interrupted", file=sys.stderr)
        return INTERRUPTED
    if os.environ.get(_TRACEBACK) == "1":
        raise error
    if not isinstance(error, (EnsembleADError, OSError, ValueError, TypeError)):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, WeightsUnavailableError):
        lines.append("(on the command line: --weights PATH)")
    print(f"ensemblead: {' '.join(lines) or type(error).__name__}", file=sys.stderr)
    inputs = (ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return BAD_INPUT if isinstance(error, inputs) else FAILED


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """A command whose errors become exit codes."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # whoever read stdout has gone: typer ends quietly
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise typer.Exit(report_error(missing_extra(error.name, "this command"))) from None
        except (KeyboardInterrupt, EnsembleADError, OSError, ValueError, TypeError) as error:
            raise typer.Exit(report_error(error)) from None

    return run


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout; NaN becomes null."""
    typer.echo(json.dumps(_plain(document), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@contextlib.contextmanager
def told_warnings() -> Iterator[list[str]]:
    """Warnings of the library become a line each on stderr, and are kept for the JSON summary."""
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if category not in (UserWarning, ThresholdWarning):
                before(message, category, *rest, **more)
                return
            for line in str(message).splitlines():
                if line not in lines:
                    lines.append(line)
                    print(f"ensemblead: warning: {line}", file=sys.stderr)

        warnings.showwarning = show
        yield lines


@contextlib.contextmanager
def threshold_to_come() -> Iterator[None]:
    """Around a `fit` that `calibrate` follows: nobody will see the threshold that `fit` would warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        yield


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


_WORDS = {
    "embed": "reading images",
    "select": "selecting the coreset",
    "calibrate": "scoring without themselves",
    "join": "joining tiles",
    "predict": "predicting",
}


class Bars:
    """Progress bars on stderr, one per stage; on a terminal only. `Bars()` is a `progress` callback."""

    def __init__(self, prefix: str = "") -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # names of categories and detectors are in it
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._prefix = prefix
        self._tasks: dict[str, tuple[TaskID, int]] = {}  # by stage, with how much was done

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def prefix(self, text: str) -> None:
        """What to say before the stage from now on, such as a category's name."""
        self._prefix, self._tasks = text, {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        # A stage that starts over belongs to the next member of an ensemble. Stages may take turns: tiles are
        # fitted group by group.
        task, before = self._tasks.get(stage, (None, 0))
        if task is None or done < before:
            words = f"{self._prefix} {_WORDS.get(stage, stage)}".strip()
            task = self._progress.add_task(words, total=total)
        self._tasks[stage] = task, done
        self._progress.update(task, completed=done, total=total)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._start
