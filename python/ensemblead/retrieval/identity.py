"""Whether an embedder is the one that an index was built with: by what it holds, not by what it is called."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensemblead import store
from ensemblead.common.errors import DamagedModelError

# How an embedder is run, and where its weights lie: its vectors are the same.
_HOW = {"device", "batch_size", "compile", "engine", "path"}


def description(embedder: Any) -> Any:
    """An embedder's settings, as JSON has them."""
    return json.loads(json.dumps(embedder.describe(), default=str))


def difference(embedder: Any, saved: Path) -> str | None:
    """The first thing in which an embedder differs from the saved one, or None.

    Both are compared as they are saved: settings, and checksums of weights and of what was learned. What only
    one of them states, as versions do that come later, is no difference.
    """
    with tempfile.TemporaryDirectory() as place:
        embedder.save(Path(place) / "embedder")
        given = _content(Path(place) / "embedder")
    return _difference(given, _content(saved), "")


class _Checksum(str):
    """Of a file; it says nothing to people."""


def _content(folder: Path) -> dict[str, Any]:
    reader = store.read_folder(folder)
    if reader is None:
        raise DamagedModelError(f"{folder.parent} is incomplete: {folder.name} is missing")
    content: dict[str, Any] = {"class": reader.class_name, "state": reader.state}
    for name in reader.names():
        inside = (reader.folder / name).parent
        own = inside == reader.folder
        content[name] = _Checksum(reader.digest(name)) if own else _content(inside)
    return content


def _difference(one: Any, other: Any, name: str) -> str | None:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        shared = [key for key in one if key in other and key not in _HOW]
        found = (_difference(one[key], other[key], f"{name}.{key}" if name else key) for key in shared)
        return next((difference for difference in found if difference), None)
    if one == other:
        return None
    return (
        f"its {name} has other contents"
        if isinstance(one, _Checksum)
        else f"its {name} is {one!r}, not {other!r}"
    )
