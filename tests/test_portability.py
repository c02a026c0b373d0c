"""Other compilers, processors and systems than this one's, as far as one machine shows them."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.campaigns import BRIEF

import ensemblead

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "check_portability.sh"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
# Check -> programs that it needs.
CHECKS = {
    "clang": ["clang++"],
    "threads": ["clang++"],
    "aarch64": ["aarch64-linux-gnu-g++", "qemu-aarch64", "apt-get", "dpkg-deb"],
    "windows": ["clang++", "x86_64-w64-mingw32-g++-posix"],
}

# Windows has none of these. Only what the package itself imports is refused.
POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "syslog"}
WITHOUT_POSIX = (
    f"""
import builtins, importlib, pkgutil, sys
import ensemblead

POSIX = {POSIX!r}
"""
    + """
plain, by_name = builtins.__import__, importlib.import_module

def refusing(name, globals=None, *rest):
    if name in POSIX and (globals or {}).get("__name__", "").startswith("ensemblead"):
        raise ImportError(f"no module named {name!r}, as on Windows")
    return plain(name, globals, *rest)

def refusing_by_name(name, package=None):
    if name in POSIX:
        raise ImportError(f"no module named {name!r}, as on Windows")
    return by_name(name, package)

builtins.__import__, importlib.import_module = refusing, refusing_by_name
everything = (module.name for module in pkgutil.walk_packages(ensemblead.__path__, "ensemblead."))
for name in sys.argv[1:] or everything:
    if not name.endswith("__main__"):
        by_name(name)
from ensemblead.common import locks, memory
assert locks.fcntl is None and memory.resource is None
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.timeout(3600)
def test_the_core_elsewhere(check: str) -> None:
    if BRIEF:
        pytest.skip("builds the core anew, which takes minutes; not where campaigns are brief")
    missing = [tool for tool in ("cmake", "ninja", *CHECKS[check]) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    outcome = subprocess.run(
        ["bash", str(SCRIPT), check],
        env={**os.environ, "PYTHON": sys.executable, "PYTEST_ADDOPTS": "-q -x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout[-5000:] + outcome.stderr[-5000:]
    assert f"done: {check}" in outcome.stdout


def test_an_unknown_check_is_refused() -> None:
    outcome = subprocess.run(["bash", str(SCRIPT), "risc"], capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert "risc is none of clang, threads, aarch64, windows" in outcome.stderr


def import_without_posix(*names: str) -> None:
    """Import these modules, or all of them, in a process that has no POSIX."""
    command = [sys.executable, "-c", WITHOUT_POSIX, *names]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def names_posix(source: str) -> bool:
    """Whether a module imports anything of POSIX, by a statement or by a name in quotes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return bool(found & POSIX)


def test_every_module_imports_where_there_is_no_posix() -> None:
    """Of all modules those are imported that name anything of POSIX: no other can miss it."""
    package = Path(ensemblead.__file__).parent
    naming = [path for path in package.rglob("*.py") if names_posix(path.read_text())]
    modules = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in naming]
    assert {"ensemblead.common.locks", "ensemblead.common.memory"} <= set(modules)
    import_without_posix(*sorted(modules))


@pytest.mark.parametrize(
    "source", ["import fcntl", "from resource import getrusage", 'import_module("termios")']
)
def test_modules_that_name_posix_are_found(source: str) -> None:
    assert names_posix(source)
    assert not names_posix("import resources.fcntl\nfrom . import locks")


@pytest.mark.slow
def test_all_modules_import_in_a_row_where_there_is_no_posix() -> None:
    pytest.importorskip("torch")
    import_without_posix()


def test_wheels_are_built_for_the_pythons_that_are_declared() -> None:
    declared = re.findall(r"Programming Language :: Python :: 3\.(\d+)", PYPROJECT)
    built = re.search(r"^build = \[(.*)\]$", PYPROJECT, re.MULTILINE)
    assert built is not None
    assert re.findall(r'"cp3(\d+)-\*"', built[1]) == declared
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"$', PYPROJECT, re.MULTILINE)
    assert oldest is not None
    assert oldest[1] == declared[0]
