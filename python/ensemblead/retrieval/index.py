"""`ImageIndex`: images that are found by example, in a folder that several processes may read."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemblead import store
from ensemblead.common.errors import DamagedModelError
from ensemblead.common.files import StrPath
from ensemblead.common.validation import one_of, whole_number
from ensemblead.detectors.parts import Progress
from ensemblead.metrics.inputs import as_numpy
from ensemblead.retrieval.adding import Collector, EmbedsImages, add_images, add_ready, staged
from ensemblead.retrieval.catalogue import Entry, as_list, checked_conditions
from ensemblead.retrieval.duplicates import near_duplicates
from ensemblead.retrieval.folder import IndexFolder
from ensemblead.retrieval.hits import Hits
from ensemblead.retrieval.identity import description, difference
from ensemblead.retrieval.incoming import (
    Listed,
    Skipped,
    check_texts,
    check_unique,
    find_gone,
    find_images,
    is_path,
    list_images,
    ready_labels,
    warn_of_skipped,
)
from ensemblead.retrieval.layout import EMBEDDER, MANIFEST, Manifest, checked_manifest, create
from ensemblead.retrieval.structures import check_kind
from ensemblead.retrieval.vectors import as_vectors, unit_vectors
from ensemblead.search.cosine import Floats


class ImageIndex:
    """Images that are found by example: vectors, catalogue and search structure, kept together in a folder.

    Similarity is the cosine of the angle between two embeddings, -1 to 1: the inner product of the vectors
    scaled to length 1, as they are stored. Make an index by `build` or `from_vectors`, and use it again by
    `open`.

    Kinds: "flat" compares every vector, exactly. FAISS has "ivf" (inverted lists), "hnsw" (a navigable graph)
    and "pq" (inverted lists of product-quantised vectors). "usearch" is a graph in half precision of the
    package usearch. All but "flat" find most of the nearest images. Their similarities are exact, and they
    give as many hits as asked for. Below 1,024 images every kind searches exactly. Graphs that several
    threads build may differ.

    One process may write while others read. Whoever searches sees a whole state: that of the last commit.
    After a crash, or `kill -9`, the index is as of the last commit; the next writer removes what was left
    over. A second writer gets `IndexBusyError`. The folder must be on a local disk, and writable for readers
    too, as SQLite needs.

    An image is known by its absolute path. Adding a path again does nothing if the file is unchanged (the
    same size and time, or the same SHA-256), and replaces the image if it was changed. A copy of a file under
    another path is an image of its own: `duplicates` finds it. Every image has a number (`id`) that is never
    used again.

    Memory: vectors are mapped from their file and read in chunks; an exact search takes less than 64 MB
    beside its result, whatever the number of images. A search structure is in memory as a whole.

    Attributes:
        path: the folder.
        kind, dim, dtype: as it was built; vectors are stored in float16 or float32.
        skipped_: images that the last `build` or `add` left out: `(path, reason)`.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> vectors = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1]], dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ead.ImageIndex.from_vectors(["a", "b", "c"], vectors, f"{folder}/index") as index:
        ...         hits = index.search([1, 0, 0], top=2)
        ...         pairs = index.duplicates(threshold=0.98)
        >>> hits.paths, hits.similarities.round(3).tolist()
        ([['a', 'b']], [[1.0, 0.9940000176429749]])
        >>> pairs
        {'a': ['b']}
    """

    def __init__(self, path: StrPath, **loading: Any) -> None:
        self.path = Path(os.path.abspath(path))
        self._folder = IndexFolder(self.path)
        self._finalizer = weakref.finalize(self, self._folder.catalogue.close)
        manifest = self._folder.manifest
        self.kind, self.dim, self.dtype = manifest.kind, manifest.dim, manifest.dtype
        self.skipped_: list[Skipped] = []
        self._embedder: EmbedsImages | None = None
        self._loading = loading
        self._alone = threading.RLock()

    # Making and opening

    @classmethod
    def build(
        cls,
        images: StrPath | Sequence[StrPath],
        embedder: EmbedsImages,
        out: StrPath,
        *,
        kind: str = "flat",
        dtype: str = "float16",
        labels: Literal["from-folders"] | Mapping[Any, str | None] | None = None,
        errors: Literal["skip", "raise"] = "skip",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ImageIndex:
        """An index of images in the new folder `out`; where a build was interrupted, it goes on.

        Images are committed in batches. Ctrl-C keeps what was committed, and the same call goes on there.

        Args:
            images: a folder, with the folders below it, or a list of paths.
            embedder: an `Embedder` or an `EmbeddingEnsemble`; it is saved in `out`, so that `open` has it.
            kind: "flat", "ivf", "hnsw", "pq" or "usearch".
            dtype: how vectors are stored: "float16" (an error of similarities of up to 0.001) or "float32".
            labels: "from-folders" (the folders between `images` and the file, `bottle/good`), a mapping from
                paths (as given, absolute, or relative to `images`) to texts, or None.
            errors: "skip" leaves out images that cannot be read or whose vector is zero, lists them in
                `.skipped_` and warns; "raise" raises the error.
            seed: of the search structure.
            progress: called as `progress(stage, done, total)`, stages "embed" and "index".

        Raises ValueError for no images, for a path that comes twice, for an `out` that is something else or
        an index of other settings, IndexBusyError if another process writes to it.
        """
        one_of("errors", errors, ("skip", "raise"))
        listed = list_images(images, labels)
        manifest = checked_manifest(embedder.dim, dtype, kind, seed, description(embedder))
        index = cls._created(out, manifest, embedder.save, embedder)
        return index._or_close(lambda: index._add(listed, labels is not None, errors, progress))

    @classmethod
    def from_vectors(
        cls,
        paths: Sequence[StrPath],
        vectors: Any,
        out: StrPath,
        *,
        kind: str = "flat",
        dtype: str = "float16",
        labels: Mapping[Any, str | None] | Sequence[str | None] | None = None,
        errors: Literal["skip", "raise"] = "raise",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ImageIndex:
        """An index of ready vectors `[N, D]` of floats in the new folder `out`. It embeds no queries.

        Paths are names here: they are kept as they are given, and no file need be there. See `build` and
        `add_vectors`.
        """
        ready = as_vectors("vectors", vectors)
        index = cls._created(out, checked_manifest(ready.shape[1], dtype, kind, seed, None), None, None)
        return index._or_close(
            lambda: index.add_vectors(paths, vectors, labels=labels, errors=errors, progress=progress)
        )

    @classmethod
    def open(
        cls,
        path: StrPath,
        *,
        embedder: EmbedsImages | None = None,
        weights: Any = None,
        device: str | None = None,
    ) -> ImageIndex:
        """The index in a folder.

        Args:
            embedder: in place of the one that is saved there, for a network that cannot be had from where it
                was, or to be run otherwise: it must have the same settings, weights and what was learned, but
                for device, batch_size, compile, engine and the path of weights.
            weights, device: where the saved one's weights are now, and what it runs on, as `ead.load`.

        Raises FileNotFoundError for no index, DamagedModelError for one that is incomplete or was altered,
        NewerFormatError for one of a later version, ValueError for another embedder.
        """
        index = cls(path, weights=weights, device=device)
        return index if embedder is None else index._or_close(lambda: index._use(embedder))

    @classmethod
    def _created(
        cls,
        out: StrPath,
        manifest: Manifest,
        save: Callable[[StrPath], object] | None,
        embedder: EmbedsImages | None,
    ) -> ImageIndex:
        check_kind(manifest.kind)
        path = Path(os.path.abspath(out))
        is_new = not (path / MANIFEST).exists()
        create(path, manifest, save)
        index = cls(path)
        if is_new:
            index._embedder = embedder
            return index
        return index._or_close(lambda: index._check(manifest, embedder))

    def _check(self, manifest: Manifest, embedder: EmbedsImages | None) -> None:
        """ValueError if an index that is to go on is of other settings."""
        if embedder is not None:
            self._use(embedder)
        there = vars(self._folder.manifest)
        for name, value in vars(manifest).items():
            if there[name] != value and (name != "embedder" or embedder is None):
                raise ValueError(f"out {self.path} is an index of {name} {there[name]!r}, got {value!r}")

    def _use(self, embedder: EmbedsImages) -> None:
        """Embed by this one from now on. ValueError if its vectors are others than those that are stored."""
        if self._folder.manifest.embedder is None:
            raise ValueError(f"{self.path} was built of ready vectors: it takes no embedder")
        differs = difference(embedder, self.path / EMBEDDER)
        if differs:
            raise ValueError(f"embedder is not the one that {self.path} was built with: {differs}")
        self._embedder = embedder

    def _or_close(self, work: Callable[[], object]) -> ImageIndex:
        try:
            work()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Close the catalogue; the index cannot be used any more."""
        self._finalizer()

    def __enter__(self) -> ImageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many images there are."""
        with self._alone, self._folder.snapshot() as view:
            return view.count

    def __repr__(self) -> str:
        return f"ImageIndex({str(self.path)!r}, kind={self.kind!r}, images={len(self)}, dim={self.dim})"

    @property
    def embedder(self) -> EmbedsImages:
        """What embeds queries and added images. ValueError for an index of ready vectors."""
        if self._embedder is None:
            if self._folder.manifest.embedder is None:
                raise ValueError(
                    f"{self.path} was built of ready vectors: it has no embedder, give it vectors"
                )
            try:
                self._embedder = store.load(self.path / EMBEDDER, **self._loading)
            except FileNotFoundError as error:
                raise DamagedModelError(f"{self.path} is incomplete: {EMBEDDER} is missing") from error
        embedder: EmbedsImages = self._embedder
        return embedder

    # Changing

    def add(
        self,
        images: StrPath | Sequence[StrPath],
        *,
        labels: Literal["from-folders"] | Mapping[Any, str | None] | None = None,
        errors: Literal["skip", "raise"] = "skip",
        progress: Progress | None = None,
    ) -> int:
        """Add images, and replace those whose file was changed; the number of images embedded.

        Arguments and errors as for `build`. Labels that are given replace those of images that are there;
        without labels they stay, also of files that were changed.
        """
        return self._add(list_images(images, labels), labels is not None, errors, progress)

    def add_vectors(
        self,
        paths: Sequence[StrPath],
        vectors: Any,
        *,
        labels: Mapping[Any, str | None] | Sequence[str | None] | None = None,
        errors: Literal["skip", "raise"] = "raise",
        progress: Progress | None = None,
    ) -> int:
        """Add ready vectors `[N, D]` of floats under these paths; the number of vectors added.

        A path that is there gets the new vector, unless it has it; its label stays if there are no labels.
        Vectors of zeros are errors. Paths and labels are texts that UTF-8 can write, without NUL.
        """
        ready = as_vectors("vectors", vectors, self.dim)
        names = [os.fspath(path) for path in paths]
        if len(names) != len(ready):
            raise ValueError(f"paths must be one for each of the {len(ready)} vectors, got {len(names)}")
        check_unique(names, "paths")
        check_texts("paths", names)
        given = Listed(names, ready_labels(names, labels))
        with self._adding(errors, progress) as collector:
            add_ready(self._folder, collector, given, ready, labels is not None, staged(progress, "embed"))
        warn_of_skipped(self.skipped_, len(names))
        return collector.added

    def remove(self, images: StrPath | int | Sequence[StrPath | int]) -> int:
        """Remove images by path or number, all or none; how many.

        Where more than a quarter of the stored vectors are of removed images, the index is compacted.
        Raises ValueError for images that are not there, or that are named twice.
        """
        given = as_list(images)
        with self._alone, self._folder.writing():
            with self._folder.snapshot():
                found = find_images(given, self._folder.catalogue)
            self._drop(found)
        return len(found)

    def remove_gone(self, folder: StrPath) -> list[str]:
        """Remove the images in or below a folder whose files are gone; their paths.

        Raises ValueError for no such folder, OSError for a file that cannot be looked at: it may be there.
        """
        root = os.path.abspath(folder)
        if not os.path.isdir(root):
            raise ValueError(f"folder: there is no folder {root}")
        with self._alone, self._folder.writing():
            with self._folder.snapshot():
                gone = find_gone(root, self._folder.catalogue)
            self._drop(gone)
        return [entry.path for entry in gone]

    def compact(self, *, progress: Progress | None = None) -> None:
        """Give the space of removed images back: vectors move to a new file, and the structure is built
        anew.
        """
        with self._alone, self._folder.writing():
            self._folder.compact(staged(progress))

    # Finding

    def search(self, query: Any, top: int = 20, *, where: Mapping[str, Any] | None = None) -> Hits:
        """The images most similar to each query.

        Args:
            query: a path or several, an image uint8 `[H, W, 3]` or several `[Q, H, W, 3]`, or vectors of
                floats, `[D]` or `[Q, D]`, of any length.
            top: how many hits per query; all images if there are fewer.
            where: conditions that hold for every hit: columns and the value, or a list of values, of each.
                Columns: id, path, sha256, bytes, mtime_ns, height, width, label, added (seconds since 1970).
                None stands for no value.

        Returns: `Hits`, with cosine similarities in float32. A query's own image counts, if it is in the
        index.

        Raises ValueError for a query of another dimension, one of zeros or not finite, a `top` below 1, an
        unknown column; TypeError for anything else.
        """
        top = whole_number("top", top, 1)
        conditions = None if where is None else checked_conditions(where)
        names, vectors = self._queries(query)
        with self._alone:
            self._folder.use_structure()
            with self._folder.snapshot() as view:
                numbers = None if conditions is None else self._folder.rows_where(view, conditions)
                similarities, rows = view.search(vectors, top, numbers)
                entries = self._folder.entries(rows)
        return Hits(
            names,
            np.array([[entry.id for entry in line] for line in entries], dtype=np.int64).reshape(rows.shape),
            np.clip(similarities, -1, 1),  # rows in float16 have lengths of up to 1 + 2^-11
            [[entry.path for entry in line] for line in entries],
            [[entry.label for entry in line] for line in entries],
        )

    def duplicates(
        self, threshold: float = 0.98, *, progress: Progress | None = None
    ) -> dict[str, list[str]]:
        """Images that nearly repeat an earlier one: `{path: [paths]}`, in the order of their numbers.

        All pairs are compared exactly, each appears once, under the image that was added first. The time
        grows with the square of the number of images, the memory with that of pairs: where all images are of
        one product, take a threshold that few pairs reach.

        Look at them before a training set is split: photographs of one part, or of one plate, that stand on
        both sides of the split make a model seem better than it is. Keep all images of a group on one side.

        Args:
            threshold: the least cosine similarity of a pair, -1 to 1. Images with equal vectors have 1.
            progress: called as `progress("duplicates", done, total)`.

        Raises ValueError for more than 2,000,000 pairs: what is found then tells nothing, but fills memory.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise TypeError(f"threshold must be a number, got {threshold!r}")
        if not -1.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be between -1 and 1, got {threshold}")
        with self._alone:
            return near_duplicates(self._folder, threshold, staged(progress, "duplicates"))

    def verify(self) -> None:
        """Read everything, and raise DamagedModelError for what is not as it was written, naming an image."""
        with self._alone:
            self._folder.verify()
            if self._folder.manifest.embedder is not None:
                store.verify(self.path / EMBEDDER)

    # Parts of these

    def _drop(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._folder.change([entry._replace(removed=int(time.time())) for entry in entries])
            self._folder.finish()

    def _add(self, listed: Listed, relabel: bool, errors: str, progress: Progress | None) -> int:
        embedder = self.embedder
        with self._adding(errors, progress) as collector:
            add_images(self._folder, collector, listed, embedder, relabel, staged(progress, "embed"))
        warn_of_skipped(self.skipped_, len(listed.paths))
        return collector.added

    @contextmanager
    def _adding(self, errors: str, progress: Progress | None) -> Iterator[Collector]:
        one_of("errors", errors, ("skip", "raise"))
        self.skipped_ = []
        with self._alone, self._folder.writing():
            collector = Collector(self._folder, errors == "skip", self.skipped_)
            yield collector
            self._folder.finish(staged(progress))

    def _queries(self, query: Any) -> tuple[list[str], Floats]:
        several = isinstance(query, (list, tuple)) and len(query) > 0 and all(map(is_path, query))
        if is_path(query) or several:
            paths = [os.fspath(path) for path in (query if several else [query])]
            embedded = as_vectors("embeddings", self.embedder.embed(paths), self.dim)
            return paths, unit_vectors("query", embedded, paths)
        array = as_numpy(query, "query")
        if array.dtype == np.uint8 and array.ndim in (3, 4):
            array = self.embedder.embed(array if array.ndim == 4 else array[None])
        elif isinstance(query, (list, tuple)):
            array = array.astype(np.float32)
        vectors = as_vectors("query", array[None] if array.ndim == 1 else array, self.dim)
        names = list(map(str, range(len(vectors))))
        return names, unit_vectors("query", vectors, names)
