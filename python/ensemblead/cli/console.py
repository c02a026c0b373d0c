"""Output of commands: results on stdout, everything else on stderr, one line per error, and exit codes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

import typer

from ensemblead.common.errors import (
    BackboneUnavailableError,
    EnsembleADError,
    UnreadableImageError,
    WeightsUnavailableError,
)
from ensemblead.common.extras import EXTRAS, missing_extra
from ensemblead.common.warnings import ThresholdWarning

# Exit codes, as `ensemblead --help` states them.
FAILED, BAD_INPUT, DRIFTED, INTERRUPTED = 1, 2, 3, 130

_TRACEBACK = "ENSEMBLEAD_TRACEBACK"
_P = ParamSpec("_P")

# Arguments in messages of the library, and the options that stand for them.
_OPTIONS = (
    (re.compile(r"pass ead\.load\([^)]*\bweights=\.\.\.\) with"), "give --weights PATH with"),
    (re.compile(r"\bpass weights=PATH\b"), "give --weights PATH"),
    (re.compile(r"\bweights=None\b"), "--weights none"),
    (re.compile(r'\bbackbone="gabor"'), "-b gabor"),
    (re.compile(r"""\berrors=["']skip["']"""), "--skip-unreadable"),
    (re.compile(r"""\bmissing_masks=["']exclude["']"""), "--missing-masks exclude"),
    (re.compile(r"\binclude_backbone=True\b"), "--include-backbone"),
    (re.compile(r"\blayers=\[\.\.\.\] with names"), "-le LAYER with layers"),
    (re.compile(r" \(see \.skipped_\)"), ""),
    (re.compile(r"\bimage_size=\(h, w\)"), "--image-size HxW"),
    (re.compile(r"\bmemory_budget=(\d+)"), r"--memory-budget \1"),
    (re.compile(r"\bcoreset_size=(\d+)"), r"--coreset-size \1"),
    (re.compile(r"\bmax_rows=(\d+)"), r"--max-rows \1"),
    (re.compile(r"\bor call calibrate\b"), "or set the threshold by fresh ones (--calibrate FOLDER)"),
)
_STORE_WEIGHTS = "; fit and fuse --include-backbone store a network's weights with the model"


def show_tracebacks(wanted: bool) -> None:
    """`--debug`, for this process and those it starts."""
    if wanted:
        os.environ[_TRACEBACK] = "1"


def report_error(error: BaseException) -> int:
    """Print an error as one line on stderr; return the exit code that it means. Others are raised again.

    ENSEMBLEAD_TRACEBACK=1 (or --debug) raises everything.
    """
    if isinstance(error, KeyboardInterrupt):
        print(f"ensemblead: interrupted{f': {error}' if error.args else ''}", file=sys.stderr)
        return INTERRUPTED
    if os.environ.get(_TRACEBACK) == "1":
        raise error
    if not isinstance(error, (EnsembleADError, OSError, ValueError, TypeError)):
        raise error
    print(f"ensemblead: {error_line(error)}", file=sys.stderr)
    inputs = (ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return BAD_INPUT if isinstance(error, inputs) else FAILED


def _with_options(text: str) -> str:
    """A message of the library with options of the command line in place of arguments."""
    for pattern, option in _OPTIONS:
        text = pattern.sub(option, text)
    return text


def error_line(error: BaseException) -> str:
    """An error's message in one line, with options of the command line in place of arguments."""
    line = _with_options(" ".join(line.strip() for line in str(error).splitlines() if line.strip()))
    if isinstance(error, UnreadableImageError) and "--skip-unreadable" not in line:
        line += "; --skip-unreadable leaves such images out"
    if isinstance(error, WeightsUnavailableError) and "--weights" not in line:
        line += " (--weights PATH takes a file)"
    if isinstance(error, (WeightsUnavailableError, BackboneUnavailableError)):
        line += _STORE_WEIGHTS
    return line or type(error).__name__


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """A command whose errors become exit codes."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader of stdout has gone: typer ends quietly
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise typer.Exit(report_error(missing_extra(error.name, "this command"))) from None
        except (KeyboardInterrupt, EnsembleADError, OSError, ValueError, TypeError) as error:
            raise typer.Exit(report_error(error)) from None

    return run


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout; NaN becomes null."""
    typer.echo(json.dumps(without_infinities(document), indent=2, allow_nan=False))


def without_infinities(value: Any) -> Any:
    """Plain values with None for NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(item) for item in value]
    return value


@contextlib.contextmanager
def reported_warnings() -> Iterator[list[str]]:
    """Warnings of the library become a line each on stderr, and are kept for the JSON summary."""
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not issubclass(category, UserWarning):
                before(message, category, *rest, **more)
                return
            for line in _with_options(str(message)).splitlines():
                if line not in lines:
                    lines.append(line)
                    print(f"ensemblead: warning: {line}", file=sys.stderr)

        warnings.showwarning = show
        yield lines


@contextlib.contextmanager
def without_threshold_warnings() -> Iterator[None]:
    """Around a `fit` that `calibrate` follows: its threshold is replaced, so warnings of it are too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        yield


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._start
