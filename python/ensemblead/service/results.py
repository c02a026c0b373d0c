"""What `watch` has found: a database, which is the truth, and the same as JSON lines for programs that
follow.

A batch is one transaction of the database; its lines are appended afterwards. After a kill at any moment the
lines are brought to the database: a torn one is cut off, those that lack are written.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemblead.common.errors import EnsembleADError
from ensemblead.common.files import StrPath, valid_text, write_atomically
from ensemblead.common.locks import lock_file, unlock
from ensemblead.common.warnings import warn

DATABASE, LINES, _LOCK = "results.sqlite", "results.jsonl", "watch.lock"
_VERSION = 1
# Nothing at all, a link that leads back to itself, and one to where this process may not look.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
# So much of the end of the lines is searched for the last one that is whole.
_TAIL_BYTES = 1 << 16
_TABLES = """
CREATE TABLE results (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('scored', 'failed')), anomaly_score REAL, threshold REAL,
    is_anomalous INTEGER, error TEXT, heat_map TEXT, model TEXT NOT NULL, finished TEXT NOT NULL,
    UNIQUE (path, size, mtime_ns));
CREATE TABLE passed_over (
    path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    PRIMARY KEY (path, size, mtime_ns)) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class FileVersion:
    """One content of one file: rewritten, it is another. `path` is relative to the folder that is watched."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, folder: StrPath, path: str) -> FileVersion | None:
        """The version that lies there now; None if there is none."""
        try:
            found = os.stat(os.path.join(folder, path))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None
        return cls(path, found.st_size, found.st_mtime_ns)

    @property
    def key(self) -> tuple[str, int, int]:
        """As it is stored: names that are not UTF-8 are escaped. Times beyond the year 2262, of clocks that
        are wrong, do not fit into SQLite's 64 bits, and begin again below.
        """
        return valid_text(self.path), self.size, (self.mtime_ns + 2**63) % 2**64 - 2**63


@dataclass(frozen=True)
class Finding:
    """One row, without its number. `status` is "scored", or "failed" with an `error` and no score;
    `threshold` is None where the model has none; `finished` is UTC.
    """

    status: str
    model: str
    finished: str
    anomaly_score: float | None = None
    threshold: float | None = None
    is_anomalous: bool | None = None
    error: str | None = None
    heat_map: str | None = None


class Results:
    """The results in a folder, for one writer at a time. Use as a context manager.

    Args:
        folder: a folder on a local disk; it is made if it is missing.
        watched: the folder that is watched, as an absolute path; results of another one are refused.

    Attributes: `is_new`, until `begin` was called once.

    Raises EnsembleADError if another process writes there, or if what is there cannot be gone on with.
    """

    def __init__(self, folder: Path, watched: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines, self._watched = folder / LINES, valid_text(watched)
        try:
            self._lock = lock_file(folder / _LOCK)
        except BlockingIOError:
            raise EnsembleADError(f"out: another process writes its results to {folder}") from None
        try:
            self._database = _open_database(folder / DATABASE)
            try:
                self.is_new = self._check()
                self._mend_lines()
            except BaseException as error:
                self._database.close()
                if (said := _explained(error, folder)) is not error:
                    raise said from error
                raise
        except BaseException:
            unlock(self._lock)
            raise
        self._folder = folder

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._database.close()
        unlock(self._lock)
        if error is not None and (said := _explained(error, self._folder)) is not error:
            raise said from error

    def counts(self) -> dict[str, int]:
        """Images that were scored, the anomalous ones of them, and files that failed."""
        query = "SELECT TOTAL(status = 'scored'), TOTAL(is_anomalous), TOTAL(status = 'failed') FROM results"
        names = ("images", "anomalous", "failed")
        return dict(zip(names, map(int, self._database.execute(query).fetchone()), strict=True))

    def knows(self, version: FileVersion) -> bool:
        """Whether a file in this version has a result, or was to be passed over."""
        tables = " UNION ALL ".join(
            f"SELECT 1 FROM {table} WHERE path = ? AND size = ? AND mtime_ns = ?"
            for table in ("results", "passed_over")
        )
        return self._database.execute(tables, version.key * 2).fetchone() is not None

    def begin(self, passed_over: Iterable[FileVersion] = ()) -> None:
        """Begin results that are new; these files are left out from now on."""
        with self._database:
            keys = (version.key for version in passed_over)
            self._database.executemany("INSERT OR IGNORE INTO passed_over VALUES (?, ?, ?)", keys)
            self._database.execute("INSERT INTO facts VALUES ('folder', ?)", (self._watched,))
        self.is_new = False

    def add(self, found: Sequence[tuple[FileVersion, Finding]]) -> None:
        """Keep results, all or none: they are on the disk when this returns."""
        if not found:
            return
        last = self._last()
        columns = "path, size, mtime_ns, status, model, finished, anomaly_score, threshold, is_anomalous"
        insert = f"INSERT INTO results ({columns}, error, heat_map) VALUES ({', '.join('?' * 11)})"
        with self._database:
            for version, finding in found:
                self._database.execute(insert, (*version.key, *asdict(finding).values()))
        self._append(last)

    def _check(self) -> bool:
        """Make the tables, if there are none; whether nothing was begun yet."""
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            if self._lines.exists() and self._lines.stat().st_size:
                raise EnsembleADError(f"out: {self._lines} is there without its {DATABASE}; move it away")
            self._database.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise EnsembleADError(f"out: {DATABASE} has version {version}, this release reads {_VERSION}")
        row = self._database.execute("SELECT value FROM facts WHERE name = 'folder'").fetchone()
        if row is not None and row[0] != self._watched:
            raise EnsembleADError(f"out: it has results of the folder {row[0]}, not of {self._watched}")
        return row is None

    def _last(self) -> int:
        (number,) = self._database.execute("SELECT COALESCE(MAX(id), 0) FROM results").fetchone()
        return int(number)

    def _rows(self, after: int) -> Iterable[str]:
        """The lines of all rows behind a number."""
        cursor = self._database.execute("SELECT * FROM results WHERE id > ? ORDER BY id", (after,))
        names = [column[0] for column in cursor.description]
        for row in cursor:
            document: dict[str, Any] = dict(zip(names, row, strict=True))
            if document["is_anomalous"] is not None:
                document["is_anomalous"] = bool(document["is_anomalous"])
            yield json.dumps(document, allow_nan=False) + "\n"

    def _append(self, after: int) -> None:
        with self._lines.open("a", encoding="utf-8") as file:
            file.writelines(self._rows(after))

    def _mend_lines(self) -> None:
        """Bring the lines to the database: cut off what is torn, append what lacks."""
        with self._lines.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _TAIL_BYTES)
            file.seek(start)
            tail = file.read()
            end = tail.rfind(b"\n") + 1
            whole, number = end, None
            while end > 0 and number is None:
                begin = tail.rfind(b"\n", 0, end - 1) + 1
                number = self._number_of(tail[begin:end])
                end = end if number is not None else begin
            if number is not None:
                file.truncate(start + end)
        if end < whole:
            again = "and is written anew" if number is None else "at its end, which is written anew"
            warn(f"{self._lines} was not what {DATABASE} says, {again}")
        if number is None and size:
            write_atomically(self._lines, b"")
        self._append(number or 0)

    def _number_of(self, line: bytes) -> int | None:
        """The number of the row that a line is of, if it is that row's, to the last byte."""
        with suppress(ValueError, TypeError, KeyError):
            number = json.loads(line)["id"]
            if isinstance(number, int) and next(iter(self._rows(number - 1)), None) == line.decode():
                return number
        return None


def _explained(error: BaseException, folder: Path) -> BaseException:
    """What SQLite says of a disk or a file, as an error that names it; any other error as it is."""
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        return EnsembleADError(f"out: {folder / DATABASE}: {error}")
    return error


def _open_database(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, timeout=30.0)
        try:
            # Readers do not hold up the writer, nor it them; a commit is on the disk when it returns.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as error:
        raise EnsembleADError(f"out: {path} cannot be read: {error}") from error
    return database
