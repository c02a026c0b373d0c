"""Prints every figure beside its target when a benchmark run ends, and keeps the results as JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from record import RESULTS, Figures, FiguresOf, plain_table

import ensemblead
from ensemblead.kernels.build import has_cuda_kernels

_COLLECTED = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--features", help="a .npy file of real features, [N, 128] float32 (bench_coreset.py)")
    parser.addoption("--rows", type=int, help="as many rows for a quick trial")
    parser.addoption(
        "--images", type=int, help="as many images at most, for a trial (bench_memory.py, bench_peers.py)"
    )
    parser.addoption("--results", type=Path, default=RESULTS, help="folder to write the results to")
    parser.addoption("--data", type=Path, help="folder of real inspection images, in MVTec layout")
    parser.addoption("--weights", type=Path, help="folder of the networks' weights, <name>.safetensors")
    parser.addoption("--backbone", help="a network's name, with its default layers (bench_detection.py)")
    parser.addoption("--preset", help="a preset's name (bench_detection.py)")
    parser.addoption("--scores", type=Path, help="a .npz file that keeps the scores (bench_thresholds.py)")
    parser.addoption(
        "--cache",
        type=Path,
        default=Path("retrieval-cache"),
        help="folder of what bench_retrieval.py, bench_robust.py and bench_defects.py keep",
    )
    parser.addoption("--anomalib", help="a Python that has anomalib 2 (bench_peers.py, bench_latency.py)")
    parser.addoption("--before", type=Path, help="another checkout of this library, built (bench_latency.py)")
    parser.addoption(
        "--patchcore-inspection", type=Path, help="a checkout of patchcore-inspection (bench_peers.py)"
    )
    parser.addoption("--again", action="store_true", help="measure what is known anew (bench_tiled.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COLLECTED] = Figures()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The limit of pyproject.toml is for tests; benchmarks run as long as they need.
    for item in items:
        item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def material(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The folders of the options `--data` and `--weights`; skips where they are not given."""
    folders = []
    for option in ("--data", "--weights"):
        folder = request.config.getoption(option)
        if folder is None:
            pytest.skip(f"measures on real images with real weights: give {option} FOLDER")
        if not folder.is_dir():
            raise pytest.UsageError(f"{option}: there is no folder {folder}")
        folders.append(folder.resolve())
    return folders[0], folders[1]


@pytest.fixture
def gpu() -> str:
    """The name of the GPU, which goes into the column `device`; skips where there is none, and fails there
    with ENSEMBLEAD_REQUIRE_CUDA=1.
    """
    missing = pytest.fail if os.environ.get("ENSEMBLEAD_REQUIRE_CUDA") == "1" else pytest.skip
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        missing("this torch has no CUDA device")
    if not has_cuda_kernels() or not ensemblead.cuda_available():
        missing("the core was built without CUDA")
    return str(torch.cuda.get_device_name())


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> FiguresOf:
    """Where a benchmark reports its figures: `figures.add("1 % on noise", rate, "x sgemm", at_least=0.7)`."""
    return request.config.stash[_COLLECTED].of(_stem(request.path))


def _stem(path: Path | str) -> str:
    return Path(str(path).split("::")[0]).stem.removeprefix("bench_")


def _timings(config: pytest.Config) -> dict[str, list[dict[str, Any]]]:
    """What pytest-benchmark measured in this run, by the stem of the file."""
    found: dict[str, list[dict[str, Any]]] = {}
    session = getattr(config, "_benchmarksession", None)
    for benchmark in session.benchmarks if session is not None else []:
        if benchmark.has_error or not benchmark.stats.rounds:
            continue
        stats = benchmark.stats
        entry = {
            "name": benchmark.name,
            "median": stats.median,
            "iqr": stats.iqr,
            "min": stats.min,
            "rounds": stats.rounds,
            "details": dict(benchmark.extra_info),
        }
        found.setdefault(_stem(benchmark.fullname), []).append(entry)
    return found


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    collected = config.stash[_COLLECTED]
    collected.timings = _timings(config)
    if collected.rows:
        terminalreporter.section("figures and targets")
        for line in plain_table(collected.rows):
            terminalreporter.write_line(line)
    for path in collected.write(config.getoption("--results")):
        terminalreporter.write_line(f"written: {path}")
