"""What the benchmarks measure with: times taken in one run, peak memory in a child process, a yardstick."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# A cell that takes longer than this runs once, and its row says so.
LONG = 60.0

# --- time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Wall times in seconds of one callable, in the order measured."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, relative to the median; 0 for a single run."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def once(self) -> bool:
        return len(self.seconds) == 1


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    warm: bool = False,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times the candidates in turn, round after round, so that a drifting machine favours none of them.

    Every candidate runs once unmeasured; if that run takes over a minute it is the measurement. `warm` leaves
    the first run out, where the caller has warmed the candidates up on less. `synchronize` is called before
    each reading of the clock (a GPU's work is asynchronous).
    """
    wait = synchronize or (lambda: None)
    first = {name: 0.0 if warm else _once(call, wait) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [took] if took > LONG else [] for name, took in first.items()}
    for _ in range(repeats):
        for name, call in candidates.items():
            if first[name] <= LONG:
                seconds[name].append(_once(call, wait))
    return {name: Timing(tuple(measured)) for name, measured in seconds.items()}


# Threads of a pool (OpenBLAS's, say) spin for some time after their work; nobody's call is to share the cores
# with those of the call before.
SETTLE = 0.1


def _once(call: Callable[[], object], wait: Callable[[], object]) -> float:
    gc.collect()
    time.sleep(SETTLE)
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    took = time.perf_counter() - start
    del result
    return took


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times `slower` takes as long as `faster`: the median over rounds where both have several."""
    if len(slower.seconds) == len(faster.seconds):
        return statistics.median(a / b for a, b in zip(slower.seconds, faster.seconds, strict=True))
    return slower.median / faster.median


class Sgemm:
    """NumPy's float32 matrix product `[m, k] x [k, n]`, the yardstick of compute-bound kernels.

    Call it among the candidates of `interleaved`, then `rate(timing)` is its FLOP/s in that run.
    """

    def __init__(self, m: int = 2048, n: int = 2048, k: int = 2048, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._a = rng.standard_normal((m, k), dtype=np.float32)
        self._b = rng.standard_normal((k, n), dtype=np.float32)
        self._out = np.empty((m, n), dtype=np.float32)
        self.flops = 2 * m * n * k

    def __call__(self) -> object:
        return np.matmul(self._a, self._b, out=self._out)

    def rate(self, timing: Timing) -> float:
        return self.flops / timing.median


# --- weights --------------------------------------------------------------------------------------


def network_weights(name: str, folder: Path | None, made_in: Path) -> Path:
    """The network's file in `folder`, or one in `made_in` with random weights, as fast as trained ones.

    Untrained residual branches end in norms that scale by zero, and an engine may leave out what is
    multiplied by zero. Such norms scale by one here.
    """
    given = None if folder is None else (folder / f"{name}.safetensors").resolve()
    if given is not None and given.is_file():
        return given
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = timm.create_model(name, pretrained=False).state_dict()
    scales = {key: torch.ones_like(one) for key, one in tensors.items() if one.ndim == 1 and not one.any()}
    scales = {key: one for key, one in scales.items() if key.endswith(".weight")}
    made = made_in / f"{name}.safetensors"
    save_file({**tensors, **scales}, made)
    return made


# --- on a GPU -------------------------------------------------------------------------------------

_HEAD_START = 2_000_000  # cycles of idling, about a millisecond


def interleaved_on_gpu(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 15
) -> dict[str, Timing]:
    """As `interleaved`, with times by CUDA events: from the first kernel of a call to the end of its last.

    The GPU idles for a moment before each call, so that the program is ahead with its launches and their cost
    is not counted. Candidates that rotate among inputs larger than the cache must do so themselves.
    """
    import torch

    for _ in range(3):
        for call in candidates.values():
            call()
    torch.cuda.synchronize()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(_HEAD_START)
            start.record()
            result = call()
            end.record()
            torch.cuda.synchronize()
            del result
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return {name: Timing(tuple(measured)) for name, measured in seconds.items()}


class Rotating:
    """Calls a function with one set of arguments after the other, so that no cache holds the next ones."""

    def __init__(self, function: Callable[..., object], sets: Sequence[Sequence[Any]]) -> None:
        self._function = function
        self._sets = itertools.cycle(sets)

    def __call__(self) -> object:
        return self._function(*next(self._sets))


class DeviceCopy:
    """A copy from device memory to device memory, the yardstick of memory-bound kernels."""

    def __init__(self, size: int = 1 << 29) -> None:
        import torch

        self._source = torch.randint(256, (size,), dtype=torch.uint8, device="cuda")
        self._target = torch.empty_like(self._source)
        self.moved = 2 * size  # read and written

    def __call__(self) -> object:
        return self._target.copy_(self._source)


def bandwidth_share(moved: int, ours: Timing, copy: DeviceCopy, copied: Timing) -> float:
    """The bytes per second of a call that reads and writes `moved` bytes, as a share of the copy's."""
    return (moved / ours.median) / (copy.moved / copied.median)


def peak_on_gpu(call: Callable[[], object]) -> int:
    """Bytes by which the peak of torch's memory on the GPU exceeds what was allocated before the call."""
    import torch

    call()  # libraries take their workspaces once
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return int(peak - before)


# --- memory ---------------------------------------------------------------------------------------


def peak_memory(
    setup: Callable[[], Any],
    call: Callable[[Any], object],
    *,
    warm_up: Callable[[], object] | None = None,
) -> int:
    """Bytes by which the peak resident memory of `call(setup())` exceeds what was resident before the call.

    The result of the call is part of it. Both run in a fresh child process, so they must be picklable:
    functions of a module or `functools.partial` of such. `warm_up` (a small call of that kind) runs first,
    so that libraries and thread stacks loaded on first use are not counted.
    """
    return int(in_child(_measure_peak, setup, call, warm_up))


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returns in a fresh process. All of them must be picklable."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        result, failure = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the measuring process ended with exit code {child.exitcode}") from None
    child.join()
    if failure is not None:
        raise RuntimeError(f"the measured call failed: {failure}")
    return result


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, f"{type(error).__name__}: {error}"))


class PeakMemory:
    """Peak resident memory of this process since `PeakMemory()` beyond what was resident then, in bytes."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
        self._before = _status("VmRSS")

    def read(self) -> int:
        return max(0, _status("VmHWM") - self._before)

    def whole(self) -> int:
        """The same with what was resident before."""
        return _status("VmHWM")


def _measure_peak(
    setup: Callable[[], Any], call: Callable[[Any], object], warm_up: Callable[[], object] | None
) -> int:
    if warm_up is not None:
        warm_up()
    prepared = setup()
    memory = PeakMemory()
    result = call(prepared)
    peak = memory.read()
    del result
    return peak


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
