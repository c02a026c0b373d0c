"""Gathers what `gpu_check.sh` left in its folder into one JSON file.

The file has the form of those in benchmarks/results/ (`rows`, `timings`, `runs`), so it can lie among them;
`check` says what was checked, on what, and what came of it. Needs the standard library alone.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *(
        "numpy",
        "torch",
        "torchvision",
        "timm",
        "cupy-cuda12x",
        "cupy-cuda13x",
        "faiss-cpu",
        "faiss-gpu",
        "scipy",
    ),
    *("pybind11", "scikit-build-core", "cmake", "ninja", "pytest", "hypothesis", "safetensors"),
)
SANITIZERS = ("memcheck", "racecheck")
# What `timeout` and a shell answer for.
OUTCOMES = {"0": "passed", "124": "timed out", "137": "timed out", "127": "command not found"}
MOST_FAILURES = 40


def steps(work: Path) -> list[dict[str, Any]]:
    """What ran, from steps.tsv: name, status, seconds, limit."""
    found = []
    path = work / "steps.tsv"
    for line in path.read_text().splitlines() if path.exists() else []:
        name, status, seconds, limit = line.split("\t")
        outcome = OUTCOMES.get(status, status if not status.isdecimal() else f"failed with status {status}")
        found.append({"name": name, "outcome": outcome, "seconds": int(seconds), "limit_seconds": int(limit)})
    return found


def never_ended(work: Path) -> list[str]:
    """The steps that were started and have left no line in steps.tsv."""
    path = work / "started"
    ended = {one["name"] for one in steps(work)}
    return [name for name in (path.read_text().split() if path.exists() else []) if name not in ended]


def tests(path: Path) -> dict[str, Any]:
    """Counts of a pytest run, the reasons of its skips and the names of its failures, from its JUnit file."""
    if not path.exists():
        return {"ran": False}
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except ElementTree.ParseError:
        return {"ran": False, "problem": "the test run was cut off"}
    counts: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    failures = []
    for case in cases:
        # A test may fail and then fail to clean up: the first says which kind it is.
        kind = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        counts[kind] += 1
        if kind == "skipped":
            skips[_message(case, kind)] += 1
        elif kind != "passed":
            failures.append(f"{case.get('classname')}::{case.get('name')}: {_message(case, kind)}")
    return {
        "ran": True,
        "passed": counts["passed"],
        "failed": counts["failure"],
        "errors": counts["error"],
        "skipped": counts["skipped"],
        "skips": [{"reason": reason, "count": count} for reason, count in skips.most_common()],
        "failures": failures[:MOST_FAILURES],
    }


def _message(case: ElementTree.Element, kind: str) -> str:
    child = case.find(kind)
    message = "" if child is None else child.get("message") or ""
    return " ".join(message.split())[:300]


def sanitizer(work: Path, tool: str) -> dict[str, Any]:
    """What compute-sanitizer summed up, and the tests that ran under it; `errors` is None if it never
    ended.
    """
    log = work / "logs" / f"{tool}.sanitizer"
    text = log.read_text(errors="replace") if log.exists() else ""
    # memcheck: "ERROR SUMMARY: 0 errors"; racecheck: "RACECHECK SUMMARY: 0 hazards displayed (0 errors, ..."
    summaries = [int(number) for number in re.findall(r"SUMMARY: (\d+) (?:errors?|hazards?)\b", text)]
    lines = [line.lstrip("= ") for line in text.splitlines() if line.startswith("=========")]
    return {
        "errors": sum(summaries) if summaries else None,
        "first_lines": lines[:20] if any(summaries) or not summaries else [],
        "tests": tests(work / f"{tool}.xml"),
    }


def device(work: Path) -> dict[str, Any] | None:
    """The GPU as nvidia-smi names it; None where it named none."""
    path = work / "gpu.csv"
    fields = [field.strip() for field in path.read_text().strip().split(",")] if path.exists() else []
    if len(fields) != 4:
        return None
    return dict(zip(("name", "driver", "compute_capability", "memory"), fields, strict=True))


def commit() -> str:
    """ENSEMBLEAD_COMMIT, or what git says, or that nobody knows."""
    named = os.environ.get("ENSEMBLEAD_COMMIT")
    if named:
        return named
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (set ENSEMBLEAD_COMMIT)"


def versions() -> dict[str, str]:
    """Python, the CUDA compiler, and what is installed of the packages that matter."""
    found = {"python": platform.python_version()}
    try:
        told = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        found["nvcc"] = told.strip().splitlines()[-1]
    except (OSError, subprocess.CalledProcessError):
        found["nvcc"] = "none"
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def figures(work: Path) -> dict[str, Any]:
    """The benchmarks' rows, timings and runs, of all files in one."""
    merged: dict[str, Any] = {"runs": {}, "rows": [], "timings": []}
    for path in sorted((work / "results").glob("*.json")):
        document = json.loads(path.read_text())
        merged["runs"].update(document["runs"])
        merged["rows"] += document["rows"]
        merged["timings"] += document["timings"]
    return merged


