"""The rules of the house: who may import whom, the public names, the version, how heavy the package is.

CONTRIBUTING.md explains them. They are read from the sources,
whatever copy of the package is installed.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ensemblead
from ensemblead import _core
from ensemblead.common.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "ensemblead"
CSRC = ROOT / "csrc"

# The public names; adding one is a decision, and so is a line here.
PUBLIC_NAMES = [
    "BackboneEnsemble",
    "EfficientAD",
    "DRAEM",
    "DriftMonitor",
    "Embedder",
    "EmbeddingEnsemble",
    "EnsembleADError",
    "Executors",
    "FastFlow",
    "FeatureExtractor",
    "Folder",
    "ImageIndex",
    "MVTecAD",
    "MemoryBank",
    "PaDiM",
    "PatchCore",
    "Predictions",
    "Report",
    "ReverseDistillation",
    "TiledEnsemble",
    "VisA",
    "__version__",
    "aggregate_patches",
    "aupro",
    "auroc",
    "check_detector",
    "compare",
    "convert",
    "create",
    "cuda_available",
    "distil_teacher",
    "evaluate",
    "load",
    "load_exported",
    "register",
    "rerank",
    "retrieval_metrics",
    "search_weights",
    "select_coreset",
    "smooth_seams",
    "tile",
    "untile",
    "weighted_top_k",
]

# Bottom up. A room may import the floors below its own; rooms that share a floor are strangers.
FLOORS = [
    {"common"},
    {"_core"},
    {"config", "kernels", "metrics"},
    {"images", "store", "search", "calibration"},
    {"networks", "datasets", "memory", "distributed"},
    {"detectors"},
    {"ensembles", "retrieval", "monitoring"},
    {"conversion", "deploy", "evaluation"},
    {"report", "suites"},
    {"service"},
    {"cli"},
    {"__main__"},
]
# Rooms of one floor that may use each other, and why.
NEIGHBOURS = {
    ("suites", "report"),  # a finished suite writes its pages
}

# Files that show users the names of rooms above them, each loaded when it is asked for.
FACES = ("__init__.py", "evaluation/__init__.py")
# Imports by a name written out, which the rules below do not see: a method of every detector that a room
# above carries out. The registry finds classes by a table.
BY_NAME = [("detectors/detector.py", "ensemblead.deploy.export")]

# Import name -> the only places that may import it (relative to the package; a folder ends with a slash).
ONLY_THERE = {
    "ensemblead._core": ("kernels/",),
    "faiss": ("search/faiss.py",),
    "usearch": ("search/usearch.py",),
    "timm": ("networks/zoo.py",),
    "torchvision": ("networks/zoo.py", "detectors/draem/textures.py"),
    "openvino": ("networks/engines/openvino.py", "deploy/openvino.py", "common/openvino.py"),
    "onnxruntime": ("deploy/onnx.py",),
    "nncf": ("networks/engines/quantization.py",),
    "cupy": ("kernels/arrays.py",),
    "packaging": ("deploy/wheels.py",),
    "pytorch_metric_learning": ("retrieval/training.py",),
    "fastapi": ("service/app.py", "service/bodies.py"),
    "starlette": ("service/app.py", "service/bodies.py"),
    "pydantic": ("service/answers.py",),
    "python_multipart": ("service/bodies.py",),
    "prometheus_client": ("service/metrics.py",),
    "uvicorn": ("service/server.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "pickle": (),
    "pickletools": ("conversion/plain_pickle.py",),  # lists a pickle's instructions, and runs none
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of every import, those inside functions and type-checking blocks included.

    `from a import b` counts as both `a` and `a.b`, for b may be a module.
    """
    module = ["ensemblead", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = (module[: -node.level] if node.level else []) + ([node.module] if node.module else [])
            yield ".".join(base), node.lineno
            for alias in node.names:
                yield ".".join([*base, alias.name]), node.lineno


def room(name: str) -> str | None:
    """The part of the package that a dotted name belongs to: "kernels" for ensemblead.kernels.coreset."""
    parts = name.split(".")
    return parts[1] if parts[0] == "ensemblead" and len(parts) > 1 else None


def floor(name: str) -> int:
    for height, rooms in enumerate(FLOORS):
        if name in rooms:
            return height
    raise AssertionError(f"ensemblead/{name} stands on no floor: give it one in {Path(__file__).name}")


def may_use(user: str, used: str) -> bool:
    """Whether one part of the package may import another."""
    return user == used or floor(used) < floor(user) or (user, used) in NEIGHBOURS


def test_every_part_has_a_floor() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()} - {"__init__"}
    assert parts, "no sources found"
    for part in parts:
        floor(part)


