"""The catalogue of an image index: one entry per stored row, in SQLite. A transaction is a commit of the
index.

An entry has a number for life (`id`), and a place in the file of vectors (`row`), which changes when the
index is compacted. `crc` covers an entry's other columns and its vector.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import DamagedModelError, IndexBusyError
from ensemblead.common.validation import did_you_mean

NAME = "catalogue.sqlite"
# Another writer has the file for a moment only: all writers wait for the index's own lock first.
_PATIENCE_SECONDS = 10.0
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE images (
    id INTEGER PRIMARY KEY, row INTEGER NOT NULL UNIQUE, path TEXT NOT NULL, sha256 TEXT, bytes INTEGER,
    mtime_ns INTEGER, height INTEGER, width INTEGER, label TEXT, added INTEGER NOT NULL, removed INTEGER,
    crc INTEGER NOT NULL
);
CREATE UNIQUE INDEX present ON images (path) WHERE removed IS NULL;
CREATE INDEX dead ON images (row) WHERE removed IS NOT NULL;
CREATE INDEX labelled ON images (label) WHERE removed IS NULL;
CREATE TABLE state (rows INTEGER, generation INTEGER, next_id INTEGER, version INTEGER);
INSERT INTO state VALUES (0, 0, 0, 0);
COMMIT;
"""
# Columns that a search may be restricted by.
COLUMNS = ("id", "path", "sha256", "bytes", "mtime_ns", "height", "width", "label", "added")


@dataclass(frozen=True)
class State:
    """What is committed: rows of vectors, in the file of which generation, the next image's number, and how
    many commits there were.
    """

    rows: int
    generation: int
    next_id: int
    version: int


class Entry(NamedTuple):
    """An image of the index. Without a file (`sha256` None) its path is just a name."""

    id: int
    path: str
    sha256: str | None
    bytes: int | None
    mtime_ns: int | None
    height: int | None
    width: int | None
    label: str | None
    added: int  # seconds since 1970
    removed: int | None = None

    def crc(self, vector: npt.NDArray[Any]) -> int:
        """The checksum of the entry and its vector, as it is stored."""
        return zlib.crc32(vector.tobytes(), zlib.crc32(json.dumps(self).encode()))


_FIELDS = ", ".join(Entry._fields)


