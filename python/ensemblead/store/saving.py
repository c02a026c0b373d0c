"""Saving and loading: a model takes its place whole or not at all, also beside a load, and where it cannot be
renamed.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.files import sync_folder, write_atomically
from ensemblead.store.exchange import exchange
from ensemblead.store.folders import (
    FORMAT_VERSION,
    MANIFEST,
    FolderReader,
    Storable,
    parse_manifest,
    read_object,
    write_object,
)

# So many files of a folder that is no model are named.
_NAMED = 5
# How the folder of an earlier model ends while another takes its name, where the system cannot exchange them.
_ASIDE = ".old"
# How the names end of folders that a process may leave behind when it is killed.
_LEFT = re.compile(r"\.[0-9a-f]{12}\.(new|old)")
# A folder that cannot be renamed (the volume of a container) holds its model in one of these, and a manifest
# that says in which.
_INSIDE = re.compile(r"model-[0-9a-f]{12}")
_CANNOT_RENAME = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)
_LOST_FOUND = "lost+found"  # in every new volume of some file systems
# How long a load waits for a save that is between two renames.
_WAIT_SECONDS = 2.0


def save(obj: Storable, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a registered object to the folder `path`.

    Everything goes to a new folder beside it, which takes the name at the very end: after a failure (a full
    disk, an interrupt) `path` is as it was. An earlier model at `path` is replaced; anything else there is
    left alone. A folder that cannot be renamed, as a mounted volume, gets the new folder inside, and at the
    very end a manifest that names it.

    Raises:
        ValueError: as `check_target`.
    """
    write_folder(path, lambda folder: write_object(folder, obj, options))


def write_folder(
    path: str | os.PathLike[str], write: Callable[[Path], object], *, keep: bool = False
) -> None:
    """Let `write` fill the folder `path`, as `save` does.

    With `keep`, a folder that has taken the name meanwhile stays, and what was written is dropped.
    """
    _recover(Path(os.path.abspath(path)))  # else what a killed save has put aside would stay there
    target = check_target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _written(target.parent / f".{target.name}.{secrets.token_hex(6)}.new", write) as fresh:
            _take_place(fresh, target, keep)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno not in _CANNOT_RENAME or not target.is_dir():
            raise
        with _written(target / f"model-{secrets.token_hex(6)}", write) as fresh:
            _name_inside(fresh, target)


