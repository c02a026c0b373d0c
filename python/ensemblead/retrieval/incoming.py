"""Images on their way into an index: which files are new or changed, and what is stored of them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ensemblead.common.files import sha256_of
from ensemblead.common.validation import some_of, whole_number
from ensemblead.common.warnings import warn
from ensemblead.images import open_images
from ensemblead.images.decode import upright_size
from ensemblead.retrieval.catalogue import Catalogue, Entry, is_storable

FROM_FOLDERS = "from-folders"
_LOOKED_UP = 10_000  # paths at a time


class Skipped(NamedTuple):
    """An image that is not in the index, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        """Both; the path once, as most reasons name it."""
        return self.reason if self.path in self.reason else f"{self.path}: {self.reason}"


def warn_of_skipped(skipped: Sequence[Skipped], total: int) -> None:
    """Say how many of the images were left out, if any, and the first."""
    if skipped:
        warn(f"left out {len(skipped)} of {total} images (see .skipped_); the first: {skipped[0]}")


@dataclass(frozen=True)
class File:
    """A file as it was before it was read."""

    path: str
    label: str | None
    bytes: int
    mtime_ns: int

    def entry(self) -> Entry:
        """What is stored of it. Raises OSError or ValueError where it is no longer what it was."""
        height, width = upright_size(self.path)
        digest = sha256_of(self.path)
        stat = os.stat(self.path)
        if (stat.st_size, stat.st_mtime_ns) != (self.bytes, self.mtime_ns):
            raise ValueError(f"{self.path} was changed while it was read")
        return Entry(
            -1, self.path, digest, self.bytes, self.mtime_ns, height, width, self.label, int(time.time())
        )


class Listed(NamedTuple):
    """Images as they were given, in order and made absolute, and the label of each."""

    paths: list[str]
    labels: list[str | None]


def list_images(images: Any, labels: Any) -> Listed:
    """The images in a folder, or of a list of paths, and their labels.

    Raises ValueError for no images, for a path that comes twice, and for labels that are not complete.
    """
    if not isinstance(images, (str, os.PathLike, list, tuple)):
        raise TypeError(f"images must be a folder, a path or a list of paths, got {type(images).__name__}")
    source = open_images(images)
    given = [path for path in source.paths if path is not None]
    paths = [os.path.abspath(path) for path in given]
    check_unique(paths)
    root = os.path.abspath(images) if isinstance(images, (str, os.PathLike)) else None
    if isinstance(labels, str):
        if labels != FROM_FOLDERS:
            raise ValueError(
                f'labels must be "{FROM_FOLDERS}", a mapping from paths, or None, got {labels!r}'
            )
        return Listed(paths, [_folder_label(path, root) for path in paths])
    if labels is None:
        return Listed(paths, [None] * len(paths))
    if not isinstance(labels, Mapping):
        raise TypeError(
            f'labels must be "{FROM_FOLDERS}", a mapping from paths, or None, got {type(labels).__name__}'
        )
    known = {os.fspath(path): label for path, label in labels.items()}
    return Listed(
        paths, checked_labels(paths, [_mapped(known, *one, root) for one in zip(given, paths, strict=True)])
    )


def _folder_label(path: str, root: str | None) -> str | None:
    """The folders between `root` and a file; without a root the name of the folder it lies in."""
    folder = os.path.dirname(path)
    if root is None or not os.path.isdir(root):
        return os.path.basename(folder) or None
    place = os.path.relpath(folder, root)
    return None if place == os.curdir else Path(place).as_posix()


def _mapped(known: Mapping[str, Any], given: str, path: str, root: str | None) -> Any:
    names = [given, path] + ([os.path.relpath(path, root)] if root else [])
    return next((known[name] for name in names if name in known), ...)


def ready_labels(paths: Sequence[str], labels: Any) -> list[str | None]:
    """The labels of ready vectors: a mapping from their paths, one for each, or None."""
    if labels is None:
        return [None] * len(paths)
    if isinstance(labels, Mapping):
        labels = [labels.get(path, ...) for path in paths]
    return checked_labels(paths, labels)