def test_nothing_imports_upward() -> None:
    wrong = []
    rooms = set().union(*FLOORS)
    for path in sources():
        user = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if path.relative_to(PACKAGE).as_posix() in FACES:
            continue
        for name, line in imports_of(path):
            used = room(name)
            if used in rooms and not may_use(user, used):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
            if name == "ensemblead" or (used is not None and used not in rooms):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}, not a part by its name")
    # `from ensemblead import _core` names the package on its way to a part.
    wrong = [entry for entry in wrong if not entry.endswith("imports ensemblead, not a part by its name")]
    assert wrong == []


def test_nothing_is_imported_around_the_rules() -> None:
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
                names = [one.value for one in node.args if isinstance(one, ast.Constant)]
                own = [name for name in names if str(name).startswith("ensemblead")]
                found += [(path.relative_to(PACKAGE).as_posix(), name) for name in own]
    assert found == BY_NAME


def imports_between_files() -> dict[str, set[str]]:
    """For every module of the package the modules of it that it imports, lazily or at once."""
    modules = {
        ".".join(["ensemblead", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in sources()
    }
    graph: dict[str, set[str]] = {}
    for path in sources():
        own = ".".join(["ensemblead", *path.relative_to(PACKAGE).with_suffix("").parts])
        own = own.removesuffix(".__init__")
        if path.relative_to(PACKAGE).as_posix() not in FACES:
            graph[own] = {name for name, _ in imports_of(path) if name in modules and name != own}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every strongly connected group of more than one module. A package's `__init__` that shows its own files
    is no cycle, unless they import the package itself.
    """
    found: list[list[str]] = []
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for used in sorted(graph.get(module, ())):
            if used not in order:
                visit(used)
                low[module] = min(low[module], low[used])
            elif used in stack:
                low[module] = min(low[module], order[used])
        if low[module] == order[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_no_import_goes_in_circles() -> None:
    assert cycles(imports_between_files()) == []


def test_the_search_for_circles_finds_one() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_heavy_and_private_modules_stay_in_their_place() -> None:
    wrong = []
    for path in sources():
        where = path.relative_to(PACKAGE).as_posix()
        for name, line in imports_of(path):
            for guarded, places in ONLY_THERE.items():
                inside = any(f"{where}/".startswith(place) for place in places)
                if f"{name}.".startswith(f"{guarded}.") and not inside:
                    wrong.append(f"{where}:{line} imports {name}, allowed in {places or 'no file'}")
    assert wrong == []


def test_the_rules_see_a_breach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two tests above, on a tree that breaks the rules in every way of writing an import."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "coreset.py").write_text("from ..memory import bank\n")
    with pytest.raises(AssertionError, match=r"coreset\.py:1 imports ensemblead\.memory"):
        test_nothing_imports_upward()
    (tmp_path / "kernels" / "coreset.py").write_text("def f():\n    from ensemblead import cli\n")
    with pytest.raises(AssertionError, match=r"coreset\.py:2 imports ensemblead\.cli"):
        test_nothing_imports_upward()
    (tmp_path / "kernels" / "coreset.py").write_text("import faiss.contrib\n")
    with pytest.raises(AssertionError, match=r"coreset\.py:1 imports faiss\.contrib"):
        test_heavy_and_private_modules_stay_in_their_place()
    (tmp_path / "kernels" / "coreset.py").write_text("from ensemblead import _core\nimport numpy\n")
    test_nothing_imports_upward()
    test_heavy_and_private_modules_stay_in_their_place()


# --- the C++ side ---------------------------------------------------------------------------------

STANDARD_CXX = re.compile(r"^[a-z_]+$")  # no suffix, no folder
CUDA_HEADERS = re.compile(r"^(cuda\w*\.h|cuda_\w+\.h|cooperative_groups.*|cub/.*|cuda/\w+|mma\.h)$")


def includes_of(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(header, in angle brackets, line)"""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        found = re.match(r"\s*#\s*include\s*([<\"])([^>\"]+)[>\"]", line)
        if found:
            yield found[2], found[1] == "<", number


def may_include(where: str, header: str, system: bool) -> bool:
    """Whether csrc/`where` may include `header`."""
    place = where.split("/")[0] if "/" in where else "contract"
    if place == "third_party":
        return True  # unchanged copies
    if not system:
        target = header.split("/")[0] if "/" in header else "contract"
        allowed = {
            "core": {"core"},
            "contract": {"core", "contract"},
            "cpu": {"core", "contract", "cpu"},
            "cuda": {"core", "contract", "cuda"},
            "bindings": {"core", "contract", "cpu", "cuda", "bindings", "third_party"},
        }
        return target in allowed[place]
    if STANDARD_CXX.match(header):
        return True
    if place == "cpu":
        return header in ("omp.h", "immintrin.h", "arm_neon.h", "cpuid.h", "pthread.h", "sys/mman.h")
    if place == "cuda":
        return CUDA_HEADERS.match(header) is not None
    return place == "bindings" and (header.startswith("pybind11/") or header in ("omp.h", "Python.h"))


def test_includes_keep_to_their_place() -> None:
    paths = [path for path in sorted(CSRC.rglob("*")) if path.suffix in (".hpp", ".cpp", ".cu", ".cuh", ".h")]
    assert paths, "no C++ sources found"
    wrong = []
    for path in paths:
        where = path.relative_to(CSRC).as_posix()
        for header, system, line in includes_of(path):
            if not may_include(where, header, system):
                wrong.append(f"csrc/{where}:{line} includes {header}")
    assert wrong == []


@pytest.mark.parametrize(
    ("where", "header", "system", "allowed"),
    [
        ("core/array.hpp", "vector", True, True),
        ("core/array.hpp", "omp.h", True, False),
        ("core/array.hpp", "pybind11/pybind11.h", True, False),
        ("core/array.hpp", "cpu/instruction_set.hpp", False, False),
        ("coreset.hpp", "core/array.hpp", False, True),
        ("coreset.hpp", "bindings/dlpack.hpp", False, False),
        ("coreset.hpp", "torch/torch.h", True, False),
        ("cpu/coreset.cpp", "omp.h", True, True),
        ("cpu/coreset.cpp", "cuda/device.hpp", False, False),
        ("cpu/coreset.cpp", "dlpack/dlpack.h", True, False),
        ("cpu/coreset.cpp", "third_party/dlpack/dlpack.h", False, False),
        ("tiling.hpp", "third_party/dlpack/dlpack.h", False, False),
        ("bindings/dlpack.cpp", "third_party/dlpack/dlpack.h", False, True),
        ("cuda/coreset.cu", "cuda_runtime.h", True, True),
        ("bindings/coreset.cpp", "pybind11/stl.h", True, True),
        ("bindings/coreset.cpp", "ATen/ATen.h", True, False),
    ],
)
def test_the_include_rule_itself(where: str, header: str, system: bool, allowed: bool) -> None:
    assert may_include(where, header, system) == allowed


def test_files_stay_readable() -> None:
    """No source outgrows a reader: 450 lines, and 600 for tests, which are lists by nature."""
    suffixes = {".py", ".pyi", ".hpp", ".cpp", ".cu", ".cuh", ".sh"}
    limits = {"python": 450, "csrc": 450, "benchmarks": 450, "tools": 450, "tests": 600}
    too_long = {}
    for folder, limit in limits.items():
        for path in (ROOT / folder).rglob("*"):
            if "third_party" in path.parts:
                continue
            if path.suffix in suffixes and (length := len(path.read_text().splitlines())) > limit:
                too_long[path.relative_to(ROOT).as_posix()] = length
    assert too_long == {}


# --- the public face ------------------------------------------------------------------------------


def test_public_names() -> None:
    assert sorted(ensemblead.__all__) == sorted(PUBLIC_NAMES)
    assert sorted(dir(ensemblead)) == sorted([*PUBLIC_NAMES, "datasets", "evaluation", "metrics"])


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_resolves(name: str) -> None:
    try:
        value = getattr(ensemblead, name)
    except ensemblead.EnsembleADError as error:  # a package that an extra brings is not installed
        pytest.skip(str(error))
    if callable(value):
        assert value.__module__.startswith("ensemblead"), f"{name} comes from {value.__module__}"
        assert value.__doc__, f"{name} has no docstring"


def test_kernels_need_numpy_alone() -> None:
    code = f"""
import sys
for name in {sorted(EXTRAS)}:
    sys.modules[name] = None
import ensemblead, numpy
tiles = ensemblead.tile(numpy.ones((1, 1, 4, 4), numpy.float32), 2)
assert ensemblead.untile(tiles, 4).shape == (1, 1, 4, 4)
assert ensemblead.aggregate_patches([numpy.ones((1, 4, 3, 3), numpy.float32)]).shape == (1, 3, 3, 1024)
assert len(ensemblead.select_coreset(numpy.eye(4, dtype=numpy.float32), size=2)) == 2
"""
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'select_corset'"):
        _ = ensemblead.select_corset


def test_version_is_the_same_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert ensemblead.__version__ == _core.__version__ == declared[1]
    try:
        installed = importlib.metadata.version("ensemblead")
    except importlib.metadata.PackageNotFoundError:
        return  # used from the source tree
    assert installed == declared[1]


def test_changelog_knows_the_version() -> None:
    assert f"## [{ensemblead.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_stub_matches_the_core() -> None:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    stubbed = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stubbed |= {ast.unparse(node.target) for node in tree.body if isinstance(node, ast.AnnAssign)}
    actual = {name for name in dir(_core) if not name.startswith("__")} | {"__version__"}
    assert stubbed == actual


REPORT_MODULES = """
import json, sys, time
before = set(sys.modules)
import numpy
start = time.perf_counter()
import ensemblead
took = time.perf_counter() - start
new = set(sys.modules) - before
print(json.dumps({"took": took, "modules": sorted(new), "cuda": ensemblead.cuda_available()}))
"""


def import_in_fresh_process(**environment: str) -> dict[str, object]:
    command = [sys.executable, "-W", "error", "-c", REPORT_MODULES]
    outcome = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    report: dict[str, object] = json.loads(outcome.stdout)
    return report


def test_import_is_light() -> None:
    report = import_in_fresh_process()
    print(f"import ensemblead, NumPy loaded: {report['took']:.3f} s")
    modules = report["modules"]
    assert isinstance(modules, list)
    assert set(EXTRAS) & set(modules) == set()
    # Whatever else is loaded comes from Python itself, NumPy or us.
    tops = {name.split(".")[0] for name in modules} - {"numpy", "ensemblead"}
    assert {name for name in tops if name not in sys.stdlib_module_names} == set()


def test_import_without_a_visible_gpu() -> None:
    report = import_in_fresh_process(CUDA_VISIBLE_DEVICES="")
    assert report["cuda"] is False
