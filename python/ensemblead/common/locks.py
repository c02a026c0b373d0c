"""Locks that processes hold on files and folders, until `unlock`, or until they end and so have all that
were forked from them meanwhile.
"""

from __future__ import annotations

import errno
import importlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

fcntl: Any = None  # as on Windows
with suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

_owners: dict[int, int] = {}  # processes that locked, by descriptor


class NoLocksError(OSError):
    """The file system has no locks."""


def lock_file(path: Path) -> int:
    """A descriptor that holds the lock of a file, which is made if it is missing.

    Raises:
        BlockingIOError: another descriptor holds it.
        NoLocksError: its file system has none.
        OSError: the file cannot be opened.
    """
    return _locked(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))


def lock_folder(folder: Path) -> int:
    """The same for a folder that exists. Windows locks no folders: there it is a file beside it, which goes
    with the lock.
    """
    if fcntl is not None:
        return _locked(os.open(folder, os.O_RDONLY))
    beside = folder.with_name(f".{folder.name}.lock")
    return _locked(os.open(beside, os.O_RDWR | os.O_CREAT | getattr(os, "O_TEMPORARY", 0), 0o666))


def unlock(descriptor: int) -> None:
    """Let go of a lock, though a process that was forked meanwhile has its descriptor too. Such a process
    only closes its own.
    """
    try:
        if fcntl is not None and _owners.pop(descriptor, None) == os.getpid():
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> int:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _lock_on_windows(descriptor)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            raise NoLocksError(error.errno, error.strerror) from error
        raise
    _owners[descriptor] = os.getpid()
    return descriptor


def _lock_on_windows(descriptor: int) -> None:
    """Lock the first byte, whether or not the file has one."""
    msvcrt = importlib.import_module("msvcrt")
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK):
            raise
        raise BlockingIOError(error.errno, error.strerror) from None
