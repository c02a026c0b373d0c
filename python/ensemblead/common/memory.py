"""Memory of the process that nothing uses any more, and its way back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function, or None: other C libraries have none."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


def return_free_memory() -> None:
    """Give free pages of the C heap back.

    glibc keeps what lies below anything that is still in use. Where much is allocated and freed around little
    that stays, over and over (a memory bank out of its embeddings, at one tile location after the other), the
    process comes to hold several times what it uses.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