def read_folder(path: str | os.PathLike[str]) -> FolderReader | None:
    """What `write_folder` has written to `path`; None if there is nothing.

    Raises:
        DamagedModelError: there is something else, or not what was written.
    """
    target = Path(path)
    _recover(target)
    return FolderReader(_place_of_model(target), {}) if os.path.lexists(target) else None


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove what `write_folder` has written to `path`, and what a killed process has left beside it.

    A folder that holds anything else stays. Nobody else may write to `path` meanwhile.
    """
    remove_leftovers(path)
    with suppress(ValueError):
        shutil.rmtree(check_target(path), ignore_errors=True)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what a process that was killed while it wrote to `path` has left beside it."""
    target = Path(path)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if _LEFT.fullmatch(left.name.removeprefix(f".{target.name}")):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _written(fresh: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """A new folder with what `write` writes; it is removed again if it is still there under that name."""
    os.mkdir(fresh)
    try:
        write(fresh)
        sync_folder(fresh)
        yield fresh
    finally:
        if not _is_named(fresh):
            shutil.rmtree(fresh, ignore_errors=True)


def check_target(path: str | os.PathLike[str]) -> Path:
    """`path`, made absolute, if `save` may write there; ask before long work.

    Raises:
        ValueError: it exists and is neither a saved model (and nothing else) nor an empty folder, or it is in
            a place where no folder can be made.
    """
    target = Path(os.path.abspath(path))
    if os.path.lexists(target):
        extra = _foreign(target)
        if extra is None:
            raise ValueError(f"path {target} exists and is no saved model; choose another, or remove it")
        if extra:
            more = f" and {len(extra) - _NAMED} more" if len(extra) > _NAMED else ""
            raise ValueError(
                f"path {target} exists and is no saved model alone: it also holds "
                f"{', '.join(extra[:_NAMED])}{more}; choose another, or move them away"
            )
    place = next(folder for folder in target.parents if os.path.lexists(folder))
    if not place.is_dir():
        raise ValueError(f"path {target} cannot be written: {place} is no folder")
    if not (_is_writable(place) or (target.is_dir() and _is_writable(target))):
        raise ValueError(f"path {target} cannot be written: no permission to write into {place}")
    return target


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def load(path: str | os.PathLike[str], **options: Any) -> Any:
    """The object saved at `path`. `options` are handed to its class.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        DamagedModelError: it is no saved model, or a file is missing or is not what was written.
        NewerFormatError: a later version of this library wrote it.
    """
    folder = Path(path)
    while True:
        _await(folder)
        before = _identity(folder)
        try:
            return read_object(_place_of_model(folder), options)
        except (DamagedModelError, OSError):
            # A save has put another model there meanwhile, or was about to: what was read is of two or none.
            if before and _identity(folder) == before:
                raise


def verify(path: str | os.PathLike[str]) -> None:
    """Raise DamagedModelError unless every file of what is saved at `path` is what was written."""

    def check(folder: Path, expected: str | None = None) -> None:
        reader = FolderReader(folder, {}, expected)
        for name in reader.names():
            reader.data(name)
            if (folder / name).name == MANIFEST:
                check((folder / name).parent, reader.digest(name))

    check(_place_of_model(Path(path)))


def _await(target: Path) -> None:
    """Until there is something at `target`; FileNotFoundError if nothing can come."""
    end = time.monotonic() + _WAIT_SECONDS
    while not target.exists():
        _recover(target)
        coming = any(target.parent.glob(f".{glob.escape(target.name)}.*"))
        if not target.exists() and (not coming or time.monotonic() > end):
            raise FileNotFoundError(f"no saved model at {target}")


def _identity(folder: Path) -> list[tuple[int, int, int]]:
    """What changes when another model takes the place."""
    found = []
    for place in (folder, folder / MANIFEST):
        with suppress(OSError):
            stat = place.stat()
            found.append((stat.st_dev, stat.st_ino, stat.st_mtime_ns))
    return found


# Inside of a folder that stays


def _place_of_model(folder: Path) -> Path:
    """The folder itself, or the one inside that its manifest names."""
    try:
        inside = parse_manifest(folder).get("inside")
    except DamagedModelError:
        return folder  # which says so when it is read
    if inside is None:
        return folder
    if not isinstance(inside, str) or not _INSIDE.fullmatch(inside) or (folder / inside).is_symlink():
        raise DamagedModelError(f"{folder / MANIFEST} is damaged: it names no folder of its own: {inside!r}")
    return folder / inside


def _is_named(fresh: Path) -> bool:
    """Whether the folder above names this one as its model."""
    with suppress(DamagedModelError):
        return parse_manifest(fresh.parent).get("inside") == fresh.name
    return False


def _name_inside(fresh: Path, target: Path) -> None:
    """Make `fresh` the model of the folder it lies in, and remove what was its model."""
    content = {"format": FORMAT_VERSION, "inside": fresh.name}
    earlier = [entry for entry in target.iterdir() if entry.name not in (fresh.name, MANIFEST, _LOST_FOUND)]
    write_atomically(target / MANIFEST, json.dumps(content), sync=True)
    sync_folder(target)
    for entry in earlier:  # `check_target` has seen that all of it is a model's
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


# Beside it


def _foreign(target: Path) -> list[str] | None:
    """What a folder holds that a saved model in it did not write; None if there is no model in it. An empty
    folder holds nothing foreign.
    """
    if target.is_symlink() or not target.is_dir():
        return None
    entries = sorted(entry for entry in target.iterdir() if entry.name != _LOST_FOUND)
    # Those that a save did not come to name, or to remove, are no model's by themselves.
    entries = [entry for entry in entries if not (_INSIDE.fullmatch(entry.name) and entry.is_dir())]
    if not entries:
        return []
    try:
        manifest = parse_manifest(target)
    except DamagedModelError:
        return None
    if "inside" in manifest:
        return [entry.name for entry in entries if entry.name != MANIFEST]
    files, name = manifest.get("files"), manifest.get("class")
    if not isinstance(files, dict) or not isinstance(name, str):
        return None
    extra = []
    for entry in entries:
        if f"{entry.name}/{MANIFEST}" in files:
            below = _foreign(entry)
            extra += [entry.name] if below is None else [f"{entry.name}/{inner}" for inner in below]
        elif entry.is_symlink() or not entry.is_file() or entry.name not in {MANIFEST, *files}:
            extra.append(entry.name)
    return extra


def _take_place(fresh: Path, target: Path, keep: bool = False) -> None:
    """Give `fresh` the name `target`; what bore it is removed, or with `keep` stays."""
    if keep or not target.exists():
        try:
            os.rename(fresh, target)
        except OSError as error:
            if not keep or error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        return
    if exchange(fresh, target):
        return  # the earlier model is now at `fresh`, which the caller removes
    aside = fresh.with_suffix(_ASIDE)
    while fresh.exists():
        try:
            os.rename(target, aside)
            os.rename(fresh, target)
        except OSError as error:
            # A load that found no model between the two has given the earlier one its name back: once more.
            # Anything else, such as a target that is a mount point, would go on for ever.
            came_back = error.errno in (errno.EEXIST, errno.ENOTEMPTY)
            if not came_back or aside.exists() or not target.exists():
                raise
        finally:
            # Wherever an interrupt strikes, one of the two stands at `target`.
            if not target.exists():
                os.rename(aside, target)
            shutil.rmtree(aside, ignore_errors=True)


def _recover(target: Path) -> None:
    """Where a process was killed between two renames, the earlier model stands aside: it takes its name
    back.
    """
    left = list(target.parent.glob(f".{glob.escape(target.name)}.*{_ASIDE}"))
    with suppress(OSError):  # a save that goes on has taken one away
        left.sort(key=os.path.getmtime)
    for aside in reversed(left):
        if not os.path.lexists(target) and (aside / MANIFEST).is_file():
            with suppress(OSError):  # a save that goes on has taken the name, or the folder away
                os.rename(aside, target)
