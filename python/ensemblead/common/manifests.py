"""Manifests: JSON documents that state the sizes and checksums of the files beside them, and their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemblead.common.errors import DamagedModelError


def file_entry(data: bytes) -> dict[str, Any]:
    """What a manifest states of a file."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest, whatever the order of its keys. Raises ValueError for NaN and infinity."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_checksum(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise DamagedModelError unless a manifest, read from `path`, has the checksum that it states."""
    try:
        expected = checksum_of({key: value for key, value in manifest.items() if key != "checksum"})
    except (ValueError, RecursionError) as error:
        raise DamagedModelError(f"{path} is damaged: {error}") from error
    if manifest.get("checksum") != expected:
        raise DamagedModelError(f"{path} was altered: its checksum does not fit")


def require_entries(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise DamagedModelError unless `files` states the size and the checksum of every file."""
    for name, entry in manifest["files"].items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise DamagedModelError(f"{path} is damaged: it states no size and checksum of {name}")


def check_place(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    """Raise DamagedModelError unless a file lies inside the folder and has the size that was written. Its
    bytes are verified when they are read.
    """
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
    _require_size(path, path.stat().st_size, expected)


def verified_bytes(path: Path, expected: Mapping[str, Any]) -> bytes:
    """A file's bytes. The very bytes that are returned are verified, whatever happens to the file."""
    data = path.read_bytes()
    _require_size(path, len(data), expected)
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DamagedModelError(f"{path} was altered: its checksum does not fit")
    return data


def _require_size(path: Path, size: int, expected: Mapping[str, Any]) -> None:
    if size != expected["bytes"]:
        raise DamagedModelError(f"{path} has {size} bytes, but {expected['bytes']} were written")