def report(work: Path) -> dict[str, Any]:
    """The whole document."""
    ran = steps(work)
    suite = tests(work / "tests.xml")
    sanitizers = {tool: sanitizer(work, tool) for tool in SANITIZERS}
    measured = figures(work)
    info = work / "logs" / "info.log"
    problems = [f"{one['name']}: {one['outcome']}" for one in ran if one["outcome"] != "passed"]
    problems += [f"{name}: never ended" for name in never_ended(work)]
    problems += [] if ran else ["no step was run"]
    problems += [] if suite["ran"] else ["tests: not run"]
    for tool, found in sanitizers.items():
        if found["errors"] is None:
            problems.append(f"{tool}: never ended")
        elif found["errors"]:
            problems.append(f"{tool}: {found['errors']} errors")
        if not found["tests"].get("passed"):
            problems.append(f"{tool}: no test passed under it")
    problems += [] if measured["rows"] else ["benchmarks: no figures"]
    return {
        "benchmark": "gpu",
        **measured,
        "check": {
            "passed": not problems,
            "problems": problems,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "device": device(work),
            "versions": versions(),
            "info": _json_or_none(info),
            "steps": ran,
            "tests": suite,
            "sanitizers": sanitizers,
            "benchmarks": {
                path.stem.removeprefix("bench_"): tests(path) for path in sorted(work.glob("bench_*.xml"))
            },
            "missed_targets": [
                f"{row['benchmark']}: {row['what']}" for row in measured["rows"] if row["met"] is False
            ],
        },
    }


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def summary(document: dict[str, Any]) -> list[str]:
    """A few lines for the terminal."""
    check = document["check"]
    where = check["device"] or {"name": "no GPU", "driver": "none"}
    suite = check["tests"]
    lines = [f"{where['name']}, driver {where['driver']}, commit {check['commit']}"]
    if suite["ran"]:
        names = ("passed", "failed", "errors", "skipped")
        lines.append("tests: " + ", ".join(f"{suite[name]} {name}" for name in names))
        lines += [f"  skipped {skip['count']}: {skip['reason']}" for skip in suite["skips"]]
    for tool, found in check["sanitizers"].items():
        lines.append(f"{tool}: {found['errors']} errors, {found['tests'].get('passed', 0)} tests passed")
    lines.append(f"figures: {len(document['rows'])}, targets missed: {len(check['missed_targets'])}")
    lines += [f"  missed: {what}" for what in check["missed_targets"]]
    lines += [f"PROBLEM {problem}" for problem in check["problems"]] or ["all passed"]
    return lines


def main(arguments: list[str]) -> int:
    """`gpu_report.py FOLDER FILE.json`; 1 if anything failed."""
    if len(arguments) != 2 or not Path(arguments[0]).is_dir():
        print("usage: gpu_report.py FOLDER FILE.json", file=sys.stderr)
        return 2
    document, target = report(Path(arguments[0])), Path(arguments[1])
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(target)
    print("\n".join([*summary(document), f"written: {target}"]))
    return 0 if document["check"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
