"""How many threads this process should run, and what its idle threads do.

A container may show all cores of its host and grant the time of two. The cores that count are those of the
affinity mask, limited by the quota of the control group.

Threads of OpenMP that wait for each other spin at first, on a core that another process could use. Beside a
busy neighbour each waits for a thread that is not running, and the work takes several times as long. Threads
that sleep at once cost microseconds per wait. OpenMP reads `OMP_WAIT_POLICY` once, when it is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

_COUNT, _POLICY = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
# Each of them says how long a thread spins before it sleeps, and the user who sets one has chosen.
_POLICIES = (_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# The file of an OpenMP among a process's mapped ones; and the pause that keeps what was set.
_OPENMP = re.compile(r"/lib[gi]?omp\d*(-[0-9a-f]+)?\.so[.0-9]*$")
_SOFT = 1
_FEW = 8
_PROCESS = os.getpid()


def available_cores() -> int:
    """The cores that this process may keep busy: its affinity mask, or fewer by its control group's quota.

    A quota of 2.5 cores counts as 2: with 3 threads all of them would be stopped for a part of each period.
    """
    quota = cpu_quota()
    cores = affinity_cores()
    return cores if quota is None else max(1, min(cores, int(quota + 1e-6)))


def affinity_cores() -> int:
    """The cores of this process's affinity mask; all of the machine where the system has no such mask."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The processor time that the control groups of this process grant, in cores; None without a limit.

    The tightest limit of the process's own group and all groups above it, of either version of Linux's
    control groups. A container sees its own group as the root of the mounted tree, so that is read as well.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    limits = []
    for mount, read in (
        ("cpu", _limit_v1),
        ("cpu,cpuacct", _limit_v1),
        ("", _limit_v2),
        ("unified", _limit_v2),
    ):
        base = root / "sys/fs/cgroup" / mount
        for group in _groups(root, unified=read is _limit_v2):
            with contextlib.suppress(OSError, ValueError):
                limits.append(read(base / group))
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(root: Path, *, unified: bool) -> Iterator[str]:
    """The paths, relative to where control groups are mounted, of this process's group and all above it."""
    yield "."
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if ("cpu" in controllers.split(",")) if not unified else not controllers:
                # A path that leads out of the container's own view has no meaning below its mount.
                own = PurePosixPath(path.lstrip("/"))
                if ".." not in own.parts:
                    yield from (str(group) for group in (own, *own.parents) if str(group) != ".")


def _limit_v1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    period = int((group / "cpu.cfs_period_us").read_text())
    return quota / period if quota > 0 and period > 0 else None


def _limit_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def wait_policy(environment: MutableMapping[str, str] = os.environ) -> str:
    """What the environment says of waiting threads, e.g. "OMP_WAIT_POLICY=passive", or "default"."""
    given = [f"{name}={environment[name]}" for name in _POLICIES if environment.get(name)]
    return ", ".join(given) or "default"


def set_thread_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Fill in what the user left open, for a process of our own and those that it starts: waiting threads
    sleep, and under a quota no more threads run than it grants.

    To be called before a library that brings OpenMP is loaded.
    """
    if wait_policy(environment) == "default":
        environment[_POLICY] = "passive"
    if not environment.get(_COUNT) and available_cores() < affinity_cores():
        environment[_COUNT] = str(available_cores())


@contextlib.contextmanager
def sleeping_threads() -> Iterator[None]:
    """Within it, an OpenMP runtime that is loaded gets threads that sleep while they wait, unless the user
    chose otherwise. The environment is as before afterwards.
    """
    chosen = wait_policy() != "default"
    if not chosen:
        os.environ[_POLICY] = "passive"
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop(_POLICY, None)


@contextlib.contextmanager
def ended_with_generator(pool: ThreadPoolExecutor) -> Iterator[None]:
    """In a generator that `pool` works for: its threads end when the generator ends.

    Nothing waits for them where the generator is dropped or closed; each finishes what it is at. The garbage
    collector may be what drops it, in the middle of the start of another thread, where `threading` holds a
    lock that waiting for a thread takes as well: the process would hang.
    """
    wait = True
    try:
        yield
    except GeneratorExit:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def end_waiting_threads(count: int) -> None:
    """End the threads that OpenMP keeps for the calling thread, `count` with itself; libomp, the process's.

    They would spin for some milliseconds after their work, on cores that another library's threads now want.
    The next work makes new ones: two in a tenth of a millisecond, many in several, so that more than eight
    stay. Nothing where the user chose how threads wait, in a forked process, which has none of the threads
    that its OpenMP knows, and where OpenMP cannot be told so.
    """
    if 1 < count <= _FEW and os.getpid() == _PROCESS:
        for pause in _loaded_pauses():
            pause(_SOFT)


@functools.cache
def _loaded_pauses() -> tuple[Callable[[int], int], ...]:
    """`omp_pause_resource_all` (OpenMP 5.0) of each OpenMP that is loaded by now, on Linux."""
    if wait_policy() != "default":
        return ()
    found = []
    with contextlib.suppress(OSError):
        lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).split("\n")
        paths = {line.split(maxsplit=5)[5] for line in lines if _OPENMP.search(line)}
        found = [getattr(ctypes.CDLL(path), "omp_pause_resource_all", None) for path in sorted(paths)]
    return tuple(pause for pause in found if pause is not None)


def quota_threads() -> int:
    """The number of threads that a quota leaves; 0 if none is below the affinity mask, or the user chose."""
    if os.environ.get(_COUNT):
        return 0
    cores = available_cores()
    return cores if cores < affinity_cores() else 0
