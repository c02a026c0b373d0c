"""Which executors are taken, how units are collected from them, and what becomes of errors."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.units import Inline

pytest.importorskip("torch")
import torch

import ensemblead as ead
from ensemblead.common.errors import PartialFitError
from ensemblead.distributed import executors, working
from ensemblead.distributed.executors import check_executor, num_workers, sharing_cores
from ensemblead.distributed.units import collected
from ensemblead.distributed.working import at_work


class TestExecutors:
    def test_a_forked_pool_is_refused(self) -> None:
        with (
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
            pytest.raises(ValueError, match="executor must not be a forked pool.*Executors.processes"),
        ):
            check_executor(pool)

    def test_other_pools_are_taken(self) -> None:
        with ead.Executors.processes(3) as pool, ThreadPoolExecutor(2) as threads:
            check_executor(pool)
            check_executor(threads)
            assert (num_workers(pool), sharing_cores(pool)) == (3, 3)
            # Threads of one process take turns, and each has all cores.
            assert (num_workers(threads), sharing_cores(threads)) == (2, 1)

    def test_no_executor(self) -> None:
        with ThreadPool(1) as pool, pytest.raises(TypeError, match="executor must have a submit.*ThreadPool"):
            check_executor(pool)

    def test_workers_of_a_cluster(self) -> None:
        client = SimpleNamespace(nthreads=lambda: {"tcp://a": 1, "tcp://b": 1, "tcp://c": 4})
        assert num_workers(SimpleNamespace(_client=client)) == 3
        assert num_workers(SimpleNamespace(num_workers=5)) == 5
        assert num_workers(SimpleNamespace()) == 4

    @pytest.mark.parametrize("workers", [0, -1])
    def test_no_workers(self, workers: int) -> None:
        with pytest.raises(ValueError, match=f"workers must be at least 1, got {workers}"):
            ead.Executors.processes(workers)


SCRIPT = """
import os, sys, time
import ensemblead as ead

if __name__ == "__main__":
    pool = ead.Executors.processes(1)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


