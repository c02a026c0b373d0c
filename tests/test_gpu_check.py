"""`tools/gpu_check.sh` and the report it writes, without a GPU: what is run, what is made of it, when it
fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / "tools" / "gpu_check.sh"
STEPS = [
    *("configure", "build", "info", "memcheck", "racecheck", "bench_memory", "tests"),
    *("bench_coreset", "bench_patches", "bench_tiling", "bench_patchcore"),
]
JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.test_tiling" name="test_a[cupy]"/>
<testcase classname="tests.test_tiling" name="test_b[cupy]"/>
<testcase classname="tests.test_search" name="test_c">
<skipped message="needs faiss, which is&#10;not installed"/></testcase>
<testcase classname="tests.test_search" name="test_d">
<skipped message="needs faiss, which is not installed"/></testcase>
{more}</testsuite></testsuites>"""
FAILURE = """<testcase classname="tests.test_maps" name="test_e">
<failure message="assert 1 == 2">...</failure></testcase>"""


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


gpu_report = _load(ROOT / "tools" / "gpu_report.py")


def _row(met: bool | None) -> dict[str, Any]:
    return {
        "benchmark": "tiling",
        "what": f"tile ({met})",
        "value": 0.8,
        "unit": "x",
        "at_least": 0.7,
        "at_most": None,
        "device": "NVIDIA H200",
        "note": "",
        "details": {},
        "met": met,
        "run": "2026-01-01",
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What a run leaves in which everything passed."""
    folder = tmp_path / "work"
    (folder / "logs").mkdir(parents=True)
    (folder / "results").mkdir()
    (folder / "gpu.csv").write_text("NVIDIA H200, 580.159.03, 9.0, 143771 MiB\n")
    (folder / "steps.tsv").write_text("".join(f"{name}\t0\t3\t75\n" for name in STEPS))
    (folder / "tests.xml").write_text(JUNIT.format(more=""))
    for tool, text in {
        "memcheck": "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n",
        "racecheck": "=========\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
    }.items():
        (folder / "logs" / f"{tool}.sanitizer").write_text(text)
        (folder / f"{tool}.xml").write_text(JUNIT.format(more=""))
    machine = {"processor": "a CPU", "cores": 16, "memory_gib": 128, "gpu": "NVIDIA H200"}
    run = {"date": "2026-01-01", "commit": "abc", "machine": machine, "versions": {}}
    document = {"runs": {"2026-01-01": run}, "rows": [_row(True), _row(False), _row(None)], "timings": []}
    (folder / "results" / "tiling.json").write_text(json.dumps({"benchmark": "tiling", **document}))
    return folder


def test_a_run_in_which_all_passed(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENSEMBLEAD_COMMIT", "0123abc")
    target = tmp_path / "gpu.json"
    assert gpu_report.main([str(work), str(target)]) == 0
    check = json.loads(target.read_text())["check"]
    assert check["passed"]
    assert check["commit"] == "0123abc"
    assert check["device"] == {
        "name": "NVIDIA H200",
        "driver": "580.159.03",
        "compute_capability": "9.0",
        "memory": "143771 MiB",
    }
    suite = check["tests"]
    assert [suite[name] for name in ("passed", "failed", "errors", "skipped")] == [2, 0, 0, 2]
    assert suite["skips"] == [{"reason": "needs faiss, which is not installed", "count": 2}]
    assert [check["sanitizers"][tool]["errors"] for tool in ("memcheck", "racecheck")] == [0, 0]
    assert check["missed_targets"] == ["tiling: tile (False)"]  # told, and no failure
    told = capsys.readouterr().out
    assert "skipped 2: needs faiss" in told
    assert "all passed" in told


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("tests.xml", "", "tests: not run"),
        ("tests.xml", "<testsuites>", "tests: not run"),
        ("logs/memcheck.sanitizer", "========= ERROR SUMMARY: 3 errors\n", "memcheck: 3 errors"),
        ("logs/racecheck.sanitizer", "========= COMPUTE-SANITIZER\n", "racecheck: never ended"),
        (
            "logs/racecheck.sanitizer",
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n",
            "racecheck: 1 errors",
        ),
        ("racecheck.xml", "<testsuites/>", "racecheck: no test passed under it"),
        ("steps.tsv", "tests\t124\t180\t180\n", "tests: timed out"),
        ("steps.tsv", "tests\t1\t80\t180\n", "tests: failed with status 1"),
        ("steps.tsv", "memcheck\tno time left\t0\t0\n", "memcheck: no time left"),
        ("steps.tsv", "", "no step was run"),
        ("started", "tests\nbench_memory\nbench_gone\n", "bench_gone: never ended"),
        ("results/tiling.json", '{"runs": {}, "rows": [], "timings": []}', "benchmarks: no figures"),
    ],
)
def test_what_is_a_problem(work: Path, tmp_path: Path, file: str, text: str, problem: str) -> None:
    (work / file).write_text(text)
    target = tmp_path / "gpu.json"
    assert gpu_report.main([str(work), str(target)]) == 1
    check = json.loads(target.read_text())["check"]
    assert problem in check["problems"]
    assert not check["passed"]


def test_failures_are_named(work: Path) -> None:
    (work / "tests.xml").write_text(JUNIT.format(more=FAILURE))
    suite = gpu_report.report(work)["check"]["tests"]
    assert suite["failed"] == 1
    assert suite["failures"] == ["tests.test_maps::test_e: assert 1 == 2"]


def test_the_file_can_lie_among_the_benchmarks_results(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    record = _load(ROOT / "benchmarks" / "record.py")
    (tmp_path / "gpu.json").write_text(json.dumps(gpu_report.report(work)))
    table = record.markdown(record.load_results(tmp_path))
    assert "| tiling | NVIDIA H200 | tile (True) | 0.8 x | >= 0.7 | met |" in table


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_report.main(["/nowhere", "x.json"]) == 2
    assert "usage" in capsys.readouterr().err


# The script itself


def _run(*arguments: str, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(CHECK), *arguments],
        env={**os.environ, "PATH": path, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the programs that the script calls, and no nvidia-smi."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (
        "bash",
        "dirname",
        "head",
        "tail",
        "cut",
        "tr",
        "mktemp",
        "mkdir",
        "rm",
        "tar",
        "gzip",
        "timeout",
        "env",
        "git",
    ):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        (folder / name).symlink_to(found)
    return folder


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
    (folder / name).chmod(0o755)


def test_without_a_gpu_it_says_so(tools: Path, tmp_path: Path) -> None:
    outcome = _run(str(tmp_path / "gpu.json"), path=str(tools))
    assert outcome.returncode == 2
    assert "there is no NVIDIA GPU here" in outcome.stderr
    assert not (tmp_path / "gpu.json").exists()
    assert _run("--fast", path=str(tools)).returncode == 2


def test_a_dry_run_says_what_would_be_run(tools: Path) -> None:
    outcome = _run("--dry-run", path=str(tools))
    assert outcome.returncode == 0, outcome.stderr
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == STEPS
    limits = [int(line.split()[1].rstrip("s")) for line in outcome.stdout.splitlines()]
    assert all(0 < limit <= 180 for limit in limits)


@pytest.mark.slow
def test_every_step_is_attempted_after_a_failure(tools: Path, tmp_path: Path) -> None:
    _program(tools, "nvidia-smi", "echo 'NVIDIA Imaginary, 1.2, 7.5, 1 MiB'")
    _program(tools, "cmake", 'echo "cmake $*"; [[ "$*" != *--build* ]]')
    _program(tools, "compute-sanitizer", "exit 86")
    # The interpreter fails at everything but the report, and idles at one benchmark.
    _program(
        tools,
        "python",
        f'case "$*" in *gpu_report.py*|"-c import sys"*) exec {sys.executable} "$@" ;;\n'
        f'*bench_tiling.py*) exec {shutil.which("sleep")} 60 ;; esac\necho "python $*, $PYTHONPATH"; exit 3',
    )
    outcome = _run(
        str(tmp_path / "o" / "gpu.json"),
        path=str(tools),
        PYTHON=str(tools / "python"),
        ENSEMBLEAD_GPU_CHECK_SECONDS="12",
        ENSEMBLEAD_COMMIT="feed",
        PYTHONPATH="/carried",
    )
    assert outcome.returncode == 1, outcome.stderr
    check = json.loads((tmp_path / "o" / "gpu.json").read_text())["check"]
    outcomes = {step["name"]: step["outcome"] for step in check["steps"]}
    assert sorted(outcomes) == sorted(STEPS)  # some run beside others
    assert outcomes["configure"] == "passed"
    assert outcomes["build"] == "failed with status 1"
    assert outcomes["tests"] == "failed with status 3"
    assert outcomes["memcheck"] == "failed with status 86"
    assert outcomes["bench_tiling"] == "timed out"
    assert outcomes["bench_patchcore"] == "no time left"
    assert check["commit"] == "feed"
    assert check["device"]["name"] == "NVIDIA Imaginary"
    with tarfile.open(tmp_path / "o" / "gpu.logs.tar.gz") as archive:
        assert {"./steps.tsv", "./logs/build.log"} <= set(archive.getnames())
        log = archive.extractfile("./logs/tests.log")
        assert log is not None
        assert f"tests, {ROOT}/python:/carried" in log.read().decode()
    assert "ENSEMBLEAD_CUDA_ARCHITECTURES=75" in _run("--dry-run", path=str(tools)).stdout


@pytest.mark.slow
@pytest.mark.parametrize("step", ["bench_coreset", "bench_memory"])  # in turn, and beside others
def test_a_step_out_of_time_keeps_what_it_has(tools: Path, tmp_path: Path, step: str) -> None:
    """It is interrupted, though this script's parent may have told its children to ignore that."""
    _program(tools, "nvidia-smi", "echo 'NVIDIA Imaginary, 1.2, 7.5, 1 MiB'")
    _program(tools, "cmake", "exit 0")
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import pathlib, sys, time\n"
        "try: time.sleep(60)\n"
        f"except KeyboardInterrupt: pathlib.Path({str(tmp_path / 'kept')!r}).write_text('so far')\n"
    )
    _program(
        tools,
        "python",
        f'case "$*" in *gpu_report.py*|"-c import sys"*) exec {sys.executable} "$@" ;;\n'
        f"*{step}.py*) exec {sys.executable} {slow} ;; esac\nexit 0",
    )
    command = [shutil.which("bash") or "bash", "-c", f"trap '' INT; bash {CHECK} {tmp_path / 'gpu.json'}"]
    environment = {"PATH": str(tools), "PYTHON": str(tools / "python"), "ENSEMBLEAD_GPU_CHECK_SECONDS": "4"}
    subprocess.run(command, env={**os.environ, **environment}, capture_output=True, timeout=60, check=False)
    check = json.loads((tmp_path / "gpu.json").read_text())["check"]
    assert {"name": step, "outcome": "timed out"}.items() <= next(
        one for one in check["steps"] if one["name"] == step
    ).items()
    assert (tmp_path / "kept").read_text() == "so far"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_no_step_outlives_it(tools: Path, tmp_path: Path, how: signal.Signals) -> None:
    _program(tools, "nvidia-smi", "echo 'NVIDIA Imaginary, 1.2, 7.5, 1 MiB'")
    _program(tools, "cmake", "exit 0")
    begun = tmp_path / "begun"
    begun.mkdir()
    # One beside the others, one in turn, and compute-sanitizer, after whose first use there is a second.
    slow = f'echo $$ >"{begun}/$$"; exec {shutil.which("sleep")} 60'
    _program(
        tools,
        "python",
        f'case "$*" in *bench_memory.py*|*--junitxml=*tests.xml*) {slow} ;;\n'
        f'"-c import sys"*) exec {sys.executable} "$@" ;; esac\nexit 0',
    )
    _program(tools, "compute-sanitizer", slow)
    environment = {**os.environ, "PATH": str(tools), "PYTHON": str(tools / "python"), "TMPDIR": str(tmp_path)}
    # A process group of its own, whose leader does not ignore SIGINT.
    check = subprocess.Popen(
        ["bash", str(CHECK), str(tmp_path / "gpu.json")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(list(begun.iterdir())) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = [int(one.name) for one in begun.iterdir()]
    assert len(processes) == 3
    check.send_signal(how)
    assert check.wait(30) == 128 + how
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert len(list(begun.iterdir())) == 3  # nothing else was begun
    assert not (tmp_path / "gpu.json").exists()
    assert not list(tmp_path.glob("tmp.*"))
