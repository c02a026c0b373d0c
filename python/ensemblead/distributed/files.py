"""Files that workers read: which they are, and whether they are still the same.

The images of a fit are listed once, in a file on the common path, with their sizes and times of change. A
unit of work names that file. So a worker finds out before it begins whether it sees the very files that the
caller sees, and after it has ended whether they are still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.files import sha256_of, write_atomically
from ensemblead.config.names import registered_class
from ensemblead.config.signatures import parameters
from ensemblead.images import ImageSource, are_files, open_images
from ensemblead.images.decode import check_ordinary_file

# Path, bytes, and time of change in nanoseconds; of a file that cannot be read, null.
Fact = list[Any]


def digest_of(document: Any) -> str:
    """SHA-256 of a value in JSON's types."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class ImageList:
    """The images of a fit in a file on the common path: `path`, and `sha256` of what is in it."""

    def __init__(self, path: str, sha256: str, facts: Sequence[Fact]) -> None:
        self.path, self.sha256, self._facts = path, sha256, facts

    @classmethod
    def write(cls, workdir: Path, source: ImageSource, errors: str) -> ImageList:
        """List these images.

        Raises ValueError for images that are no files. One that is not there is an error that names it, or,
        with `errors="skip"`, is listed as not there.
        """
        if not are_files(source):
            raise ValueError(
                "images: executor= needs files that every worker can read: give a folder or paths, not an "
                "array or a Dataset"
            )
        facts = [_fact(os.path.abspath(str(path)), errors) for path in source.paths]
        digest = digest_of(facts)
        path = workdir / f"images.{digest[:24]}.json"
        if not path.is_file():
            write_atomically(path, json.dumps(facts), sync=True)
        return cls(str(path), digest, facts)

    @classmethod
    def read(cls, path: str, sha256: str) -> ImageList:
        """On a worker. Raises FileNotFoundError where it cannot be read, ValueError if it was altered."""
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise FileNotFoundError(
                f"workdir: {socket.gethostname()} cannot read {path} ({error.strerror}): it must be on a "
                "path that every worker shares"
            ) from error
        if digest_of(facts) != sha256:
            raise ValueError(f"workdir: {path} was altered; remove it")
        return cls(path, sha256, facts)

    def check(self, when: str) -> None:
        """Raise where a file is not what it was: FileNotFoundError, or ValueError if it was changed."""
        for path, size, time in self._facts:
            seen = _fact(path, "skip")
            if seen == [path, size, time]:
                continue
            if seen[1] is None:
                raise FileNotFoundError(
                    f"images: {socket.gethostname()} cannot read {path}: every worker must see the images "
                    "under the same path"
                )
            raise ValueError(f"images: {path} {when} on {socket.gethostname()}: call fit again")

    def open(self, bits: int | None, max_pixels: int | None) -> ImageSource:
        """The images, read as the caller would."""
        return open_images([path for path, *_ in self._facts], bits=bits, max_pixels=max_pixels)


def _fact(path: str, errors: str) -> Fact:
    try:
        check_ordinary_file(path)
        found = os.stat(path)
    except (OSError, UnreadableImageError):
        if errors == "raise":
            raise
        return [path, None, None]
    return [path, found.st_size, found.st_mtime_ns]


def with_absolute_paths(description: Any) -> Any:
    """A description whose paths mean the same on every machine."""
    return with_paths(description, os.path.abspath)


def with_contents(description: Any) -> Any:
    """A description in which a hash of what is there stands for every path."""
    return with_paths(description, _content)


def with_paths(value: Any, change: Callable[[str], Any]) -> Any:
    """A description in which `change` of it stands for every path, alone or in a list: for what is given to
    parameters that take paths, if there is something under it.
    """
    if isinstance(value, Mapping) and "type" in value:
        known = parameters(registered_class(value["type"]))

        def changed(path: str) -> Any:
            return change(path) if os.path.exists(path) else path

        return {
            name: known[name].with_paths(item, changed)
            if name in known and known[name].takes_paths
            else with_paths(item, change)
            for name, item in value.items()
        }
    return [with_paths(item, change) for item in value] if isinstance(value, list) else value


def _content(path: str) -> Any:
    return sha256_of(path) if os.path.isfile(path) else folder_facts(path)


def folder_facts(path: str) -> list[Fact]:
    """The names, sizes and times of change of all files in a folder."""
    files = sorted(one for one in Path(path).rglob("*") if one.is_file())
    return [[one.relative_to(path).as_posix(), *_fact(str(one), "skip")[1:]] for one in files]
