"""Objects that are compiled for one instruction set share no code with other objects.

A weak symbol (an inline function that was not inlined, an instance of a template) has one copy in the whole
library. The linker might keep the one that was compiled for AVX-512, and every other processor would run it.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.compiler import compiler_or_skip

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
CMAKE = (ROOT / "CMakeLists.txt").read_text()
NM = shutil.which("nm")

# What nm calls a defined symbol that other objects may share: weak functions, weak objects, unique ones.
WEAK = re.compile(r"^[0-9a-f]+ ([WVu]) (.+)$", re.MULTILINE)
# A symbol that other objects may refer to.
EXPORTED = re.compile(r"^[0-9a-f]+ ([A-Z]) (.+)$", re.MULTILINE)

pytestmark = [
    pytest.mark.skipif(NM is None, reason="nm of the binutils is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads objects of Linux"),
]


def simd_sources() -> list[Path]:
    listed = re.search(r"set\(simd_sources\n(.*?)\)", CMAKE, re.DOTALL)
    assert listed is not None
    return [ROOT / name for name in listed[1].split()]


def instruction_sets() -> dict[str, list[str]]:
    """Those of this machine's architecture, with the compiler's options for each."""
    found = dict(re.findall(r"set\(simd_options_(\w+) (.*)\)", CMAKE))
    assert "baseline" in found
    if platform.machine() != "x86_64":
        return {"baseline": []}
    return {name: options.replace('"', "").split() for name, options in found.items()}


def built(source: Path, instruction_set: str) -> Path | None:
    """The object in a build tree, if there is one and it is newer than every source."""
    newest = max(path.stat().st_mtime for path in [*CSRC.rglob("*.hpp"), source, ROOT / "CMakeLists.txt"])
    for preset in ("cpu", "cuda"):
        folder = ROOT / "build" / preset / "CMakeFiles" / f"ensemblead_simd_{instruction_set}.dir"
        path = folder / f"{source.relative_to(ROOT)}.o"
        if path.exists() and path.stat().st_mtime > newest:
            return path
    return None


def compile_object(source: Path, instruction_set: str, options: list[str], folder: Path) -> Path:
    """Without optimisation, so that nothing is inlined that need not be."""
    compiler = compiler_or_skip("an object of SIMD loops")
    path = folder / f"{source.stem}_{instruction_set}.o"
    define = f"-DENSEMBLEAD_INSTRUCTION_SET={instruction_set}"
    command = [compiler, "-std=c++17", "-O0", "-fPIC", "-Wno-psabi", *options, define, f"-I{CSRC}"]
    subprocess.run([*command, "-c", str(source), "-o", str(path)], check=True)
    return path


def symbols(path: Path, kind: re.Pattern[str]) -> Iterator[str]:
    assert NM is not None
    listing = subprocess.run(
        [NM, "--defined-only", "-C", str(path)], capture_output=True, text=True, check=True
    )
    for _, name in kind.findall(listing.stdout):
        yield name


def check_object(path: Path, instruction_set: str) -> None:
    weak = list(symbols(path, WEAK))
    assert weak == [], f"{path.name} shares code with other objects: {weak}"
    exported = list(symbols(path, EXPORTED))
    others = [name for name in exported if f"::{instruction_set}::" not in name]
    assert others == [], f"{path.name} exports more than its table: {others}"
    assert len(exported) == 1, f"{path.name} exports {exported}, where one table is expected"


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("source", simd_sources(), ids=lambda source: source.stem)
def test_objects_export_their_table_alone(source: Path, instruction_set: str, tmp_path: Path) -> None:
    options = instruction_sets()[instruction_set]
    path = built(source, instruction_set) or compile_object(source, instruction_set, options, tmp_path)
    check_object(path, instruction_set)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("#include <algorithm>\nfloat larger_of(float a, float b) { return std::max(a, b); }", "shares code"),
        ("inline float half(float a) { return a / 2; }\nfloat (*pointer)(float) = half;", "shares code"),
        ("float forgotten(float a) { return a; }", "exports more than its table"),
    ],
    ids=["standard_library", "inline_function", "without_a_namespace"],
)
def test_the_check_itself(code: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / "bad_simd.cpp"
    table = (
        "namespace ensemblead::cpu::baseline { extern const Vec table; const Vec table = broadcast(1.0f); }"
    )
    source.write_text(f'#include "cpu/simd.hpp"\n{table}\n{code}\n')
    path = compile_object(source, "baseline", [], tmp_path)
    with pytest.raises(AssertionError, match=message):
        check_object(path, "baseline")
