"""A compiler for tests that build parts of the core by themselves."""

from __future__ import annotations

import os
import shutil

import pytest


def compiler_or_skip(what: str) -> str:
    """The C++ compiler: CXX of the environment, or the system's. Skips a test where there is none."""
    if os.name != "posix":
        pytest.skip(f"{what} is built with the options of GCC and Clang, on POSIX systems alone")
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip(f"no C++ compiler to build {what} with")
    return found
