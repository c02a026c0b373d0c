"""A DLPack producer made by hand with ctypes: every field can lie, and deleter runs are counted.

Real producers hand out what they please; the border has to be tried with what they may hand out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np


class DLDevice(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    _fields_ = [("dl_tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", DELETER)]


class DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", DELETER),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", DLTensor),
    ]


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR]
# The capsule as a bare pointer: while it is being destroyed nobody may hold a reference.
_is_named = ctypes.pythonapi.PyCapsule_IsValid
_is_named.restype = ctypes.c_int
_is_named.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

DTYPES = {
    "uint8": (1, 8, 1),
    "int32": (0, 32, 1),
    "int64": (0, 64, 1),
    "float16": (2, 16, 1),
    "bfloat16": (4, 16, 1),
    "float32": (2, 32, 1),
    "float64": (2, 64, 1),
}
CPU, CUDA = (1, 0), (2, 0)


class ByHand:
    """`array` as an object with `__dlpack__`, in a capsule of either kind; keyword arguments make it lie.

    Keep it alive as long as anything that it handed out. `deleted` counts the runs of the deleter, `requests`
    holds the keyword arguments of each `__dlpack__` call. With `poison=True` the deleter overwrites it,
    as a producer that reuses its memory would.
    """

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        *,
        versioned: bool = True,
        shape: tuple[int, ...] | None = None,
        strides: tuple[int, ...] | None = None,
        null_strides: bool = False,
        byte_offset: int = 0,
        null_data: bool = False,
        dtype: tuple[int, int, int] | str | None = None,
        device: tuple[int, int] = CPU,
        version: tuple[int, int] = (1, 0),
        read_only: bool = False,
        null_deleter: bool = False,
        name: bytes | None = None,
        poison: bool = False,
    ) -> None:
        self.array = array
        self.deleted = 0
        self.requests: list[dict[str, Any]] = []
        self._device = device
        self._poison = poison
        shape = array.shape if shape is None else shape
        if strides is None:
            strides = tuple(stride // array.itemsize for stride in array.strides)
        kind = DTYPES[str(array.dtype)] if dtype is None else dtype
        tensor = DLTensor(
            data=None if null_data else array.ctypes.data,
            device=DLDevice(*device),
            ndim=len(shape),
            dtype=DLDataType(*(DTYPES[kind] if isinstance(kind, str) else kind)),
            shape=(ctypes.c_int64 * len(shape))(*shape),
            strides=None if null_strides else (ctypes.c_int64 * len(strides))(*strides),
            byte_offset=byte_offset,
        )
        self._deleter = DELETER() if null_deleter else DELETER(self._delete)
        self._managed: DLManagedTensor | DLManagedTensorVersioned
        if versioned:
            self._managed = DLManagedTensorVersioned(*version, None, self._deleter, int(read_only), tensor)
        else:
            self._managed = DLManagedTensor(tensor, None, self._deleter)
        self._unused = b"dltensor_versioned" if versioned else b"dltensor"
        self._name = name or self._unused
        self._destructor = DESTRUCTOR(self._destroy)

    def _delete(self, managed: int) -> None:
        assert managed == ctypes.addressof(self._managed)
        self.deleted += 1
        if self._poison:
            self.array.view(np.uint8)[...] = 0xFF

    def _destroy(self, capsule: int) -> None:
        if _is_named(capsule, self._unused) and self._deleter:
            self._deleter(ctypes.addressof(self._managed))

    def capsule(self) -> Any:
        return _new_capsule(ctypes.addressof(self._managed), self._name, self._destructor)

    def __dlpack__(self, **options: Any) -> Any:
        self.requests.append(options)
        return self.capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class Producer:
    """An object whose `__dlpack__` does what a function does; `device` is what `__dlpack_device__` gives."""

    def __init__(self, export: Callable[..., Any], device: Any = CPU) -> None:
        self._export = export
        self._device = device

    def __dlpack__(self, **options: Any) -> Any:
        return self._export(**options)

    def __dlpack_device__(self) -> Any:
        return self._device
