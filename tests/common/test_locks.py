"""Locks of files and folders, by POSIX and by what Windows has instead."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ensemblead.common import locks
from ensemblead.common.locks import NoLocksError, lock_file, lock_folder, unlock

IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from ensemblead.common import locks
try:
    getattr(locks, sys.argv[1])(Path(sys.argv[2]))
except BlockingIOError:
    print("held")
else:
    print("free")
"""


class Msvcrt(ModuleType):
    """The part of Windows's module that locks use, for this process: a file is locked by its number."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: dict[int, tuple[int, int]] = {}
        self.error = errno.EACCES

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (self.LK_NBLCK, 1)
        self.held = {one: file for one, file in self.held.items() if is_open(one) and one != descriptor}
        file = os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino
        if file in self.held.values():
            raise OSError(self.error, os.strerror(self.error))
        self.held[descriptor] = file


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.fixture(params=["posix", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "windows":
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())
    elif locks.fcntl is None:
        pytest.skip("the system is Windows")
    return str(request.param)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_at_a_time(kind: str, system: str, tmp_path: Path) -> None:
    lock, place = (lock_file, tmp_path / "lock") if kind == "file" else (lock_folder, tmp_path / "folder")
    if kind == "folder":
        place.mkdir()
    for _ in range(2):
        held = lock(place)
        assert not os.get_inheritable(held)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
        with pytest.raises(BlockingIOError):
            lock(place)
        if before is not None:
            assert len(os.listdir("/proc/self/fd")) == before, "the refused one stays open"
        os.close(held)
    if kind == "folder":
        assert list(place.iterdir()) == []


@pytest.mark.skipif(locks.fcntl is None, reason="the other process would need the module that stands in")
@pytest.mark.parametrize("kind", ["lock_file", "lock_folder"])
def test_between_processes(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "lock_folder":
        place.mkdir()

    def seen_from_another() -> str:
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS, kind, str(place)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    held = getattr(locks, kind)(place)
    assert seen_from_another() == "held"
    os.close(held)
    assert seen_from_another() == "free"


@pytest.mark.skipif(locks.fcntl is None, reason="the module that stands in knows no other descriptors")
def test_a_fork_does_not_keep_a_lock(tmp_path: Path) -> None:
    """A process that is forked has a second descriptor of the same lock, as `dup` makes one."""
    held = lock_file(tmp_path / "lock")
    of_child = os.dup(held)
    try:
        unlock(held)
        unlock(lock_file(tmp_path / "lock"))
    finally:
        os.close(of_child)


@pytest.mark.skipif(locks.fcntl is None, reason="the module that stands in knows no other descriptors")
def test_a_fork_does_not_let_go_of_its_parents_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_child = lock_file(tmp_path / "lock")
    held = os.dup(of_child)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        unlock(of_child)
    with pytest.raises(BlockingIOError):
        lock_file(tmp_path / "lock")
    os.close(held)


def test_a_file_system_without_locks(system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if system == "posix":
        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(sys.modules["msvcrt"], "locking", refuse)
    with pytest.raises(NoLocksError, match="No locks available") as caught:
        lock_file(tmp_path / "lock")
    assert caught.value.errno == errno.ENOLCK


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock_file(tmp_path / "missing" / "lock")
