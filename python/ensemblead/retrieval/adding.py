"""Images and ready vectors into an index, committed in batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ensemblead.common.files import StrPath
from ensemblead.detectors import parts
from ensemblead.retrieval.catalogue import Entry
from ensemblead.retrieval.folder import IndexFolder
from ensemblead.retrieval.incoming import Listed, Skipped, find_changes
from ensemblead.retrieval.structures import Progress
from ensemblead.retrieval.vectors import as_vectors, unit_vector
from ensemblead.search.cosine import Floats

# Images that are committed together, and how long one waits for that; ready vectors that are.
_BATCH, _SECONDS, _READY = 1024, 10.0, 16_384


class EmbedsImages(Protocol):
    """What an index needs of an embedder, such as `Embedder` and `EmbeddingEnsemble`."""

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""

    def embed(self, images: Any) -> Floats:
        """Vectors float32 `[N, dim]`."""

    def embed_batches(
        self, images: Any, *, on_error: Callable[[int, Exception], object] | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """Places of images and their vectors, batch by batch; see `Embedder.embed_batches`."""

    def describe(self) -> Any:
        """Its settings, as plain values."""

    def save(self, path: StrPath) -> object:
        """Write it to a folder, for `ensemblead.load`."""


class Collector:
    """Images and vectors on their way into a folder, committed in batches.

    Attributes:
        added: images that were taken.
        skipped: those left out, if `skips`; else an image that cannot be taken raises its error.
    """

    def __init__(self, folder: IndexFolder, skips: bool, skipped: list[Skipped]) -> None:
        self.skips, self.skipped, self.added = skips, skipped, 0
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._entries: list[Entry] = []
        self._vectors: list[npt.NDArray[Any]] = []
        self._removed: list[Entry] = []
        self._changed: list[Entry] = []
        self._since = time.monotonic()

    def leave_out(self, path: str, error: Exception) -> None:
        """Record an image that is left out, or raise its error."""
        if not self.skips:
            raise error
        self.skipped.append(Skipped(path, str(error)))

    def add(self, entry: Entry, vector: npt.NDArray[Any], replaced: Entry | None) -> None:
        """An image with its vector, in the place of another."""
        stored = self._stored(entry, vector)
        if stored is not None:
            self._take(entry, stored, replaced)

    def add_unless_stored(
        self,
        entry: Entry,
        vector: npt.NDArray[Any],
        known: tuple[int, Entry] | None,
        there: npt.NDArray[Any] | None,
        relabel: bool,
    ) -> None:
        """A ready vector, unless the path has it already; then it gets the label alone, if there are
        labels. If there are none, the label stays.
        """
        if known is not None and not relabel:
            entry = entry._replace(label=known[1].label)
        stored = self._stored(entry, vector)
        if stored is None:
            return
        if known is None or there is None or not np.array_equal(stored, there):
            self._take(entry, stored, None if known is None else known[1])
        elif known[1].label != entry.label:
            self._changed.append(known[1]._replace(label=entry.label))

    def commit_if_due(self) -> None:
        """Commit if there are many images, or if the last commit was a while ago."""
        if len(self._entries) >= _BATCH or time.monotonic() - self._since > _SECONDS:
            self.commit()

    def commit(self) -> None:
        """Commit what there is."""
        if self._changed:
            self._folder.change(self._changed)
        if self._entries:
            self._folder.append(self._entries, np.stack(self._vectors), self._removed)
        self._begin()

    def _stored(self, entry: Entry, vector: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        reason, unit = unit_vector(vector)
        if reason:
            self.leave_out(entry.path, ValueError(f"{entry.path}: its vector is {reason}"))
            return None
        return unit.astype(self._folder.manifest.dtype)

    def _take(self, entry: Entry, stored: npt.NDArray[Any], replaced: Entry | None) -> None:
        self._entries.append(entry)
        self._vectors.append(stored)
        if replaced is not None:
            self._removed.append(replaced._replace(removed=entry.added))
        self.added += 1


def add_images(
    folder: IndexFolder,
    collector: Collector,
    listed: Listed,
    embedder: EmbedsImages,
    relabel: bool,
    progress: Progress,
) -> None:
    """Embed and commit the files that are new or were changed. Inside `writing`."""
    with folder.snapshot():
        changes = find_changes(listed, folder.catalogue, relabel, collector.leave_out)
    if changes.changed:
        folder.change(changes.changed)
    files = changes.files
    if not files:
        return

    def left_out(position: int, error: Exception) -> None:
        collector.leave_out(files[position].path, error)

    before = len(collector.skipped)
    batches = embedder.embed_batches(
        [file.path for file in files], on_error=left_out if collector.skips else None
    )
    for positions, vectors in batches:
        checked = as_vectors("embeddings", vectors, folder.manifest.dim)
        for position, vector in zip(positions.tolist(), checked, strict=True):
            file = files[position]
            try:
                entry = file.entry()
            except (OSError, ValueError) as error:
                collector.leave_out(file.path, error)
                continue
            collector.add(entry, vector, changes.replaced.get(file.path))
        collector.commit_if_due()
        progress(collector.added + len(collector.skipped) - before, len(files))
    collector.commit()
    progress(len(files), len(files))  # the last images may be among those left out


def add_ready(
    folder: IndexFolder,
    collector: Collector,
    listed: Listed,
    vectors: Floats,
    relabel: bool,
    progress: Progress,
) -> None:
    """Commit vectors that their paths do not have yet. Inside `writing`."""
    now, total = int(time.time()), len(vectors)
    for a in range(0, total, _READY):
        part = slice(a, a + _READY)
        with folder.snapshot() as view:
            known = folder.catalogue.by_path(listed.paths[part])
            there = {path: view.rows[row] for path, (row, _) in known.items()}
        for path, label, vector in zip(listed.paths[part], listed.labels[part], vectors[part], strict=True):
            entry = Entry(-1, path, None, None, None, None, None, label, now)
            collector.add_unless_stored(entry, vector, known.get(path), there.get(path), relabel)
        collector.commit()
        progress(min(a + _READY, total), total)


def staged(progress: parts.Progress | None, stage: str = "index") -> Progress:
    """The progress of one stage."""
    if progress is None:
        return lambda done, total: None
    return lambda done, total: progress(stage, done, total)
