"""The folder of an image index: vectors, catalogue and search structure, always of one commit.

docs/design/index.md says in which order they are written, and what a reader sees meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ensemblead.common.errors import DamagedModelError, IndexBusyError
from ensemblead.common.files import sync_folder, write_atomically
from ensemblead.common.locks import unlock
from ensemblead.common.warnings import warn
from ensemblead.retrieval.catalogue import NAME as CATALOGUE
from ensemblead.retrieval.catalogue import Catalogue, Entry, State
from ensemblead.retrieval.layout import OURS, SUFFIXES, Manifest, lock
from ensemblead.retrieval.structures import SMALLEST, Progress, Structure
from ensemblead.retrieval.view import View
from ensemblead.search.cosine import Numbers, Rows

# A structure is written anew when it lacks more rows than this share of them, and more than `SMALLEST`.
_LACKING = 1 / 64
# Rows that are dead when the index is compacted by itself.
DEAD_SHARE = 0.25
_COPY_BYTES = 64 << 20


class IndexFolder:
    """An open index folder. Not for several threads at once.

    Raises FileNotFoundError, DamagedModelError and NewerFormatError as `ImageIndex.open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path)
        if not (path / CATALOGUE).is_file():
            raise DamagedModelError(f"{path} is incomplete: {CATALOGUE} is missing")
        self.catalogue = Catalogue(path)
        self._view: View | None = None
        self._lock = 0  # how many calls of this object hold the writer's lock
        try:
            with self.snapshot():
                pass
        except BaseException:
            self.catalogue.close()
            raise

    # Reading

    @contextmanager
    def snapshot(self) -> Iterator[View]:
        """Inside, catalogue and view are of one commit, whatever a writer does."""
        while True:
            with self.catalogue.snapshot() as state:
                view = self._seen(state)
                if view is not None:
                    self._view = view
                    yield view
                    return
            # A compaction has taken the file away between the two: its commit is there now.
            if self.catalogue.state() == state:
                raise DamagedModelError(f"{self.path} is incomplete: {self._vectors(state).name} is missing")

    def _seen(self, state: State) -> View | None:
        """The view of a state; None where its file is no longer there."""
        last = self._view
        if last is not None and last.state == state:
            return last
        try:
            rows = self._mapped(state)
        except FileNotFoundError:
            return None
        view = View(state, rows, self._within(rows, self.catalogue.dead_rows()))
        if last is not None and last.state.generation == state.generation:
            view.structure = last.structure
        return view

    def entries(self, rows: Numbers) -> list[list[Entry]]:
        """The entries of rows `[A, B]`, inside `snapshot`."""
        known = self.catalogue.by_row(np.unique(rows))
        try:
            return [[known[row] for row in line] for line in rows.tolist()]
        except KeyError as error:
            raise DamagedModelError(f"{self.path / CATALOGUE} is damaged: it has no row {error}") from error

    def rows_where(self, view: View, where: Mapping[str, Sequence[Any]]) -> Numbers:
        """See `Catalogue.rows_where`."""
        return self._within(view.rows, self.catalogue.rows_where(where))

    def _within(self, rows: Rows, numbers: Numbers) -> Numbers:
        if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(rows):
            raise DamagedModelError(
                f"{self.path / CATALOGUE} is damaged: it names row {numbers[-1]} of {len(rows)}"
            )
        return numbers

    def _mapped(self, state: State) -> Rows:
        path, dim, dtype = self._vectors(state), self.manifest.dim, np.dtype(self.manifest.dtype)
        size, wanted = path.stat().st_size, state.rows * dim * dtype.itemsize
        if size < wanted:
            raise DamagedModelError(
                f"{path} has {size} bytes, but {wanted} of {state.rows} rows were committed"
            )
        if state.rows == 0:
            return np.empty((0, dim), dtype)
        # Copied when written to, which nobody does: torch wants memory that could be.
        return np.memmap(path, dtype, "c", shape=(state.rows, dim)).view(np.ndarray)

    def use_structure(self) -> None:
        """Read or build the search structure, if the kind has one and there are rows enough. Not inside
        `snapshot`.
        """
        while True:
            with self.snapshot() as view:
                pass
            if view.structure is not None or self.manifest.kind == "flat" or len(view.rows) < SMALLEST:
                return
            path = self._ann(view.state)
            try:
                view.structure = Structure.read(path, self.manifest.kind, self.manifest.dim, len(view.rows))
                return
            except (FileNotFoundError, DamagedModelError) as error:
                if self.catalogue.state() != view.state:
                    continue  # a writer has put the structure of a later state there
                if isinstance(error, DamagedModelError):
                    warn(f"{error}; it is built anew from the vectors")
                break
        view.structure = self._built(view.rows)
        try:
            with self.writing():
                if self.catalogue.state().generation == view.state.generation:
                    view.structure.write(path)
        except IndexBusyError:
            pass  # the writer, or the next one, writes it
        except OSError as error:
            warn(f"the search structure cannot be written, and is built again by whoever opens it: {error}")

    def _built(self, rows: Rows, progress: Progress = lambda done, total: None) -> Structure:
        return Structure.build(self.manifest.kind, rows, self.manifest.seed, progress)

    def _vectors(self, state: State) -> Path:
        return self.path / f"vectors.{state.generation}.{SUFFIXES[self.manifest.dtype]}"

    def _ann(self, state: State) -> Path:
        return (
            self.path / f"ann.{state.generation}.{'usearch' if self.manifest.kind == 'usearch' else 'faiss'}"
        )

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, nobody else writes; what a killed writer has left behind is gone.

        Raises IndexBusyError if somebody does.
        """
        if self._lock == 0:
            self._locked = lock(self.path)
        self._lock += 1
        try:
            if self._lock == 1:
                self._clean()
            yield
        finally:
            self._lock -= 1
            if self._lock == 0:
                unlock(self._locked)

    def _clean(self) -> None:
        """Cut off rows that were not committed, and remove files of other generations."""
        with self.snapshot() as view:
            kept = {self._vectors(view.state), self._ann(view.state)}
            size = view.state.rows * self.manifest.dim * np.dtype(self.manifest.dtype).itemsize
        if self._vectors(view.state).stat().st_size > size:
            os.truncate(self._vectors(view.state), size)
        for pattern in ("vectors.*.*", "ann.*.*", ".*.tmp"):
            for path in self.path.glob(pattern):
                if path not in kept and OURS.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def append(self, entries: Sequence[Entry], vectors: Rows, removed: Sequence[Entry] = ()) -> None:
        """Commit images with their vectors `[B, D]`, and that others are removed. Inside `writing`.

        The images' numbers follow from the state: those in `entries` do not count.
        """
        with self.snapshot() as view:
            state = view.state
            dead = self._with_crc(view, removed)
        with open(self._vectors(state), "r+b") as file:
            file.seek(state.rows * self.manifest.dim * vectors.itemsize)
            file.write(np.ascontiguousarray(vectors).data)
            file.flush()
            os.fsync(file.fileno())
        numbered = [entry._replace(id=state.next_id + i) for i, entry in enumerate(entries)]
        crcs = [entry.crc(vector) for entry, vector in zip(numbered, vectors, strict=True)]
        with self.catalogue.commit() as state:
            self.catalogue.replace(dead)
            self.catalogue.append(state, numbered, crcs)

    def change(self, entries: Sequence[Entry]) -> None:
        """Commit other columns of images, a time of removal too. Inside `writing`."""
        with self.snapshot() as view:
            changed = self._with_crc(view, entries)
        with self.catalogue.commit():
            self.catalogue.replace(changed)

    def _with_crc(self, view: View, entries: Sequence[Entry]) -> list[tuple[Entry, int]]:
        places = self.catalogue.by_id([entry.id for entry in entries])
        return [(entry, entry.crc(view.rows[places[entry.id][0]])) for entry in entries]

    def compact(self, progress: Progress = lambda done, total: None) -> None:
        """Leave removed rows out, in a new generation. Inside `writing`."""
        with self.snapshot() as view:
            if not len(view.dead):
                return
        assert view.present is not None
        rows, state = view.present, view.state
        following = State(len(rows), state.generation + 1, state.next_id, state.version)
        step = max(1, _COPY_BYTES // (self.manifest.dim * view.rows.itemsize))

        def write(file: Any) -> None:
            for a in range(0, len(rows), step):
                file.write(np.ascontiguousarray(view.rows[rows[a : a + step]]).data)

        write_atomically(self._vectors(following), write, sync=True)
        structure = None
        if self.manifest.kind != "flat" and len(rows) >= SMALLEST:
            structure = self._built(self._mapped(following), progress)
            structure.write(self._ann(following))
        sync_folder(self.path)
        with self.catalogue.commit() as state:
            self.catalogue.compact(state, rows)
        self._clean()
        with self.snapshot() as view:
            view.structure = structure

    def finish(self, progress: Progress = lambda done, total: None) -> None:
        """After changes: compact where much is dead, and bring the file of the structure up to date. Inside
        `writing`.
        """
        with self.snapshot() as view:
            total = len(view.rows)
        if len(view.dead) > DEAD_SHARE * total:
            return self.compact(progress)
        if self.manifest.kind == "flat" or total < SMALLEST:
            return None
        self.use_structure()
        structure = view.structure
        assert structure is not None
        if structure.is_outgrown(total):
            structure = view.structure = self._built(view.rows, progress)
        elif total - structure.written <= max(SMALLEST, _LACKING * total):
            return None
        structure.top_up(view.rows, progress)
        structure.write(self._ann(view.state))
        return None

    def verify(self) -> None:
        """Raise DamagedModelError for whatever is not as it was written."""
        self.catalogue.check()
        with self.snapshot() as view:
            expected, damaged = 0, None
            for row, entry, crc in self.catalogue.every():
                try:
                    sound = row == expected < len(view.rows) and entry.crc(view.rows[row]) == crc
                except (TypeError, ValueError):  # values that no entry has
                    sound = False
                if not sound:
                    damaged = damaged or f"image {entry.id} ({entry.path})"
                expected += 1
            if damaged or expected != len(view.rows):
                said = f"{damaged} is not what was stored" if damaged else f"{expected} entries"
                raise DamagedModelError(f"{self.path} is damaged: {said}, of {len(view.rows)} rows")
        if self.manifest.kind != "flat":
            try:
                Structure.read(self._ann(view.state), self.manifest.kind, self.manifest.dim, len(view.rows))
            except FileNotFoundError:
                pass  # it is derived
            except DamagedModelError:
                if self.catalogue.state() == view.state:  # else a writer has put a later one there
                    raise
