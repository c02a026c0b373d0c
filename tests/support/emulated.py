"""Arrays that claim to lie on a CUDA device and lie in the host's memory, for the emulated core alone."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.dlpack_by_hand import ByHand

from ensemblead import _core

_library = ctypes.CDLL(_core.__file__)
_library.ensemblead_emulation_log.restype = ctypes.c_char_p

CUDA = 2  # DLPack's name for the kind of device


def reset() -> None:
    """Ascending order, no capture, an empty log, the attributes of the device as they were."""
    _library.ensemblead_emulation_reset()


def set_order(order: int) -> None:
    """0: threads and blocks in ascending order, 1: descending, others: shuffled with this seed."""
    _library.ensemblead_emulation_order(ctypes.c_uint(order))


def set_capturing(capturing: bool) -> None:
    """As if a stream were being captured: what cannot be part of a graph fails."""
    _library.ensemblead_emulation_capture(int(capturing))


def set_attribute(attribute: int, value: int) -> None:
    """What cudaDeviceGetAttribute gives, by the number of the attribute (16: multiprocessors)."""
    _library.ensemblead_emulation_attribute(attribute, value)


def current_device() -> int:
    return int(_library.ensemblead_emulation_current_device())


def set_device(device: int) -> None:
    """As another library does that shares the thread."""
    assert _library.ensemblead_emulation_set_device(device) == 0


@dataclass(frozen=True)
class Work:
    """What was put on a stream: a "kernel" (grid, block, shared bytes), a "memset" or a "memcpy" (bytes)."""

    what: str
    device: int
    stream: int
    extents: tuple[int, ...]


def log() -> list[Work]:
    """All work since `reset`."""
    work = []
    for line in _library.ensemblead_emulation_log().decode().splitlines():
        what, *numbers = line.split()
        device, stream, *extents = map(int, numbers)
        work.append(Work(what, device, stream, tuple(extents)))
    return work


def bfloat16_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 rounded to nearest even, as the upper halves; no NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class DeviceArray:
    """Memory of `device` (0 or 1) as the core sees it; `numpy` is what a test sees. bfloat16 is kept as bits.

    `offset` is how many elements past a multiple of 256 bytes the array starts; around it lie `GUARD` bytes
    that must not change.
    """

    GUARD = 256

    def __init__(
        self, values: np.ndarray[Any, Any], dtype: str | None = None, *, device: int = 0, offset: int = 0
    ):
        self.dtype = dtype or str(values.dtype)
        stored = bfloat16_bits(values) if self.dtype == "bfloat16" else values.astype(self.dtype)
        self.device = device
        itemsize = stored.dtype.itemsize
        self._memory = np.full(stored.nbytes + 4 * self.GUARD, 0xA5, np.uint8)
        start = -self._memory.ctypes.data % self.GUARD + self.GUARD + offset * itemsize
        self._inside = slice(start, start + stored.nbytes)
        self.values = self._memory[self._inside].view(stored.dtype).reshape(stored.shape)
        self.values[...] = stored
        self._lent: list[ByHand] = []
        self.permutation: tuple[int, ...] = tuple(range(stored.ndim))

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: str, *, device: int = 0, offset: int = 0) -> DeviceArray:
        """Memory that nobody wrote yet: all bits set."""
        plain = "uint16" if dtype == "bfloat16" else dtype
        array = cls(np.zeros(tuple(shape), plain), device=device, offset=offset)
        array.dtype = dtype
        array.values.view(np.uint8)[...] = 0xFF
        return array

    def permuted(self, *axes: int) -> DeviceArray:
        """The same memory with its axes in another order, as torch's permute gives it."""
        other = object.__new__(DeviceArray)
        other.__dict__.update(self.__dict__)
        other.values = self.values.transpose(axes)
        return other

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy; bfloat16 as float32. Checks that nothing around the array was written."""
        around = np.ones(len(self._memory), bool)
        around[self._inside] = False
        assert (self._memory[around] == 0xA5).all(), "written beside the array"
        if self.dtype == "bfloat16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.copy()

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int] = (0, 0)) -> Any:
        assert stream == -1, "the kernels run on the producer's stream, so that it need not wait"
        lent = ByHand(self.values, device=(CUDA, self.device), dtype=self.dtype)
        self._lent.append(lent)
        return lent.capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device
