"""Saved models: a folder of JSON, safetensors and raw index files, written whole or not at all, verified when
read.

This room knows folders, checksums and formats, not classes: those register under a name. Nothing in a
folder can run code: there is no pickle, and a class is only ever looked up among the registered ones.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import importlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ensemblead.common.errors import DamagedModelError, NewerFormatError
from ensemblead.common.extras import require
from ensemblead.config.names import is_registered, registered_class, registered_name
from ensemblead.kernels.build import __version__
from ensemblead.store.exchange import exchange

FORMAT_VERSION = 2
MANIFEST = "model.json"
# So many files of a folder that is no model are named.
_NAMED = 5
# How the folder of an earlier model ends while another takes its name, where the system cannot exchange them.
_ASIDE = ".old"


class Storable(Protocol):
    """What a registered class can do."""

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """Write arrays and children through `writer`; return the rest, in JSON's types."""

    @classmethod
    def from_store(cls, reader: FolderReader) -> Any:
        """The object again."""


class FolderWriter:
    """Writes one object into one folder. `options` are those of `save`."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self._folder = folder
        self._files: dict[str, dict[str, Any]] = {}

    def tensors(self, name: str, arrays: Mapping[str, Any]) -> None:
        """A safetensors file of NumPy arrays and torch tensors."""
        seen: set[int] = set()
        tensors = {}
        for key, array in arrays.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
            tensor = tensor.detach().cpu().contiguous()
            # Tied weights share memory, which safetensors refuses.
            tensors[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        self.data(name, _safetensors().save(tensors))

    def data(self, name: str, data: bytes) -> None:
        """A file of bytes."""
        _write(self._folder / name, data)
        self._files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def child(self, name: str, obj: Storable, **options: Any) -> None:
        """Another registered object, in a folder of its own, with these options on top of one's own."""
        os.mkdir(self._folder / name)
        data = _write_object(self._folder / name, obj, {**self.options, **options})
        self._files[f"{name}/{MANIFEST}"] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def finish(self, class_name: str, state: dict[str, Any]) -> bytes:
        manifest = {
            "format": FORMAT_VERSION,
            "written_by": f"ensemblead {__version__}",
            "class": class_name,
            "state": state,
            "files": self._files,
        }
        manifest["checksum"] = _checksum(manifest)
        data = json.dumps(manifest, indent=1, allow_nan=False).encode()
        _write(self._folder / MANIFEST, data)
        return data