class Catalogue:
    """The open catalogue of one folder. Its errors name the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._errors():
            self._sql = sqlite3.connect(
                f"{(folder / NAME).absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=_PATIENCE_SECONDS,
            )
        self.close = self._sql.close
        try:
            with self._errors():
                # A commit is on the disk when it returns.
                self._sql.execute("PRAGMA synchronous = FULL")
                self.state()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(folder: Path) -> None:
        """An empty one, unless there is one."""
        connection = sqlite3.connect(folder / NAME, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                connection.executescript(_SCHEMA)
        finally:
            connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise ValueError(f"the image index {self._folder} is closed: {error}") from error
        except UnicodeDecodeError as error:  # damage that stands in SQLite's own message
            raise DamagedModelError(f"{self._folder / NAME} is damaged: {error}") from error
        except sqlite3.DatabaseError as error:
            text, path = str(error), self._folder / NAME
            operational = isinstance(error, sqlite3.OperationalError)
            if operational and "locked" in text:
                raise IndexBusyError(f"{self._folder} is being written to") from error
            if operational and any(word in text for word in ("readonly", "unable to open")):
                raise OSError(
                    f"{path}: {text}; SQLite writes into the folder for readers, too: is it writable?"
                ) from error
            if operational and any(word in text for word in ("full", "disk I/O")):
                raise OSError(f"{path}: {text}") from error
            raise DamagedModelError(f"{path} is damaged: {text}") from error

    @contextmanager
    def snapshot(self) -> Iterator[State]:
        """Inside, all that is read is of one commit; within another snapshot, of the same."""
        with self._errors():
            if self._sql.in_transaction:
                yield self.state()
                return
            self._sql.execute("BEGIN")
            try:
                yield self.state()
            finally:
                self._sql.execute("COMMIT")

    @contextmanager
    def commit(self) -> Iterator[State]:
        """What is written inside is committed at the end, or none of it."""
        with self._errors():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self.state()
                self._sql.execute("UPDATE state SET version = version + 1")
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                raise

    # Reading

    def state(self) -> State:
        """The last commit."""
        with self._errors():
            found = self._sql.execute("SELECT rows, generation, next_id, version FROM state").fetchall()
        if len(found) != 1 or not all(type(value) is int and value >= 0 for value in found[0]):
            raise DamagedModelError(f"{self._folder / NAME} is damaged: its state is {found}")
        return State(*found[0])

    def dead_rows(self) -> npt.NDArray[np.int64]:
        """The rows of images that were removed, ascending."""
        return self._rows("SELECT row FROM images WHERE removed IS NOT NULL ORDER BY row")

    def rows_where(self, where: Mapping[str, Sequence[Any]]) -> npt.NDArray[np.int64]:
        """The rows, ascending, of the images that meet `checked_conditions`."""
        conditions, values = ["removed IS NULL"], []
        for column, several in where.items():
            # Only names that are known stand in the statement; values are bound.
            null = f" OR {column} IS NULL" if None in several else ""
            conditions.append(f"({column} IN (SELECT value FROM json_each(?)){null})")
            values.append(json.dumps([value for value in several if value is not None]))
        return self._rows(f"SELECT row FROM images WHERE {' AND '.join(conditions)} ORDER BY row", values)

    def by_row(self, rows: npt.NDArray[np.int64]) -> dict[int, Entry]:
        """The entries of rows."""
        return dict(self._chosen("row", rows.tolist(), "row", removed=True))

    def by_path(self, paths: Sequence[str]) -> dict[str, tuple[int, Entry]]:
        """Row and entry of the images with these paths; without those that there are not."""
        return {entry.path: (row, entry) for row, entry in self._chosen("path", paths, "row")}

    def by_id(self, ids: Sequence[int]) -> dict[int, tuple[int, Entry]]:
        """Row and entry of the images with these numbers; without those that there are not."""
        return {entry.id: (row, entry) for row, entry in self._chosen("id", ids, "row")}

    def every(self) -> Iterator[tuple[int, Entry, int]]:
        """Row, entry and checksum of all rows, removed ones too, in the order of rows."""
        with self._errors():
            for row, crc, *fields in self._sql.execute(
                f"SELECT row, crc, {_FIELDS} FROM images ORDER BY row"
            ):
                yield row, Entry(*fields), crc

    def check(self) -> None:
        """Raise DamagedModelError for what SQLite finds wrong."""
        with self._errors():
            said = [row[0] for row in self._sql.execute("PRAGMA integrity_check(3)")]
        if said != ["ok"]:
            raise DamagedModelError(f"{self._folder / NAME} is damaged: {'; '.join(map(str, said))}")

    def _chosen(
        self, column: str, values: Sequence[Any], key: str, removed: bool = False
    ) -> Iterator[tuple[int, Entry]]:
        statement = f"SELECT {key}, {_FIELDS} FROM images WHERE {column} IN (SELECT value FROM json_each(?))"
        with self._errors():
            found = self._sql.execute(
                statement + ("" if removed else " AND removed IS NULL"), [json.dumps(list(values))]
            ).fetchall()
        for number, *fields in found:
            yield number, Entry(*fields)

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> npt.NDArray[np.int64]:
        with self._errors():
            found = self._sql.execute(statement, values)
            return np.fromiter((row for (row,) in found), dtype=np.int64)

    # Writing, inside `commit`

    def append(self, state: State, entries: Sequence[Entry], crcs: Sequence[int]) -> None:
        """Entries for the rows behind those that there are, in order."""
        marks = ", ".join("?" * (len(Entry._fields) + 2))
        rows = range(state.rows, state.rows + len(entries))
        self._sql.executemany(
            f"INSERT INTO images (row, crc, {_FIELDS}) VALUES ({marks})",
            ((row, crc, *entry) for row, crc, entry in zip(rows, crcs, entries, strict=True)),
        )
        last = max((entry.id for entry in entries), default=state.next_id - 1)
        self._sql.execute("UPDATE state SET rows = ?, next_id = ?", (rows.stop, max(state.next_id, last + 1)))

    def replace(self, entries: Iterable[tuple[Entry, int]]) -> None:
        """Other columns for images that there are, with their checksums."""
        names = [name for name in Entry._fields if name != "id"]
        columns = ", ".join(f"{name} = ?" for name in names)
        self._sql.executemany(
            f"UPDATE images SET crc = ?, {columns} WHERE id = ?",
            ((crc, *entry[1:], entry.id) for entry, crc in entries),
        )

    def compact(self, state: State, rows: npt.NDArray[np.int64]) -> None:
        """Keep these rows alone, ascending, numbered anew, as the next generation."""
        self._sql.execute("DELETE FROM images WHERE removed IS NOT NULL")
        # Ascending: the place that a row moves to is free.
        moved = ((new, old) for new, old in enumerate(rows.tolist()) if new != old)
        self._sql.executemany("UPDATE images SET row = ? WHERE row = ?", moved)
        self._sql.execute("UPDATE state SET rows = ?, generation = ?", (len(rows), state.generation + 1))


def checked_conditions(where: Any) -> dict[str, list[Any]]:
    """For every column the values of which one must be there, from a value or several for each.

    Raises ValueError for an unknown column and for texts that no column can have, TypeError for values of
    other kinds.
    """
    if not isinstance(where, Mapping):
        raise TypeError(f"where must be a mapping from columns, got {type(where).__name__}")
    for column in where:
        if column not in COLUMNS:
            raise ValueError(f"where: unknown column {column!r}; {did_you_mean(column, COLUMNS)}")
    found = {column: as_list(wanted) for column, wanted in where.items()}
    for column, value in ((column, value) for column, several in found.items() for value in several):
        if value is not None and type(value) not in (str, int):
            raise TypeError(
                f"where: {column} must be a text, a whole number, None or a list of those, got {value!r}"
            )
        if isinstance(value, str) and not is_storable(value):
            raise ValueError(f"where: {column} must be UTF-8 without NUL, got {value!a}")
    return found


def is_storable(text: str) -> bool:
    """Whether the catalogue can keep a text, and find it again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text  # where a text ends for SQLite's JSON


def as_list(values: Any) -> list[Any]:
    """One value or several as a list, those of NumPy as Python has them."""
    several = list(values) if isinstance(values, (list, tuple, set, frozenset, np.ndarray)) else [values]
    return [value.item() if isinstance(value, np.generic) else value for value in several]
