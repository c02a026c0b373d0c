"""Saved models: a folder of JSON, safetensors and raw index files, written whole or not at all, verified when
read.

This room knows folders, checksums and formats, not classes: those register under a name. Nothing in a
folder can run code: there is no pickle, and a class is only ever looked up among the registered ones.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from ensemblead.common.errors import DamagedModelError, NewerFormatError
from ensemblead.common.extras import require
from ensemblead.common.files import sync_folder
from ensemblead.common.manifests import (
    check_place,
    checksum_of,
    file_entry,
    require_checksum,
    require_entries,
    verified_bytes,
)
from ensemblead.config.names import is_registered, registered_class, registered_name
from ensemblead.kernels.build import __version__
from ensemblead.store.tensors import write_tensors

FORMAT_VERSION = 2
MANIFEST = "model.json"


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

    def tensors(self, name: str, arrays: Mapping[str, Any], *, half: Sequence[str] = ()) -> None:
        """A safetensors file of NumPy arrays and torch tensors; those named in `half` rounded to float16."""
        with open(self._folder / name, "wb") as file:
            count, digest = write_tensors(file, arrays, half)
            _flush(file)
        self._files[name] = {"bytes": count, "sha256": digest}

    def data(self, name: str, data: bytes) -> None:
        """A file of bytes."""
        _write(self._folder / name, data)
        self._files[name] = file_entry(data)

    def child(self, name: str, obj: Storable, **options: Any) -> None:
        """Another registered object, in a folder of its own, with these options on top of one's own."""
        os.mkdir(self._folder / name)
        data = write_object(self._folder / name, obj, {**self.options, **options})
        sync_folder(self._folder / name)  # the writer of the outermost folder sees to that one
        self._files[f"{name}/{MANIFEST}"] = file_entry(data)

    def finish(self, class_name: str, state: dict[str, Any]) -> bytes:
        manifest = {
            "format": FORMAT_VERSION,
            "written_by": f"ensemblead {__version__}",
            "class": class_name,
            "state": state,
            "files": self._files,
        }
        manifest["checksum"] = checksum_of(manifest)
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
        self.checksum: str = manifest["checksum"]
        self.written_by: str = str(manifest.get("written_by", "an unknown version"))
        self.state: dict[str, Any] = manifest["state"]
        self._files: dict[str, dict[str, Any]] = manifest["files"]
        for name, entry in self._files.items():
            check_place(folder, name, entry)

    def names(self) -> list[str]:
        """All files that the folder was written with; a child is named by its manifest."""
        return list(self._files)

    def has(self, name: str) -> bool:
        """Whether the folder was written with a file (or child) of that name."""
        return name in self._files or f"{name}/{MANIFEST}" in self._files

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """What `FolderWriter.tensors` wrote, as torch tensors on the CPU."""
        data, library = self.data(name), _safetensors()
        try:
            tensors: dict[str, torch.Tensor] = library.load(data)
        except Exception as error:  # safetensors has a class of its own, and KeyError for unknown dtypes
            raise DamagedModelError(f"{self.folder / name} holds no tensors: {error}") from error
        return tensors

    def data(self, name: str) -> bytes:
        """A file's bytes. The very bytes that are returned are verified, whatever happens to the file."""
        if name not in self._files:
            raise DamagedModelError(f"{self.folder} has no {name}")
        return verified_bytes(self.folder / name, self._files[name])

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
        return read_object(self.folder / name, {**self.options, **options}, expected)


def write_object(folder: Path, obj: Storable, options: Mapping[str, Any]) -> bytes:
    if not is_registered(type(obj)):
        name = type(obj).__name__
        raise TypeError(f"{name} is not registered and cannot be saved: decorate it with ead.register(NAME)")
    writer = FolderWriter(folder, options)
    return writer.finish(registered_name(type(obj)), obj.to_store(writer))


def read_object(folder: Path, options: Mapping[str, Any], expected: str | None = None) -> Any:
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


def parse_manifest(folder: Path, expected: str | None = None) -> dict[str, Any]:
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
    manifest = parse_manifest(folder, expected)
    version = manifest["format"]
    # Before the checksum: a later format may compute it otherwise.
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{folder} has format {version}, written by {manifest.get('written_by', 'a later version')}; "
            f"this version, {__version__}, reads up to {FORMAT_VERSION}: upgrade ensemblead"
        )
    require_checksum(manifest, path)
    for key, kind in (("class", str), ("state", dict), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise DamagedModelError(f"{path} is damaged: it states no {key}")
    require_entries(manifest, path)
    return manifest


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    # A full disk may show only here.
    os.fsync(file.fileno())


def _safetensors() -> Any:
    require("safetensors", "loading models")
    return importlib.import_module("safetensors.torch")
