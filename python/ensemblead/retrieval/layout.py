"""What an index folder consists of: its description, the writer's lock, and how an empty one is made."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblead.common.errors import DamagedModelError, IndexBusyError, NewerFormatError
from ensemblead.common.files import sync_folder, write_atomically
from ensemblead.common.locks import lock_file, unlock
from ensemblead.common.validation import one_of, some_of, whole_number
from ensemblead.kernels.build import __version__
from ensemblead.retrieval.catalogue import NAME as CATALOGUE
from ensemblead.retrieval.catalogue import Catalogue
from ensemblead.retrieval.structures import KINDS

FORMAT_VERSION = 1
MANIFEST, EMBEDDER, LOCK = "index.json", "embedder", "writer.lock"
SUFFIXES = {"float16": "f16", "float32": "f32"}
OURS = re.compile(
    rf"{CATALOGUE}(-wal|-shm|-journal)?|{MANIFEST}|{EMBEDDER}|\.{EMBEDDER}\..*|{LOCK}"
    r"|vectors\.\d+\.f(16|32)|ann\.\d+\.\w+|\.\d+-[0-9a-f]{8}\.tmp|lost\+found"
)


@dataclass(frozen=True)
class Manifest:
    """What never changes in an index."""

    dim: int
    dtype: str
    kind: str
    seed: int
    embedder: Any  # its description; None for an index of ready vectors

    def write(self, folder: Path) -> None:
        """As `index.json`, which makes a folder an index."""
        content = {"format": FORMAT_VERSION, "written_by": f"ensemblead {__version__}", **vars(self)}
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=1)
        write_atomically(folder / MANIFEST, text, sync=True)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises FileNotFoundError, DamagedModelError and NewerFormatError."""
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_bytes())
            checksum, version = content.pop("checksum"), content["format"]
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"no image index at {folder}: it has no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedModelError(f"{path} is damaged: {error}") from error
        if type(version) is int and version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{folder} has format {version}, written by {content.get('written_by', 'a later version')}; "
                f"this version, {__version__}, reads up to {FORMAT_VERSION}: upgrade ensemblead"
            )
        names = cls.__dataclass_fields__
        if checksum != _checksum(content) or not names.keys() <= content.keys():
            raise DamagedModelError(f"{path} was altered: its checksum does not fit")
        found = cls(**{name: content[name] for name in names})
        if (
            type(found.dim) is not int
            or found.dim < 1
            or found.dtype not in SUFFIXES
            or found.kind not in KINDS
        ):
            raise DamagedModelError(f"{path} does not describe an index")
        return found


def checked_manifest(dim: Any, dtype: str, kind: str, seed: int, embedder: Any) -> Manifest:
    """Of arguments. Raises ValueError and TypeError."""
    return Manifest(
        whole_number("dim", dim, 1),
        one_of("dtype", dtype, SUFFIXES),
        one_of("kind", kind, KINDS),
        whole_number("seed", seed, 0),
        embedder,
    )


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def lock(folder: Path) -> int:
    """A descriptor that holds the writer's lock of a folder until `unlock`, or until its process ends.

    Raises IndexBusyError if another one has it.
    """
    try:
        return lock_file(folder / LOCK)
    except BlockingIOError:
        raise IndexBusyError(
            f"{folder} is being written to by another process or object; try again when it is done"
        ) from None


def create(folder: Path, manifest: Manifest, save_embedder: Callable[[Path], object] | None) -> None:
    """An empty index, unless there is one. What a killed call has left unfinished is finished.

    Raises ValueError where `folder` is something else.
    """
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = lock(folder)
    try:
        if (folder / MANIFEST).exists():
            return
        Catalogue.create(folder)
        catalogue = Catalogue(folder)
        rows = catalogue.state().rows
        catalogue.close()
        if rows:
            raise DamagedModelError(f"{folder} is incomplete: {MANIFEST} is missing")
        (folder / f"vectors.0.{SUFFIXES[manifest.dtype]}").touch()
        if save_embedder is not None:
            save_embedder(folder / EMBEDDER)
        manifest.write(folder)
        sync_folder(folder)
    finally:
        unlock(descriptor)


def check_place(folder: Path) -> None:
    """Raise ValueError if `folder` exists and is neither an image index nor an empty folder."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ValueError(f"out {folder} exists and is no folder; choose another, or remove it")
    others = sorted(entry.name for entry in folder.iterdir() if not OURS.fullmatch(entry.name))
    if others:
        raise ValueError(
            f"out {folder} exists and is no image index alone: it holds {some_of(others)}; "
            "choose another folder"
        )