class FolderReader:
    """Reads one object from one verified folder. `options` are those of `load`, `state` what `to_store`
    returned.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], expected: str | None = None) -> None:
        self.folder = folder
        self.options = dict(options)
        manifest = _read_manifest(folder, expected)
        self.class_name: str = manifest["class"]
        self.format: int = manifest["format"]
        self.state: dict[str, Any] = manifest["state"]
        self._files: dict[str, dict[str, Any]] = manifest["files"]
        for name, entry in self._files.items():
            _check_place(folder, name, entry)

    def has(self, name: str) -> bool:
        """Whether the folder was written with a file (or child) of that name."""
        return name in self._files or f"{name}/{MANIFEST}" in self._files

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What `FolderWriter.tensors` wrote, as torch tensors on the CPU."""
        tensors: dict[str, torch.Tensor] = _safetensors().load(self.data(name))
        return tensors

    def data(self, name: str) -> bytes:
        """A file's bytes. The very bytes that are returned are verified, whatever happens to the file."""
        if name not in self._files:
            raise DamagedModelError(f"{self.folder} has no {name}")
        data, expected = (self.folder / name).read_bytes(), self._files[name]
        if len(data) != expected["bytes"]:
            raise DamagedModelError(
                f"{self.folder / name} has {len(data)} bytes, but {expected['bytes']} were written"
            )
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise DamagedModelError(f"{self.folder / name} was altered: its checksum does not fit")
        return data

    def digest(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        return str(self._files[name]["sha256"])

    @contextmanager
    def as_damage(self) -> Iterator[None]:
        """Around what reads the state, and constructors that are given nothing else: what they refuse as
        wrong arguments is damage to the folder, and no error of the caller's.
        """
        try:
            yield
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedModelError(
                f"{self.folder} does not describe a {self.class_name}: {error}"
            ) from error

    def child(self, name: str, **options: Any) -> Any:
        """The object in the folder `name`, read with these options on top of one's own."""
        if not self.has(name):
            raise DamagedModelError(f"{self.folder} has no {name}/{MANIFEST}")
        expected = self._files[f"{name}/{MANIFEST}"]["sha256"]
        return _read_object(self.folder / name, {**self.options, **options}, expected)


def save(obj: Storable, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a registered object to the folder `path`.

    Everything goes to a new folder beside it, which takes the name at the very end: after a failure (a full
    disk, an interrupt) `path` is as it was. An earlier model at `path` is replaced; anything else there is
    left alone.

    Raises:
        ValueError: as `check_target`.
    """
    write_folder(path, lambda folder: _write_object(folder, obj, options))


def write_folder(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill the folder `path`, as `save` does."""
    target = check_target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.parent / f".{target.name}.{secrets.token_hex(6)}.new"
    os.mkdir(fresh)
    try:
        write(fresh)
        _sync(fresh)
        _take_place(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _sync(target.parent)


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
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"path {target} cannot be written: no permission to write into {place}")
    return target


def load(path: str | os.PathLike[str], **options: Any) -> Any:
    """The object saved at `path`. `options` are handed to its class.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        DamagedModelError: it is no saved model, or a file is missing or is not what was written.
        NewerFormatError: a later version of this library wrote it.
    """
    folder = Path(path)
    if not folder.exists():
        _recover(folder)
    if not folder.exists():
        raise FileNotFoundError(f"no saved model at {folder}")
    return _read_object(folder, options)


def _write_object(folder: Path, obj: Storable, options: Mapping[str, Any]) -> bytes:
    if not is_registered(type(obj)):
        name = type(obj).__name__
        raise TypeError(f"{name} is not registered and cannot be saved: decorate it with ead.register(NAME)")
    writer = FolderWriter(folder, options)
    return writer.finish(registered_name(type(obj)), obj.to_store(writer))


def _read_object(folder: Path, options: Mapping[str, Any], expected: str | None = None) -> Any:
    reader = FolderReader(folder, options, expected)
    try:
        cls = registered_class(reader.class_name)
    except LookupError as error:
        raise DamagedModelError(
            f"{folder} holds a {reader.class_name!r}, which is not known: import the module that registers "
            "it (on the command line --import), or install its package"
        ) from error
    try:
        return cls.from_store(reader)
    except (KeyError, IndexError) as error:
        raise DamagedModelError(f"{folder} lacks {error} of a {reader.class_name}") from error
    except (TypeError, AttributeError, RecursionError) as error:
        # An option of the wrong kind is the caller's error, not the folder's.
        if any(option is not None for option in options.values()):
            raise
        raise DamagedModelError(f"{folder} does not describe a {reader.class_name}: {error}") from error


def _parse_manifest(folder: Path, expected: str | None = None) -> dict[str, Any]:
    """A manifest as it stands there: a mapping that states its format, and no more is known. `expected` is
    the SHA-256 that the folder above states of it.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise DamagedModelError(f"{path} was altered: its checksum does not fit")
        manifest = json.loads(data)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedModelError(f"{folder} is no saved model: it has no {MANIFEST}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedModelError(f"{path} is damaged: {error}") from error
    if type(manifest) is not dict or type(manifest.get("format")) is not int:
        raise DamagedModelError(f"{path} is damaged: it states no format")
    return manifest


def _read_manifest(folder: Path, expected: str | None = None) -> dict[str, Any]:
    path = folder / MANIFEST
    manifest = _parse_manifest(folder, expected)
    version = manifest["format"]
    # Before the checksum: a later format may compute it otherwise.
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{folder} has format {version}, written by {manifest.get('written_by', 'a later version')}; "
            f"this version, {__version__}, reads up to {FORMAT_VERSION}: upgrade ensemblead"
        )
    try:
        expected = _checksum({key: value for key, value in manifest.items() if key != "checksum"})
    except (ValueError, RecursionError) as error:
        raise DamagedModelError(f"{path} is damaged: {error}") from error
    if manifest.get("checksum") != expected:
        raise DamagedModelError(f"{path} was altered: its checksum does not fit")
    for key, kind in (("class", str), ("state", dict), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise DamagedModelError(f"{path} is damaged: it states no {key}")
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise DamagedModelError(f"{path} is damaged: it states no size and checksum of {name}")
    return manifest


def _check_place(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    """A file lies inside the folder and has the size that was written. Its bytes are verified when read."""
    path = folder / name
    parts = Path(name).parts
    if (
        Path(name).is_absolute()
        or ".." in parts
        or any(p.is_symlink() for p in (path, *path.parents[: len(parts) - 1]))
    ):
        raise DamagedModelError(f"{folder} names a file outside of itself: {name}")
    if not path.is_file():
        raise DamagedModelError(f"{folder} is incomplete: {name} is missing")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise DamagedModelError(f"{path} has {size} bytes, but {expected['bytes']} were written")


def _checksum(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        # A full disk may show only here.
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _foreign(target: Path) -> list[str] | None:
    """What a folder holds that a saved model in it did not write; None if there is no model in it. An empty
    folder holds nothing foreign.
    """
    if target.is_symlink() or not target.is_dir():
        return None
    entries = sorted(target.iterdir())
    if not entries:
        return []
    try:
        manifest = _parse_manifest(target)
    except DamagedModelError:
        return None
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


def _take_place(fresh: Path, target: Path) -> None:
    """Give `fresh` the name `target`; what bore it is removed."""
    if not target.exists():
        os.rename(fresh, target)
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
    left = sorted(target.parent.glob(f".{glob.escape(target.name)}.*{_ASIDE}"), key=os.path.getmtime)
    for aside in reversed(left):
        if not os.path.lexists(target) and (aside / MANIFEST).is_file():
            with suppress(OSError):  # a save that goes on has taken the name, or the folder away
                os.rename(aside, target)


def _safetensors() -> Any:
    require("safetensors", "saving and loading models")
    return importlib.import_module("safetensors.torch")
