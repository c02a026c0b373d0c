"""A folder under watch: every image that appears in it is scored once.

An image is one version of one file: its path in the folder, its size, and the time of its last change. A file
that is written anew is a new image, and so is one that is renamed or moved.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.extras import require
from ensemblead.common.validation import positive_number
from ensemblead.detectors import Detector
from ensemblead.images.folders import belongs, scan_folder
from ensemblead.service.results import FileVersion, Finding, Results
from ensemblead.service.scoring import OF_IMAGES, Scored, score_each

# Seconds between two looks at the clock, and, beside the system's events, between two at the whole folder.
_TICK, _RESCAN = 0.1, 60.0
# Seconds after a new folder, to which files may have come unheard.
_AGAIN = 5.0
# Of the error with which watchfiles ends at a name that is no UTF-8.
_UNNAMED = "Unable to decode path"
# Given the path of an image, its path in the folder and its result: writes a heat map, and returns its name.
Draw = Callable[[str, str, Scored], str]


@dataclass(frozen=True)
class WatchSettings:
    """How a folder is watched.

    Attributes:
        settle: seconds for which a file's size and time must stay before it is read.
        give_up: seconds after which a file that stays as it is and cannot be read counts as failed.
        poll: seconds between two looks at the whole folder, in place of the system's events, which shares of
            other machines do not send; None: events.
        new_only: pass over the files that are there when the first watch begins.
        once: end when all that is there has a result.
    """

    settle: float = 0.5
    give_up: float = 10.0
    poll: float | None = None
    new_only: bool = False
    once: bool = False

    def __post_init__(self) -> None:
        for name in ("settle", "give_up", "poll"):
            if (value := getattr(self, name)) is not None:
                positive_number(name, value)


@dataclass
class _Pending:
    """A file that has no result yet: in this version since then; when it is to be looked at next."""

    version: FileVersion
    since: float
    next: float
    tries: int = 0


class Watch:
    """Scores the images of a folder as they come.

    Args:
        folder: with all folders below it.
        results: where they go.
        model: what the results say of the model that they are of.
        draw: makes heat maps; None: none.
        report: is called with the counts of results, and of files that wait, when they change.

    Memory does not grow with the number of results; a file that waits takes some hundred bytes.
    """

    def __init__(
        self,
        detector: Detector,
        folder: Path,
        results: Results,
        settings: WatchSettings,
        *,
        model: str,
        draw: Draw | None = None,
        report: Callable[[dict[str, int]], object] | None = None,
    ) -> None:
        self.counts = {**results.counts(), "waiting": 0}
        self._detector, self._folder, self._results = detector, folder.resolve(), results
        self._settings, self._model, self._draw, self._report = settings, model, draw, report
        threshold = float(detector.threshold_)
        self._threshold = threshold if abs(threshold) != float("inf") else None
        self._pending: dict[str, _Pending] = {}
        self._next_scan = 0.0

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set, or, with `once`, until nothing waits. A batch under way is finished.

        Raises OSError where the folder cannot be read or watched any more, and what `predict` raises for
        causes other than an image.
        """
        with closing(self._events(stop)) as events:
            next(events, ())  # the events begin before the first look, so that no file falls between the two
            if self._results.is_new:
                self._results.begin(self._versions() if self._settings.new_only else ())
            self._scan()
            while not stop.is_set():
                worked = self._work()
                self._say()
                if self._settings.once:
                    if not self._pending:
                        break
                elif time.monotonic() >= self._next_scan:
                    self._scan()
                if not worked:
                    for path in next(events, ()):
                        self._notice(path)

    def _events(self, stop: threading.Event) -> Generator[Iterable[str], None, None]:
        """Paths in the folder at which something has happened; none, again and again, while nothing does."""
        if self._settings.once or self._settings.poll is not None:
            yield ()
            # Not `stop.wait`: a signal handler that sets the event meanwhile would wait for the event's lock.
            while not stop.is_set():
                time.sleep(_TICK)
                yield ()
            return
        watchfiles = require("watchfiles", "watching a folder")
        options: dict[str, Any] = {"watch_filter": None, "yield_on_timeout": True, "stop_event": stop}
        options |= {"rust_timeout": round(1000 * _TICK), "debounce": 500}
        while not stop.is_set():
            watched, heard = self._identity(), False
            try:
                with closing(watchfiles.watch(self._folder, **options)) as changed:
                    for changes in changed:
                        yield [os.path.relpath(path, self._folder) for _, path in changes]
                        heard = True
                        if self._identity() != watched:
                            break  # another folder bears the name, as after a mount: it is watched instead
            except (OSError, RuntimeError) as error:  # of inotify, as where its limits are reached
                if not heard and _UNNAMED not in str(error):
                    raise OSError(
                        f"{self._folder} cannot be watched: {error}; --poll SECONDS looks itself"
                    ) from error
                # It begins anew, and a scan finds what it did not tell.
            self._next_scan = 0.0

    def _identity(self) -> tuple[int, int]:
        found = os.stat(self._folder)
        return found.st_dev, found.st_ino

    def _versions(self) -> Iterator[FileVersion]:
        """Everything that is there."""
        for path in scan_folder(self._folder).images:
            version = FileVersion.of(self._folder, os.path.relpath(path, self._folder))
            if version is not None:
                yield version

    def _scan(self) -> None:
        for version in self._versions():
            self._wait_for(version)
        self._next_scan = time.monotonic() + (self._settings.poll or _RESCAN)

    def _notice(self, path: str) -> None:
        """Something has happened there."""
        place = os.path.normpath(os.path.join(self._folder, path))
        is_folder = os.path.isdir(place)
        real = place if is_folder else os.path.dirname(place)
        if os.path.realpath(real) != real:
            self._next_scan = 0.0  # a linked folder may have another name
        elif is_folder:
            # Nobody tells of files in a folder that was moved here. Those that come to a new one before the
            # system's events of it begin are found soon after, with all others.
            self._next_scan = min(self._next_scan, time.monotonic() + _AGAIN)
            with suppress(FileNotFoundError, NotADirectoryError):
                for image in scan_folder(place).images:
                    self._notice(os.path.relpath(image, self._folder))
        elif belongs(self._folder, path):
            version = FileVersion.of(self._folder, path)
            if version is not None:
                self._wait_for(version)

    def _wait_for(self, version: FileVersion) -> None:
        known = self._pending.get(version.path)
        if known is not None and known.version == version:
            return
        if self._results.knows(version):
            self._pending.pop(version.path, None)
        else:
            now = time.monotonic()
            self._pending[version.path] = _Pending(version, now, now + self._settings.settle)

    def _due(self) -> list[_Pending]:
        """Up to a batch of files that have stayed as they are for long enough."""
        now, due = time.monotonic(), []
        for item in list(self._pending.values()) if self._pending else ():
            if item.next <= now and self._is_still(item):
                due.append(item)
                if len(due) == self._detector.batch_size:
                    break
        return due

    def _is_still(self, item: _Pending) -> bool:
        """Whether the file is in the same version; else it waits anew, or is dropped if it has gone."""
        version = FileVersion.of(self._folder, item.version.path)
        if version == item.version:
            return True
        del self._pending[item.version.path]
        if version is not None:
            self._wait_for(version)
        return False

    def _work(self) -> bool:
        """Score a batch; whether there was one."""
        due = self._due()
        paths = [os.path.join(self._folder, item.version.path) for item in due]
        found: list[tuple[FileVersion, Finding]] = []
        outcomes = score_each(self._detector, paths) if due else []
        for item, path, outcome in zip(due, paths, outcomes, strict=True):
            finding = self._finding(item, path, outcome)
            # What was read is of this version only if it is still there.
            if finding is not None and self._is_still(item):
                found.append((item.version, finding))
        self._results.add(found)
        for version, finding in found:
            del self._pending[version.path]
            self.counts["images"] += finding.status == "scored"
            self.counts["failed"] += finding.status == "failed"
            self.counts["anomalous"] += bool(finding.is_anomalous)
        return bool(due)

    def _finding(self, item: _Pending, path: str, outcome: Scored | Exception) -> Finding | None:
        """What is to be kept of an image; None if it is to be tried again, or has gone."""
        finished = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        drawn = None
        if isinstance(outcome, Scored) and self._draw is not None:
            try:
                drawn = self._draw(path, item.version.path, outcome)
            except (FileNotFoundError, UnreadableImageError) as error:
                outcome = error  # it has gone or changed since it was scored
        if isinstance(outcome, Scored):
            verdict = (outcome.score, self._threshold, outcome.is_anomalous)
            return Finding("scored", self._model, finished, *verdict, heat_map=drawn)
        if isinstance(outcome, FileNotFoundError):
            self._is_still(item)
            return None
        if not isinstance(outcome, OF_IMAGES):
            raise outcome
        now = time.monotonic()
        if now - item.since >= self._settings.give_up:
            return Finding("failed", self._model, finished, error=str(outcome) or type(outcome).__name__)
        # It may be half written. Each wait is twice as long as the one before.
        item.tries += 1
        again = now + self._settings.settle * 2**item.tries
        item.next = min(again, item.since + self._settings.give_up)
        return None

    def _say(self) -> None:
        self.counts["waiting"] = len(self._pending)
        if self._report is not None:
            self._report(self.counts)
