"""A program of another environment's Python that answers questions in lines of JSON: both its ends.

The standard library alone is used, since programs that import this have no package of this project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Answering:
    """The end that asks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the program has ended: its messages are above"
        return json.loads(line)


@contextmanager
def answering(python: str, program: str, folder: Path) -> Iterator[Answering]:
    """Run a file of this folder by another Python, in `folder`. It ends with the block."""
    process = subprocess.Popen(
        [python, str(Path(__file__).resolve().with_name(program))],
        cwd=folder,  # where anomalib leaves its caches
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Answering(process)
    finally:
        process.communicate()  # which closes its stdin, and so ends it


def seconds_of_calls(call: Callable[[Any], Any], images: Sequence[Any], count: int) -> list[float]:
    """The seconds of so many calls, each with one image after the other."""
    seconds = []
    for number in range(count):
        image = images[number % len(images)]
        begin = time.perf_counter()
        call(image)
        seconds.append(time.perf_counter() - begin)
    return seconds


def answer_all(start: Callable[[Any], tuple[Any, Callable[[Any], Any]]]) -> None:
    """The end that answers: `start` gets the first question, and returns its answer and what answers others.

    What libraries print goes to stderr, and the answers alone to stdout.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first, others = start(json.loads(sys.stdin.readline()))
    print(json.dumps(first), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(others(json.loads(line))), file=answers, flush=True)