class TestWorkers:
    def test_they_end_with_the_process_that_made_the_pool(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(SCRIPT)
        command = [sys.executable, str(tmp_path / "script.py")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            worker = int(parent.stdout.readline())
            parent.kill()
            try:
                # The worker holds the other end of the pipe until it is gone.
                assert parent.communicate(timeout=60)[0] == ""
            except subprocess.TimeoutExpired:
                os.kill(worker, signal.SIGKILL)
                raise


class TestGPUs:
    @pytest.mark.parametrize(
        ("given", "count", "expected"),
        [(None, 2, ["0", "1"]), ("3,1", 2, ["3", "1"]), ("3,-1,2", 1, ["3"]), ("", 0, [])],
    )
    def test_names(
        self, monkeypatch: pytest.MonkeyPatch, given: str | None, count: int, expected: list[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert executors._visible_gpus() == expected

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(ValueError, match="no GPU is visible to torch"):
            ead.Executors.gpus()

    @pytest.mark.slow
    def test_every_worker_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
        with ead.Executors.gpus() as pool:
            seen = set(pool.map(visible_on_worker, range(40)))
            assert num_workers(pool) == 2
        # One may have been slow to start.
        assert seen
        assert seen <= {"4", "GPU-7"}


def visible_on_worker(number: int) -> str:
    time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]


class TestThreads:
    def test_cores_are_divided(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(working, "available_cores", lambda: 6)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(5)
            with at_work(sharing=2):
                assert torch.get_num_threads() == 2
            with at_work(sharing=8):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 5
            monkeypatch.setattr(working, "available_cores", lambda: 2)  # a quota, which torch does not see
            with at_work(sharing=2):
                assert torch.get_num_threads() == 1
            with at_work(sharing=1):  # the caller's own process, where the caller decides
                assert torch.get_num_threads() == 5
            monkeypatch.setenv("OMP_NUM_THREADS", "5")
            with at_work(sharing=2):
                assert torch.get_num_threads() == 5
        finally:
            torch.set_num_threads(before)


def double(task: dict[str, Any]) -> int:
    return 2 * int(task["value"])


DONE: list[int] = []


def note(task: dict[str, Any]) -> None:
    DONE.append(task["value"])


def collect(executor: Any, retries: int = 1, count: int = 3) -> list[tuple[int, int]]:
    tasks = [{"value": value} for value in range(count)]
    return list(collected(executor, double, tasks, retries, lambda: (["a"], ["b", "c"])))


def failing(errors: dict[int, BaseException]) -> Inline:
    """Fails at these of its calls."""

    def before(number: int) -> None:
        if number in errors:
            raise errors[number]

    return Inline(before)


class Alike(Inline):
    """Takes two calls that are alike for one, as Dask does while anybody holds the future of the first."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        known: dict[str, Future[Any]] = self.__dict__.setdefault("known", {})
        call = json.dumps(args)
        if call not in known:
            known[call] = super().submit(function, *args)
        return known[call]


class TestCollected:
    def test_all(self) -> None:
        executor = Inline()
        assert sorted(collect(executor)) == [(0, 0), (1, 2), (2, 4)]
        assert executor.given == 3

    def test_what_fails_is_tried_again(self) -> None:
        executor = failing({1: RuntimeError("away"), 3: OSError("away")})
        assert sorted(collect(executor, retries=2)) == [(0, 0), (1, 2), (2, 4)]
        assert executor.given == 5

    def test_what_fails_is_tried_again_by_an_executor_that_knows_it(self) -> None:
        def fails(number: int) -> None:
            if number in (1, 4):
                raise RuntimeError("away")

        executor = Alike(fails)
        assert sorted(collect(executor)) == [(0, 0), (1, 2), (2, 4)]
        # And so is what failed to the end, while the error is still looked at.
        with pytest.raises(PartialFitError):
            collect(executor, retries=0, count=1)
        assert collect(executor, retries=0, count=1) == [(0, 0)]

    def test_the_others_are_done_first(self) -> None:
        executor = failing({0: RuntimeError("away"), 3: RuntimeError("away again")})
        seen: list[int] = []

        def see() -> None:
            tasks = [{"value": 0}] * 3
            for place, _ in collected(executor, double, tasks, 1, lambda: (["a"], ["b", "c"])):
                seen.append(place)

        with pytest.raises(PartialFitError, match="1 of 3 .* missing: b, c. RuntimeError: away") as caught:
            see()
        assert sorted(seen) == [1, 2]
        assert (caught.value.done, caught.value.missing) == (("a",), ("b", "c"))
        assert isinstance(caught.value.__cause__, RuntimeError)

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("images: wrong"),
            TypeError("wrong"),
            FileNotFoundError("gone"),
            ead.EnsembleADError("x"),
            KeyboardInterrupt(),
        ],
    )
    def test_wrong_input_is_not_tried_again(self, error: BaseException) -> None:
        executor = failing({1: error})
        with pytest.raises(type(error)) as caught:
            collect(executor, retries=5)
        assert caught.value is error
        assert executor.given == 3

    @pytest.mark.parametrize("error", [BrokenExecutor("dead"), BrokenProcessPool("dead")])
    def test_a_broken_executor(self, error: BaseException) -> None:
        executor = failing({1: error})
        with pytest.raises(PartialFitError, match="The executor broke .dead.; call again with a new one"):
            collect(executor, retries=5)
        assert executor.given == 3

    def test_a_pool_that_breaks_says_what_scripts_need(self) -> None:
        with ead.Executors.processes(1) as pool:
            pool._broken = "dead"  # type: ignore[attr-defined]
            with pytest.raises(PartialFitError, match='outside of `if __name__ == "__main__":`.; call again'):
                collect(pool)

    def test_a_pool_is_given_what_its_workers_can_begin(self) -> None:
        """What waits in the queue of a pool cannot be cancelled, and would be done after Ctrl-C."""
        given: list[Future[Any]] = []

        class Pool(ProcessPoolExecutor):
            def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
                given.append(Future())
                if len(given) == 1:
                    given[0].set_result(0)
                return given[-1]

        def press() -> None:
            if len(given) == 3:  # the first is done, and two are under way
                raise KeyboardInterrupt

        pool = Pool(2, mp_context=multiprocessing.get_context("spawn"))
        tasks = [{"value": 0}] * 9
        with pytest.raises(KeyboardInterrupt):
            list(collected(pool, double, tasks, 0, lambda: ([], []), press))
        assert len(given) == 3

    def test_an_executor_that_is_broken_already(self) -> None:
        class Broken(Inline):
            def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
                raise BrokenProcessPool("dead")

        with pytest.raises(PartialFitError, match="The executor broke"):
            collect(Broken())

    def test_work_that_is_cancelled_elsewhere_counts_as_failed(self) -> None:
        executor = failing({0: CancelledError()})
        assert len(collect(executor)) == 3

    def test_what_has_not_begun_is_cancelled(self) -> None:
        go = threading.Event()

        def press() -> None:
            raise KeyboardInterrupt

        DONE.clear()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(go.wait)  # the only worker is busy
            with pytest.raises(KeyboardInterrupt):
                list(collected(pool, note, [{"value": 0}] * 3, 0, lambda: ([], []), press))
            go.set()
        assert DONE == []
