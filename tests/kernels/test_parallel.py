"""Parallel loops, on OpenMP and on the C++ threads that take its place on Windows and macOS."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.compiler import compiler_or_skip

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    "csrc/cpu/parallel.cpp",
    "csrc/core/checks.cpp",
    "csrc/core/array.cpp",
    "tests/support/parallel_probe.cpp",
]
# GCC's OpenMP is not instrumented: the search for races would find its own barriers.
BUILDS = {
    "openmp": ["-fopenmp"],
    "threads": ["-pthread", "csrc/cpu/thread_pool.cpp"],
    "threads_searched_for_races": ["-pthread", "-fsanitize=thread", "csrc/cpu/thread_pool.cpp"],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds parallel_probe.cpp in one of several ways, each once."""

    @cache
    def build(name: str) -> Path:
        compiler = compiler_or_skip("parallel_probe.cpp")
        program = tmp_path_factory.mktemp(name) / "probe"
        command = [compiler, "-std=c++17", "-O1", "-Icsrc", "-o", str(program), *BUILDS[name], *SOURCES]
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if outcome.returncode and "cannot find" in outcome.stderr:
            pytest.skip(f"{compiler} has not all libraries for {' '.join(BUILDS[name][:2])}")
        assert outcome.returncode == 0, outcome.stderr
        return program

    return build


def run(program: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    return subprocess.run(
        [str(program)], env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "build", [pytest.param(name, marks=[pytest.mark.slow] if "races" in name else []) for name in BUILDS]
)
def test_loops(build: str, built: Callable[[str], Path]) -> None:
    outcome = run(built(build), OMP_NUM_THREADS="3")
    if "unexpected memory mapping" in outcome.stderr:
        pytest.skip("the search for races does not work on this system's memory layout")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    name, threads = outcome.stdout.split(", ")
    assert name.startswith("OpenMP 20") if build == "openmp" else name == "C++ threads"
    assert threads.strip() == "3"
    assert outcome.stderr == ""


def test_the_number_of_threads(built: Callable[[str], Path]) -> None:
    program = built("threads")
    assert int(run(program).stdout.split(", ")[1]) >= 1
    assert run(program, OMP_NUM_THREADS="5,2").stdout == "C++ threads, 5\n"
    for wrong in ("0", "-1", "two", "3 4"):
        outcome = run(program, OMP_NUM_THREADS=wrong)
        assert outcome.returncode != 0
        assert f"OMP_NUM_THREADS must be a whole number from 1 to 65536, got '{wrong}'" in outcome.stderr
