"""Checkpoints: folders that keep what a training has come to, so that the same call goes on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.files import StrPath
from ensemblead.common.warnings import warn
from ensemblead.store import FolderReader, FolderWriter, check_target, write_folder

_KIND, _FILE = "TrainingCheckpoint", "training.safetensors"
# So much of a value is shown.
_SHOWN = 60


class Checkpoint:
    """The checkpoint of one training, a folder within that of the fit.

    It is written whole or not at all, every file has its checksum, and nothing in it can run code.
    """

    def __init__(self, root: Path, name: str = "", used: list[Path] | None = None) -> None:
        self.root, self._name = root, name
        self._used: list[Path] = [] if used is None else used  # by all trainings of the fit
        self._is_full = False

    @classmethod
    def at(cls, folder: StrPath) -> Checkpoint:
        """That of a fit. Raises ValueError for a place where there can be no folder."""
        root = Path(folder).absolute()
        try:
            check_target(root / _KIND)
        except ValueError as error:
            raise ValueError(f"checkpoint: {error}") from error
        return cls(root)

    def below(self, name: str) -> Checkpoint:
        """That of a part of the fit."""
        return Checkpoint(self.root, f"{self._name}-{name}" if self._name else name, self._used)

    def read(self, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The values and tensors that were written last; None if nothing was.

        Raises ValueError for the checkpoint of another training, naming what differs, and for a folder that
        is none; DamagedModelError for one that is not what was written.
        """
        folder = self._folder()
        if not folder.exists():
            return None
        try:
            reader = FolderReader(folder, {})
        except DamagedModelError as error:
            raise DamagedModelError(f"checkpoint: {error}; remove it to start over") from error
        if reader.class_name != _KIND:
            raise ValueError(f"checkpoint: {folder} holds a {reader.class_name}, and no checkpoint")
        known, own = reader.state["identity"], _plain(identity)
        differing = [name for name in {**known, **own} if known.get(name) != own.get(name)]
        if differing:
            what = ", ".join(
                f"{one} ({_short(known, one)} there, {_short(own, one)} here)" for one in differing
            )
            raise ValueError(
                f"checkpoint: {folder} is of another call, with other {what}; give another folder, or remove "
                "this one to start over"
            )
        return reader.state["values"], reader.tensors(_FILE)

    def write(
        self, identity: Mapping[str, Any], values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> bool:
        """Replace what was written before; whether that could be done. The first failure warns."""

        def fill(folder: Path) -> None:
            writer = FolderWriter(folder, {})
            writer.tensors(_FILE, tensors)
            writer.finish(_KIND, {"identity": _plain(identity), "values": dict(values)})

        try:
            write_folder(self._folder(), fill)
        except OSError as error:
            if not self._is_full:
                warn(f"no checkpoint could be written to {self.root} ({error.strerror}); training goes on")
            self._is_full = True
            return False
        self._is_full = False
        return True

    def remove(self) -> None:
        """Remove the checkpoints of all trainings of the fit, and the folder if nothing else is in it."""
        for folder in self._used:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self.root.rmdir()

    def _folder(self) -> Path:
        folder = self.root / self._name
        if folder not in self._used:
            self._used.append(folder)
        return folder


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return plain


def _short(values: Mapping[str, Any], name: str) -> str:
    text = repr(values.get(name))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
