"""NumPy, CuPy and torch behind one small interface; no other module knows all three.

None of them is imported here: an array's framework is loaded already, or there would be no array.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np

from ensemblead.kernels import QUOTA_THREADS

# A NumPy array, a torch tensor or a CuPy array. A result is of the kind of its input.
Array: TypeAlias = Any

_CACHE_LINE = 64


class Framework(Protocol):
    """The framework that an array comes from, as far as the kernels need it."""

    name: str

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        """An uninitialised array on the device of `like`; `dtype` as NumPy writes it, or "bfloat16"."""

    def asarray(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        """A NumPy array as an array of this framework on the device of `like`."""

    def as_bytes(self, array: Array) -> Array:
        """The memory of a bool array as uint8, which the core knows."""

    def dtype(self, array: Array) -> str:
        """The dtype's name as NumPy writes it ("float32"), or "bfloat16"."""

    def device(self, array: Array) -> str:
        """ "cpu" or "cuda:0"."""

    def on_device(self, array: Array) -> AbstractContextManager[Any]:
        """A scope in which the device of `array` is the current one."""

    def stream(self, array: Array) -> int:
        """The handle of the current CUDA stream of the device of `array`; 0 on the CPU."""


class _NumPy:
    name = "numpy"

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        # NumPy aligns to 16 bytes only; at whole cache lines the kernels can write past the caches.
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = np.empty(size + _CACHE_LINE, dtype=np.uint8)
        start = -memory.__array_interface__["data"][0] % _CACHE_LINE
        aligned: Array = memory[start : start + size].view(dtype).reshape(tuple(shape))
        return aligned

    def asarray(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        return array

    def as_bytes(self, array: Array) -> Array:
        return array.view(np.uint8)

    def dtype(self, array: Array) -> str:
        return str(array.dtype)

    def device(self, array: Array) -> str:
        return "cpu"

    def on_device(self, array: Array) -> AbstractContextManager[Any]:
        return nullcontext()

    def stream(self, array: Array) -> int:
        return 0


class _Torch:
    name = "torch"

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        torch = sys.modules["torch"]
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)

    def asarray(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        writable = array if array.flags.writeable else array.copy()  # torch warns of the others
        return sys.modules["torch"].from_numpy(writable).to(like.device)

    def as_bytes(self, array: Array) -> Array:
        return array.view(sys.modules["torch"].uint8)

    def dtype(self, array: Array) -> str:
        return str(array.dtype).removeprefix("torch.")

    def device(self, array: Array) -> str:
        return str(array.device)

    def on_device(self, array: Array) -> AbstractContextManager[Any]:
        if not array.is_cuda:
            return nullcontext()
        scope: AbstractContextManager[Any] = sys.modules["torch"].cuda.device(array.device)
        return scope

    def stream(self, array: Array) -> int:
        if not array.is_cuda:
            return 0
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)


class _CuPy:
    name = "cupy"

    def empty(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        with like.device:
            return sys.modules["cupy"].empty(tuple(shape), dtype=dtype)

    def asarray(self, array: np.ndarray[Any, Any], like: Array) -> Array:
        with like.device:
            return sys.modules["cupy"].asarray(array)

    def as_bytes(self, array: Array) -> Array:
        return array.view("uint8")

    def dtype(self, array: Array) -> str:
        return str(array.dtype)

    def device(self, array: Array) -> str:
        return f"cuda:{array.device.id}"

    def on_device(self, array: Array) -> AbstractContextManager[Any]:
        scope: AbstractContextManager[Any] = array.device
        return scope

    def stream(self, array: Array) -> int:
        with array.device:
            return int(sys.modules["cupy"].cuda.get_current_stream().ptr)


_NUMPY, _TORCH, _CUPY = _NumPy(), _Torch(), _CuPy()


def _is(array: Array, module: str, kind: str) -> bool:
    """Whether `array` is a `module.kind`; the module may be absent, blocked, or only half imported."""
    found = getattr(sys.modules.get(module), kind, None)
    return found is not None and isinstance(array, found)


def framework_of(array: Array, argument: str) -> Framework:
    """The framework of `array`; `argument` is the name an error uses.

    Raises:
        TypeError: it is no NumPy, CuPy or torch array, or it is a masked array (whose mask would be lost).
        ValueError: it is a torch tensor whose memory does not hold its values.
    """
    if isinstance(array, np.ndarray):
        if "numpy.ma" in sys.modules and isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{argument} is a masked array; fill or compress it first")
        return _NUMPY
    if _is(array, "torch", "Tensor"):
        # DLPack hands out the memory of a lazy negation as it is, with the wrong sign.
        if array.is_neg():
            raise ValueError(f"{argument} is a lazily negated view; pass {argument}.resolve_neg()")
        return _TORCH
    if _is(array, "cupy", "ndarray"):
        return _CUPY
    raise TypeError(f"{argument} must be a NumPy, CuPy or torch array, got {type(array).__name__}")


class WorkArguments(TypedDict):
    """The arguments that every operation of the core ends with."""

    num_threads: int
    stream: int
    scratch: Array | None


def work_arguments(framework: Framework, array: Array, scratch_bytes: Callable[[], int]) -> WorkArguments:
    """The arguments with which an operation works on `array`: the threads on the CPU; on a GPU the current
    stream, and scratch of `scratch_bytes()`, which is allocated here.
    """
    if not framework.device(array).startswith("cuda"):
        return {"num_threads": num_threads(), "stream": 0, "scratch": None}
    needed = scratch_bytes()
    scratch = framework.empty((needed,), "uint8", array) if needed else None
    return {"num_threads": 0, "stream": framework.stream(array), "scratch": scratch}


def no_scratch() -> int:
    """For `work_arguments`, of operations that need no scratch."""
    return 0


def num_threads() -> int:
    """The number of threads of the CPU kernels: that of torch if it is loaded, else what a quota of the
    control group leaves, else 0 (`default_threads` of the core).

    torch brings an OpenMP runtime of its own, so `torch.set_num_threads` does not reach ours by itself.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return QUOTA_THREADS
