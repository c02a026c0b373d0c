"""The instruction sets of the kernels, in ascending order."""

from __future__ import annotations

import pytest

from ensemblead import _core

INSTRUCTION_SETS = ("baseline", "x86-64-v3", "x86-64-v4", "x86-64-v4+vnni")


def skip_without(instruction_set: str) -> None:
    """Skip a test on a processor that lacks an instruction set."""
    if INSTRUCTION_SETS.index(instruction_set) > INSTRUCTION_SETS.index(_core.instruction_set()):
        pytest.skip(f"this processor has no {instruction_set}")
