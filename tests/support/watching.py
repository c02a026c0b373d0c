"""A watch in a thread of the test, and what it has written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.serving import wait_for

from ensemblead.service.results import LINES, Results
from ensemblead.service.watching import Watch, WatchSettings


class _Stop(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        raise AssertionError(
            "a signal handler that sets the event meanwhile would wait for its lock for ever"
        )


@contextmanager
def watching(detector: Any, folder: Path, out: Path, **settings: Any) -> Iterator[Watch]:
    """A watch in another thread, until the block ends; it raises what the watch has raised."""
    stop, errors, started = _Stop(), list[BaseException](), list[Watch]()

    def run() -> None:
        try:
            with Results(out, str(folder)) as results:
                given = WatchSettings(**{"settle": 0.03, "give_up": 30.0, **settings})
                started.append(Watch(detector, folder, results, given, model="m"))
                started[0].run(stop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: started or errors)
        if started:
            yield started[0]
        if settings.get("once"):
            thread.join(60)
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / LINES
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def paths(out: Path) -> list[str]:
    return sorted(row["path"] for row in rows(out))
