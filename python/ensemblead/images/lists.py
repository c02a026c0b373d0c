"""Files that list images: a path or a pattern on each line, or the marks that a page of results exports."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblead.common.files import StrPath, sha256_of
from ensemblead.common.validation import some_of
from ensemblead.images.sources import ImageSource, open_images

# How names of files end that list images.
LIST_SUFFIXES = (".txt", ".json")
FALSE_ALARM, MISSED_DEFECT = "false alarm", "missed defect"
_MARKS = (FALSE_ALARM, MISSED_DEFECT)
_VERSION = 1


@dataclass(frozen=True)
class ImageList:
    """The entries of a file, as they are written there.

    Attributes:
        path: the file.
        entries: paths and patterns of a text; of marks the false alarms.
        missed: of marks the missed defects.
        is_marks: whether the file has marks.
    """

    path: Path
    entries: tuple[str, ...]
    missed: tuple[str, ...] = ()
    is_marks: bool = False


def read_list(path: StrPath) -> ImageList:
    """Read a list of images.

    A text (.txt) has a path or a pattern such as `line3/*.png` on each line; empty lines, and those that
    begin with `#`, do not count. Marks (.json) are
    `{"version": 1, "marks": [{"path": "a.png", "mark": "false alarm"}]}`, or with "missed defect".

    Raises FileNotFoundError, and ValueError for a file that is neither, naming what is wrong with it.
    """
    file = Path(path)
    if file.suffix.lower() not in LIST_SUFFIXES:
        raise ValueError(f"{file} is no list of images: its name must end with {' or '.join(LIST_SUFFIXES)}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list of images: it is no text in UTF-8") from error
    if file.suffix.lower() == ".json":
        return _marks(file, text)
    lines = (line.strip() for line in text.splitlines())
    return ImageList(file, tuple(line for line in lines if line and not line.startswith("#")))


def _marks(file: Path, text: str) -> ImageList:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} has no marks of images: it is no JSON ({error})") from error
    marks = document.get("marks") if isinstance(document, dict) else None
    if not isinstance(marks, list):
        raise ValueError(f'{file} has no marks of images: it must be {{"version": 1, "marks": [...]}}')
    if document.get("version") != _VERSION:
        raise ValueError(
            f"{file} has marks of version {document.get('version')!r}; this version of ensemblead reads "
            f"{_VERSION}"
        )
    by_mark: dict[str, list[str]] = {mark: [] for mark in _MARKS}
    for number, one in enumerate(marks):
        place = one.get("path") if isinstance(one, dict) else None
        if not isinstance(place, str) or not place:
            raise ValueError(f"{file}: marks[{number}] must have a path, got {one!r}")
        if one.get("mark") not in _MARKS:
            known = " or ".join(map(repr, _MARKS))
            raise ValueError(f"{file}: marks[{number}] must be {known}, got {one.get('mark')!r}")
        by_mark[one["mark"]].append(place)
    both = set(by_mark[FALSE_ALARM]) & set(by_mark[MISSED_DEFECT])
    if both:
        raise ValueError(f"{file}: {some_of(sorted(both))} has both marks")
    alarms, missed = (tuple(dict.fromkeys(by_mark[mark])) for mark in _MARKS)
    return ImageList(file, alarms, missed, is_marks=True)


def listed_images(listed: ImageList) -> list[str]:
    """The files that the entries of a list name, each once, in its order.

    A path that is not absolute is looked for in the folder of the list, and then in the current one.

    Raises FileNotFoundError for entries that name no file; a folder, too, is none.
    """
    found: dict[str, None] = {}
    missing = []
    for entry in listed.entries:
        files = next(filter(None, (_files(base, entry) for base in (listed.path.parent, ""))), [])
        found |= dict.fromkeys(files)
        if not files:
            missing.append(entry)
    if missing:
        raise FileNotFoundError(
            f"{listed.path} names {len(missing)} images that are not there: {some_of(missing, 3)}"
        )
    return list(found)


def without_images(source: ImageSource, entries: Sequence[str], base: Path) -> tuple[ImageSource, list[str]]:
    """The images of a source but for those that entries name, and the paths of these.

    A path or pattern that is not absolute is looked for below `base`, and then below the current folder.

    Raises ValueError for entries that name none of the images, and where none is left.
    """
    places: dict[str, list[str]] = {}
    for path in source.paths:
        places.setdefault(os.path.realpath(str(path)), []).append(str(path))
    excluded: dict[str, None] = {}
    unknown = []
    for entry in entries:
        matches = (
            [path for real in map(os.path.realpath, files) for path in places.get(real, ())]
            for files in (_files(base, entry), _files("", entry))
        )
        own = next(filter(None, matches), [])
        excluded |= dict.fromkeys(own)
        if not own:
            unknown.append(entry)
    if unknown:
        raise ValueError(f"exclude: {some_of(unknown, 3)} is none of the {len(source)} images in {base}")
    kept = [str(path) for path in source.paths if path not in excluded]
    if not kept:
        raise ValueError(f"exclude: none of the {len(source)} images is left")
    chosen = open_images(kept)
    chosen.folders, chosen.ignored_files = source.folders, source.ignored_files
    return chosen, list(excluded)


def equal_files(first: ImageSource, second: ImageSource) -> list[str]:
    """The paths of the second images whose files equal one of the first, byte by byte.

    Files that are gone, or images that are in no file, equal none.
    """
    sizes = {_size(path) for path in first.paths} - {None}
    shared = [path for path in second.paths if path is not None and _size(path) in sizes]
    wanted = {_size(path) for path in shared}
    known = {sha256_of(path) for path in first.paths if path is not None and _size(path) in wanted}
    return [path for path in shared if sha256_of(path) in known]


def _size(path: str | None) -> int | None:
    if path is None or not os.path.isfile(path):
        return None
    return os.path.getsize(path)


def _files(base: StrPath, entry: str) -> list[str]:
    """The files that an entry names below a folder ("": the current one): a path, or a pattern's matches."""
    place = os.path.join(base, entry)
    if os.path.isfile(place):
        return [place]
    if not glob.has_magic(entry):
        return []
    found = (os.path.join(base, one) for one in glob.iglob(entry, root_dir=base or None, recursive=True))
    return sorted(path for path in found if os.path.isfile(path))
