"""Executors: which are taken, how many workers share a machine, and pools of one's own.

No torch at the top: a worker with a GPU of its own runs code of this file before torch looks for GPUs.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any

from ensemblead.common.extras import require
from ensemblead.common.validation import whole_number

_VISIBLE = "CUDA_VISIBLE_DEVICES"
# Workers of an executor that does not say how many it has.
_SUPPOSED = 4


class Executors:
    """Pools of processes on one machine, for `executor=`; those of Dask, mpi4py and loky do as well.

    Every new process reads the script anew, so what a script does must stand below
    `if __name__ == "__main__":`. The processes end with the one that made the pool, even if that is killed.

    Example:
        >>> import ensemblead as ead
        >>> with ead.Executors.processes(2) as executor:  # processes start with the first unit of work
        ...     type(executor).__name__
        'ProcessPoolExecutor'
    """

    @staticmethod
    def processes(workers: int) -> ProcessPoolExecutor:
        """A pool of so many new processes.

        Python's own pool is forked on Linux up to Python 3.13, where no thread of the kernels survives.
        """
        count = whole_number("workers", workers, 1)
        return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_end_with_parent)

    @staticmethod
    def gpus() -> ProcessPoolExecutor:
        """A pool of one new process per visible GPU, of which each sees its own alone.

        Detectors must have `device="auto"` or `"cuda"`. Raises ValueError where no GPU is visible.
        """
        visible = _visible_gpus()
        if not visible:
            raise ValueError("no GPU is visible to torch; Executors.processes(workers) is for the CPU")
        context = get_context("spawn")
        free = context.SimpleQueue()
        for gpu in visible:
            free.put(gpu)
        return ProcessPoolExecutor(len(visible), mp_context=context, initializer=_take, initargs=(free,))


def _visible_gpus() -> list[str]:
    """Their names, as CUDA_VISIBLE_DEVICES has them. Starts nothing on a GPU."""
    count = require("torch", "Executors.gpus").cuda.device_count()
    given = os.environ.get(_VISIBLE)
    names = [str(number) for number in range(count)] if given is None else given.split(",")
    return names[:count]


def _take(free: Any) -> None:
    """In a new worker: take one of the GPUs that are free."""
    _end_with_parent()
    os.environ[_VISIBLE] = free.get()


def _end_with_parent() -> None:
    """In a new worker: end when the process that made the pool is gone.

    Otherwise a worker whose parent was killed waits for ever for work, and keeps its memory and its GPU.
    """
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="ensemblead-parent").start()


def check_executor(executor: Any) -> None:
    """Raise TypeError for what is no executor, ValueError for a forked pool."""
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor must have a submit that returns futures, as those of concurrent.futures, got "
            f"{type(executor).__name__}"
        )
    context: Any = getattr(executor, "_mp_context", None)
    if isinstance(executor, ProcessPoolExecutor) and context.get_start_method() == "fork":
        raise ValueError(
            "executor must not be a forked pool, since threads do not survive a fork: give "
            "ead.Executors.processes(workers), or a ProcessPoolExecutor with "
            'mp_context=multiprocessing.get_context("spawn")'
        )


def num_workers(executor: Any) -> int:
    """How many processes work at once, as far as an executor says."""
    client = getattr(executor, "_client", None)
    if client is not None:  # Dask's
        return max(1, len(client.nthreads()))
    known = (getattr(executor, name, None) for name in ("_max_workers", "num_workers"))
    return next((count for count in known if isinstance(count, int) and count > 0), _SUPPOSED)


def sharing_cores(executor: Any) -> int:
    """How many workers share the cores of a machine; 1 where something else has divided them.

    A pool of processes is on this machine. Dask starts its workers with a number of threads, and so does MPI.
    """
    return num_workers(executor) if _is_pool(executor) else 1


def most_at_once(executor: Any) -> int | None:
    """How many tasks an executor should be given at a time; None for all.

    A pool of processes takes more than it works on, and those can no longer be cancelled.
    """
    return num_workers(executor) if _is_pool(executor) else None


def _is_pool(executor: Any) -> bool:
    return isinstance(executor, ProcessPoolExecutor) or "loky" in type(executor).__module__
