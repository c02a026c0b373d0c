"""Saved models changed by someone who knows how their checksums are made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from ensemblead.common.manifests import checksum_of
from ensemblead.store import folders


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest."""
    rewrite(folder, lambda manifest: manifest.update(changes))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, whose checksum fits afterwards."""
    manifest = json.loads((folder / folders.MANIFEST).read_text())
    del manifest["checksum"]
    change(manifest)
    manifest["checksum"] = checksum_of(manifest)
    (folder / folders.MANIFEST).write_text(json.dumps(manifest))


def altered(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy with another state."""
    shutil.copytree(source, target)
    rewrite(target, lambda manifest: change(manifest["state"]))
    return target


def replace_file(root: Path, name: str, data: bytes) -> None:
    """Other bytes in a file of the model at `root`; all checksums up to the root fit afterwards."""
    (root / name).write_bytes(data)
    _refresh(root, name)


def _refresh(root: Path, name: str) -> None:
    """Write the size and checksum of a file into the manifest above it, and so on up to the root."""
    data = (root / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder = (root / name).parent
    if (root / name).name == folders.MANIFEST:
        if folder == root:
            return
        folder = folder.parent
    key = (root / name).relative_to(folder).as_posix()
    rewrite(folder, lambda manifest: manifest["files"].update({key: entry}))
    _refresh(root, (folder / folders.MANIFEST).relative_to(root).as_posix())


def set_state(root: Path, folder: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the state of a part of the model at `root` ("" is the root itself)."""
    rewrite(root / folder, lambda manifest: change(manifest["state"]))
    _refresh(root, (Path(folder) / folders.MANIFEST).as_posix())


def set_tensors(root: Path, name: str, **changes: Any) -> None:
    """Other arrays in a safetensors file of the model at `root`; None takes one away."""
    tensors = {**load((root / name).read_bytes()), **changes}
    replace_file(root, name, save({key: value for key, value in tensors.items() if value is not None}))
