"""Checkpoints: folders that keep what a training has come to, so that the same call goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.common.files import StrPath
from ensemblead.common.locks import NoLocksError, lock_folder, unlock
from ensemblead.common.warnings import warn
from ensemblead.store import MANIFEST, FolderWriter, check_target, read_folder, remove_folder, write_folder

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
        self._has_failed = False

    @classmethod
    def at(cls, folder: StrPath) -> Checkpoint:
        """That of a fit. Raises ValueError for a place where there can be no folder, or a model is."""
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be a path, got {folder!r}")
        root = Path(folder).absolute()
        if not os.fspath(folder) or (root / MANIFEST).exists():
            raise ValueError(f"checkpoint must be a folder of its own, got {os.fspath(folder)!r}")
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
        holds something else, too; DamagedModelError for one that is not what was written.
        """
        folder = self._folder()
        with self.as_damage():
            reader = read_folder(folder)
        if reader is None:
            return None
        if reader.class_name != _KIND:
            raise ValueError(f"checkpoint: {folder} holds a {reader.class_name}, and no checkpoint")
        try:
            check_target(folder)
        except ValueError as error:
            raise ValueError(f"checkpoint: {error}") from error
        known, own = reader.state.get("identity"), _plain(identity)
        with self.as_damage():
            if not isinstance(known, dict) or not isinstance(reader.state.get("values"), dict):
                raise DamagedModelError(f"{folder} does not say what it is of")
        differing = [name for name in {**known, **own} if known.get(name) != own.get(name)]
        if differing:
            what = ", ".join(
                f"{one} ({_short(known, one)} there, {_short(own, one)} here)" for one in differing
            )
            raise ValueError(
                f"checkpoint: {folder} is of another call, with other {what}; give another folder, or remove "
                "this one to start over"
            )
        with self.as_damage():
            return reader.state["values"], reader.tensors(_FILE)

    @contextmanager
    def as_damage(self) -> Iterator[None]:
        """Around what reads: an error says that it is of the checkpoint, and how to go on."""
        try:
            yield
        except DamagedModelError as error:
            raise DamagedModelError(f"checkpoint: {error}; remove it to start over") from error

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
        except (OSError, ValueError) as error:  # ValueError: something else lies there now
            if not self._has_failed:
                why = getattr(error, "strerror", None) or error
                warn(f"no checkpoint could be written to {self.root} ({why}); training goes on")
            self._has_failed = True
            return False
        self._has_failed = False
        return True

    def remove(self) -> None:
        """Remove the checkpoints of all trainings of the fit."""
        for folder in self._used:
            remove_folder(folder)

    def _folder(self) -> Path:
        folder = self.root / self._name
        if folder not in self._used:
            self._used.append(folder)
        return folder


@contextmanager
def opened(folder: StrPath | None) -> Iterator[Checkpoint | None]:
    """The checkpoint of a fit, which no other fit can use meanwhile; None: it has none.

    The folder goes at the end if it is empty. Raises ValueError where another fit uses it, and as
    `Checkpoint.at`.
    """
    if folder is None:
        yield None
        return
    checkpoint = Checkpoint.at(folder)
    checkpoint.root.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        with suppress(NoLocksError):
            descriptor = lock_folder(checkpoint.root)
    except BlockingIOError as error:
        raise ValueError(
            f"checkpoint: another fit uses {checkpoint.root} now; give another folder"
        ) from error
    try:
        yield checkpoint
    finally:
        with suppress(OSError):  # there is something in it
            checkpoint.root.rmdir()
        if descriptor is not None:
            unlock(descriptor)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return plain


def _short(values: Mapping[str, Any], name: str) -> str:
    text = repr(values.get(name))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