def checked_labels(paths: Sequence[str], labels: Sequence[Any]) -> list[str | None]:
    """Labels that are texts or None; `...` stands for one that is missing."""
    if len(labels) != len(paths):
        raise ValueError(f"labels must be one for each of the {len(paths)} paths, got {len(labels)}")
    missing = [path for path, label in zip(paths, labels, strict=True) if label is ...]
    if missing:
        raise ValueError(
            f"labels has no entry for {len(missing)} images ({some_of(missing, 3)}); "
            "give None where there is none"
        )
    for path, label in zip(paths, labels, strict=True):
        if label is not None and not isinstance(label, str):
            raise TypeError(f"labels must be texts or None, got {label!r} for {path}")
    check_texts("labels", [label for label in labels if label is not None])
    return list(labels)


def check_texts(what: str, texts: Sequence[str]) -> None:
    """Raise ValueError for texts that the catalogue cannot keep."""
    wrong = [ascii(text) for text in texts if not is_storable(text)]
    if wrong:
        raise ValueError(f"{what} must be UTF-8 without NUL, got {some_of(wrong, 3)}")


def check_unique(names: Sequence[Any], what: str = "images") -> None:
    """Raise ValueError for names that come twice."""
    twice = [str(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{what} must not name one twice, got {some_of(twice, 3)}")


class Changes(NamedTuple):
    """What is to be done: files to embed, the entries that they replace by path, and entries to change."""

    files: list[File]
    replaced: dict[str, Entry]
    changed: list[Entry]


def find_changes(
    listed: Listed, catalogue: Catalogue, relabel: bool, leave_out: Callable[[str, Exception], object]
) -> Changes:
    """Compare files with what is stored. A file of the same size and time, or with the same checksum, is the
    same. `leave_out` is called for files that cannot be looked at.
    """
    changes = Changes([], {}, [])
    for a in range(0, len(listed.paths), _LOOKED_UP):
        part = slice(a, a + _LOOKED_UP)
        known = catalogue.by_path([path for path in listed.paths[part] if is_storable(path)])
        for path, label in zip(listed.paths[part], listed.labels[part], strict=True):
            try:
                if not is_storable(path):
                    raise ValueError("its name is no UTF-8: rename it")
                stat = os.stat(path)
                entry = known[path][1] if path in known else None
                label = label if relabel or entry is None else entry.label
                file = File(path, label, stat.st_size, stat.st_mtime_ns)
                same = entry is not None and _is_same(file, entry)
            except (OSError, ValueError) as error:
                leave_out(path, error)
                continue
            if not same:
                changes.files.append(file)
                if entry is not None:
                    changes.replaced[path] = entry
                continue
            assert entry is not None
            now = entry._replace(mtime_ns=file.mtime_ns, label=label)
            if now != entry:
                changes.changed.append(now)
    return changes


def _is_same(file: File, entry: Entry) -> bool:
    if file.bytes != entry.bytes:
        return False
    return file.mtime_ns == entry.mtime_ns or sha256_of(file.path) == entry.sha256


def is_path(value: Any) -> bool:
    """Whether a value names a file, as far as its type says."""
    return isinstance(value, (str, os.PathLike))


def find_images(given: Sequence[Any], catalogue: Catalogue) -> list[Entry]:
    """The entries of images that are named by path or number; ValueError for what there is not, or twice."""
    paths = [os.fspath(one) for one in given if is_path(one)]
    by_path = catalogue.by_path([*paths, *map(os.path.abspath, paths)])
    by_id = catalogue.by_id([whole_number("images", one) for one in given if not is_path(one)])
    found, missing = [], []
    for one in given:
        if is_path(one):
            pair = by_path.get(os.fspath(one)) or by_path.get(os.path.abspath(one))
        else:
            pair = by_id.get(int(one))
        if pair is None:
            missing.append(str(one))
        else:
            found.append(pair[1])
    if missing:
        raise ValueError(f"images: not in the index: {some_of(missing)}")
    check_unique([entry.path for entry in found])
    return found


def find_gone(folder: str, catalogue: Catalogue) -> list[Entry]:
    """The entries of images in or below a folder whose files are gone.

    Raises OSError for one that cannot be looked at, as on a disk that does not answer: it may be there.
    """
    stored = (entry for _, entry, _ in catalogue.every() if entry.removed is None)
    below = [entry for entry in stored if Path(entry.path).is_relative_to(folder)]
    return [entry for entry in below if _is_gone(entry.path)]


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False
