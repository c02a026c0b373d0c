"""Units of work: each has a result that is a folder on a common path, complete or not there.

A unit's key is a hash of all that its result depends on. A folder under that key is found again by whoever
asks for it, and is never replaced: of two that compute the same unit, the first one's stays.
"""

from __future__ import annotations

import secrets
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemblead.common.errors import DamagedModelError, EnsembleADError, PartialFitError
from ensemblead.common.files import as_file_name
from ensemblead.common.validation import some_of
from ensemblead.distributed.executors import most_at_once
from ensemblead.distributed.files import digest_of
from ensemblead.kernels.build import __version__
from ensemblead.store import FolderReader, FolderWriter, read_folder, remove_leftovers, verify, write_folder

_FORMAT, _KIND = 1, "UnitOfWork"
# So often the caller looks at what is done.
_LOOK_SECONDS = 1.0
# Why a pool of processes breaks.
_CAUSES = (
    " A worker was killed or ran out of memory, or, if none ever works, the script does its work outside of "
    '`if __name__ == "__main__":`'
)

Task = dict[str, Any]  # plain values alone
Standing = Callable[[], tuple[list[str], list[str]]]  # names of units that are done, and of the others


@dataclass(frozen=True)
class Unit:
    """A unit of work: its name for people, its folder, and its key."""

    name: str
    folder: str
    key: str

    @classmethod
    def of(cls, workdir: Path, name: str, document: Mapping[str, Any]) -> Unit:
        """`document`: all that the result depends on, in JSON's types, beside the version of the library."""
        key = digest_of({"format": _FORMAT, "version": __version__, **document})
        return cls(name, str(workdir / f"{as_file_name(name, limit=80, plain=True)}.{key[:24]}"), key)

    def plain(self) -> dict[str, str]:
        return asdict(self)

    def read(self) -> FolderReader | None:
        """The result; None if it is not there, or not what was written."""
        try:
            reader = read_folder(self.folder)
            if reader is not None:
                verify(self.folder)
        except DamagedModelError:
            return None
        is_own = reader is not None and reader.class_name == _KIND and reader.state.get("key") == self.key
        return reader if is_own else None

    def write(self, fill: Callable[[FolderWriter], dict[str, Any]]) -> None:
        """Write the result and the record of it, whole or not at all. `fill` writes what is large, and
        returns the rest in JSON's types. Networks are not written: the caller has them.
        """

        def whole(folder: Path) -> None:
            writer = FolderWriter(folder, {"borrowed": True})
            writer.finish(_KIND, {"key": self.key, **fill(writer)})

        if Path(self.folder).exists() and self.read() is None:
            shutil.rmtree(self.folder)  # it was damaged
        try:
            write_folder(self.folder, whole, keep=True)
        except OSError:
            if self.read() is None:  # else another worker was quicker, and its caller has cleaned up
                raise


def standing(units: Sequence[Unit]) -> tuple[list[str], list[str]]:
    """The names of the units that are done, and of the others."""
    done = [unit for unit in units if unit.read() is not None]
    return [unit.name for unit in done], [unit.name for unit in units if unit not in done]


def clean(units: Sequence[Unit]) -> None:
    """Remove what killed workers have left of units that are done."""
    for unit in units:
        remove_leftovers(unit.folder)


def collected(
    executor: Any,
    function: Callable[[Task], Any],
    tasks: Sequence[Task],
    retries: int,
    now: Standing,
    look: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """The places of tasks and what came of them, as they are done. `look` is called every second.

    A task that fails is given to the executor again, up to `retries` times. One that says that its input is
    wrong (ValueError, TypeError, this library's errors, a missing file) fails at once, and its error is
    raised. Leaving the loop early cancels what has not begun.

    Raises PartialFitError where a task failed to the end, once the others are done, or the executor broke.
    """
    waiting: dict[Future[Any], int] = {}
    attempts: Counter[int] = Counter()
    failure: BaseException | None = None

    def submit(place: int) -> None:
        attempts[place] += 1
        # Dask takes two calls that are alike for one, and answers the second with the failure of the first.
        task = {**tasks[place], "submission": secrets.token_hex(8)}
        waiting[executor.submit(function, task)] = place

    ready = deque(range(len(tasks)))
    most = most_at_once(executor) or len(tasks)
    try:
        while waiting or ready:
            while ready and len(waiting) < most:
                submit(ready.popleft())
            done, _ = wait(waiting, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            look()
            for future in sorted(done, key=waiting.__getitem__):  # the same error, whoever was first
                place, error = waiting.pop(future), _error_of(future)
                if error is None:
                    yield place, future.result()
                elif isinstance(error, BrokenExecutor) or _is_final(error):
                    raise error
                elif attempts[place] <= retries:
                    ready.append(place)
                else:
                    failure = error
    except BrokenExecutor as error:
        cause = _CAUSES if most_at_once(executor) else ""
        why = f"The executor broke ({error}{cause}); call again with a new one"
        raise _partial(now, why, error) from error
    finally:
        for future in waiting:
            future.cancel()
    if failure is not None:
        raise _partial(now, f"{type(failure).__name__}: {failure}; call again", failure) from failure


def _error_of(future: Future[Any]) -> BaseException | None:
    try:
        return future.exception()
    except Exception as error:  # it was cancelled from elsewhere
        return error


def _is_final(error: BaseException) -> bool:
    """Whether the same call would come to the same end: wrong input, or an interrupt."""
    wrong = (ValueError, TypeError, EnsembleADError, FileNotFoundError)
    return isinstance(error, wrong) or not isinstance(error, Exception)


def _partial(now: Standing, why: str, error: BaseException) -> PartialFitError:
    done, missing = now()
    return PartialFitError(
        f"{len(done)} of {len(done) + len(missing)} units of work are done and kept; missing: "
        f"{some_of(missing)}. {why} to resume",
        tuple(done),
        tuple(missing),
    )
