"""The record of the benchmarks: figures beside their targets, kept with machine, versions and commit.

`python benchmarks/record.py` writes the tables of benchmarks/README.md anew from benchmarks/results/*.json,
and the short ones of the documents for users.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import Timing

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE / "README.md"

# --- where a figure comes from --------------------------------------------------------------------


def commit() -> str:
    """The git commit measured, "-dirty" appended when the sources differ from it.

    ENSEMBLEAD_COMMIT names it where there is no repository (an unpacked archive).
    """
    named = os.environ.get("ENSEMBLEAD_COMMIT")
    if named:
        return named
    try:
        head = _git("rev-parse", "HEAD")
        sources = _git("status", "--porcelain", "--", "csrc", "python", "benchmarks/*.py", "CMakeLists.txt")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (set ENSEMBLEAD_COMMIT)"
    return head + ("-dirty" if sources else "")


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=HERE.parent, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system and GPU."""
    description: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
    return description


def _processor() -> str:
    """The model's name, with family and model numbers, since virtual machines often hide the name."""
    wanted = {"model name": "", "cpu family": "family ", "model": "model "}
    parts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in wanted and key.strip() not in parts:
            parts[key.strip()] = wanted[key.strip()] + value.strip()
    return ", ".join(parts[key] for key in wanted if key in parts) or platform.machine()


def versions() -> dict[str, str]:
    """Versions of everything that can influence a figure, and how the core was compiled."""
    from ensemblead import _core

    found = {
        "ensemblead": _core.__version__,
        "python": platform.python_version(),
        "compiler": _core.compiler,
        "cuda": _core.cuda_decision,
        "instruction_set": _core.instruction_set(),
    }
    for name in (
        "numpy",
        "torch",
        "torchvision",
        "timm",
        "faiss-cpu",
        "faiss-gpu",
        "cupy-cuda12x",
        "cupy-cuda13x",
        "scipy",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- figures and targets --------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One row of the table: what was measured, beside its target."""

    benchmark: str  # the stem of the file: "coreset"
    what: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    device: str = "cpu"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        bounds = [(">=", self.at_least), ("<=", self.at_most)]
        return ", ".join(f"{sign} {_number(bound)}" for sign, bound in bounds if bound is not None)

    def cells(self) -> list[str]:
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        value = f"{_number(self.value)} {self.unit}".strip()
        return [self.benchmark, self.device, self.what, value, self.target, verdict, self.note]


HEADER = ["benchmark", "device", "what", "figure", "target", "", "note"]


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.3g}"


class Figures:
    """Collects the rows of a run. Benchmarks get one, for their own file, as the fixture `figures`."""

    def __init__(self) -> None:
        self.rows: list[Figure] = []
        self.timings: dict[str, list[dict[str, Any]]] = {}

    def add(self, row: Figure) -> None:
        self.rows.append(row)

    def of(self, benchmark: str) -> FiguresOf:
        return FiguresOf(self, benchmark)

    def write(self, folder: Path = RESULTS) -> list[Path]:
        stems = sorted({row.benchmark for row in self.rows} | set(self.timings))
        return [
            write_results(
                stem,
                [row for row in self.rows if row.benchmark == stem],
                self.timings.get(stem, []),
                folder,
            )
            for stem in stems
        ]


@dataclass(frozen=True)
class FiguresOf:
    """The figures of one benchmark file."""

    figures: Figures
    benchmark: str

    def add(
        self,
        what: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        device: str = "cpu",
        note: str = "",
        timings: Mapping[str, Timing] | None = None,
        **details: Any,
    ) -> None:
        """Adds a row. `timings`, as `interleaved` returns them, and `details` go into the JSON file only.

        But for the detail `columns`, a mapping: rows of equal columns make a table of their own in README.md.
        """
        if timings is not None:
            details["seconds"] = {name: list(timing.seconds) for name, timing in timings.items()}
            if any(timing.once for timing in timings.values()):
                note = "; ".join(filter(None, [note, "ran once (over a minute)"]))
        self.figures.add(
            Figure(self.benchmark, what, float(value), unit, at_least, at_most, device, note, details)
        )


def write_results(
    benchmark: str, rows: Iterable[Figure], timings: Iterable[dict[str, Any]], folder: Path = RESULTS
) -> Path:
    """Writes results/<benchmark>.json: rows of this run replace those of the same name, the others stay.

    Every row names the run it comes from; the run has the machine, the versions, the commit and the date.
    """
    path = folder / f"{benchmark}.json"
    old: dict[str, Any] = {"runs": {}, "rows": [], "timings": []}
    if path.exists():
        old = json.loads(path.read_text())
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    run = {"date": date, "commit": commit(), "machine": machine(), "versions": versions()}
    remark = os.environ.get("ENSEMBLEAD_REMARK")
    if remark:
        run["remark"] = remark
    new_rows = [{**asdict(row), "met": row.met, "run": date} for row in rows]
    new_timings = [{**timing, "run": date} for timing in timings]
    measured = {(row["device"], row["what"]) for row in new_rows}
    timed = {timing["name"] for timing in new_timings}
    kept_rows = [row for row in old["rows"] if (row["device"], row["what"]) not in measured]
    kept_timings = [timing for timing in old["timings"] if timing["name"] not in timed]
    document: dict[str, Any] = {
        "benchmark": benchmark,
        "runs": {**old["runs"], date: run},
        "rows": kept_rows + new_rows,
        "timings": kept_timings + new_timings,
    }
    used = {entry["run"] for entry in document["rows"] + document["timings"]}
    document["runs"] = {key: value for key, value in document["runs"].items() if key in used}
    write_text(path, json.dumps(document, indent=1) + "\n")
    return path


def write_text(path: Path, text: str) -> None:
    """Writes under a temporary name, then renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plain_table(rows: Iterable[Figure]) -> list[str]:
    """The rows as lines of text with aligned columns."""
    cells = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


# --- the tables of README.md ----------------------------------------------------------------------


def load_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Files of `write_results`; those of compare_checkouts.py and bench_defaults.py have no rows."""
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [document for document in documents if "rows" in document]


def markdown(documents: Iterable[Mapping[str, Any]]) -> str:
    """One table of figures, those with columns of their own, the latencies, and the runs they come from."""
    documents = list(documents)
    lines = ["| benchmark | device | what | figure | target | | note | run |", "| --- " * 8 + "|"]
    timing_lines = ["| benchmark | call | median | spread | rounds | run |", "| --- " * 6 + "|"]
    runs: dict[str, Mapping[str, Any]] = {}
    for document in documents:
        runs.update(document["runs"])
    order = {key: index for index, key in enumerate(sorted(runs), start=1)}
    wide: dict[str, list[str]] = {}
    for document in documents:
        for row in document["rows"]:
            columns = row["details"].get("columns")
            if columns:
                _add_wide(wide, document["benchmark"], row, order[row["run"]])
                if row["met"] is None:
                    continue
            shown = Figure(**{key: value for key, value in row.items() if key not in ("met", "run")})
            lines.append("| " + " | ".join([*shown.cells(), str(order[row["run"]])]) + " |")
        for timing in document["timings"]:
            spread = timing["iqr"] / timing["median"] if timing["median"] else 0.0
            cells = [
                document["benchmark"],
                f"`{timing['name']}`",
                f"{timing['median'] * 1e3:.4g} ms",
                f"{spread:.1%}",
                str(timing["rounds"]),
                str(order[timing["run"]]),
            ]
            timing_lines.append("| " + " | ".join(cells) + " |")
    run_lines = [_describe_run(order[key], runs[key]) for key in sorted(runs)]
    if not run_lines:
        return "No results yet."
    parts = [lines, *wide.values(), timing_lines, ["Runs:", "", *run_lines]]
    return "\n\n".join("\n".join(part) for part in parts if len(part) > 2)


def _add_wide(tables: dict[str, list[str]], benchmark: str, row: Mapping[str, Any], run: int) -> None:
    """Adds a row of many figures to the table of its columns (`columns=` among the details)."""
    columns = row["details"]["columns"]
    head = f"| {benchmark} | " + " | ".join(columns) + " | run |"
    table = tables.setdefault(head, [head, "| --- " * (len(columns) + 2) + "|"])
    cells = [value if isinstance(value, str) else _number(value) for value in columns.values()]
    table.append("| " + " | ".join([row["what"], *cells, str(run)]) + " |")


def _describe_run(number: int, run: Mapping[str, Any]) -> str:
    host, used = run["machine"], run["versions"]
    where = f"{host['processor']}; {host['cores']} cores, {host['memory_gib']} GiB"
    if "gpu" in host:
        where += f", {host['gpu']}"
    software = ", ".join(f"{name} {version}" for name, version in used.items())
    head, dirty, _ = run["commit"].partition("-dirty")
    source = f"commit {head[:12]}" + (" with uncommitted changes" if dirty else "")
    remark = f" ({run['remark']})" if "remark" in run else ""
    return f"{number}. {run['date']}, {source}; {where}{remark}; {software}"


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def fill(document: Path, name: str, text: str) -> None:
    """Puts text between the markers of a name in a document."""
    begin, end = markers(name)
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{document} lacks the markers {begin} and {end}")
    write_text(document, f"{before}{begin}\n{text}\n{end}{after}")


def render_readme(readme: Path = README, folder: Path = RESULTS) -> None:
    """Puts the tables between the markers of README.md."""
    fill(readme, "figures", markdown(load_results(folder)))


# --- the short tables -----------------------------------------------------------------------------

_DATA = {
    "bottle": "MVTec AD bottle",
    "cookies": "cracked cookies (AWS sample data)",
    "magnetic tile": "magnetic tile (Huang et al.)",
}
_MODELS = {
    "resnet18": "resnet18",
    "densenet169": "densenet169",
    "ensemble": "both and squeezenet1_1",
}
_METRICS = ("image AUROC", "pixel AUROC", "AUPRO")


def _details(benchmark: str, folder: Path) -> dict[str, Mapping[str, Any]]:
    """The details of a benchmark's rows with columns, by what they are of."""
    documents = [document for document in load_results(folder) if document["benchmark"] == benchmark]
    rows = [row for document in documents for row in document["rows"]]
    return {row["what"]: row["details"] for row in rows if row["details"].get("columns")}


def _three(columns: Mapping[str, Any]) -> str:
    """Image AUROC, pixel AUROC and AUPRO in three digits, without the zero before the point."""
    return " / ".join(f"{columns[name]:.3f}".removeprefix("0") for name in _METRICS)


def detection_table(folder: Path = RESULTS) -> str:
    """PatchCore on the photographs at hand, as README.md shows it."""
    known = _details("detection", folder)
    shown = [known[f"{key}, {model}"] for key in _DATA for model in _MODELS]
    scores = sorted({details.get("score", "max") for details in shown})  # rows that name none are of "max"
    score = " or ".join(f'`score="{name}"`' for name in scores)
    head = f"whole image at 256 x 256, 1 % coreset, {score}, defaults otherwise"
    lines = ["| " + " | ".join([head, *_MODELS.values()]) + " |", "| --- " * 4 + "|"]
    for key, data in _DATA.items():
        cells = [_three(known[f"{key}, {model}"]["columns"]) for model in _MODELS]
        lines.append("| " + " | ".join([data, *cells]) + " |")
    return "\n".join(lines)


def peers_table(network: str = "resnet18", folder: Path = RESULTS) -> str:
    """This library beside others, on one network, as docs/results.md shows it."""
    known = {what: details["columns"] for what, details in _details("peers", folder).items()}
    names = ["fit, s", "decoded image, ms", "file, ms", "fit's peak, MB", "process, MB"]
    head = ["data", "tool", *names, " / ".join(_METRICS), "false alarms", "misses"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- " + "| ---: " * len(names) + "| --- | --- | --- |"]
    for key in _DATA:
        start = f"{key}, {network}, "
        for what, columns in known.items():
            if what.startswith(start):
                costs = [_number(columns[name]) for name in names]
                rates = [columns["false alarms"], columns["misses"]]
                cells = [key, what.removeprefix(start), *costs, _three(columns), *rates]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else "No results yet."


SHORT_TABLES: dict[str, Callable[[], str]] = {"detection": detection_table, "peers": peers_table}


def documents_with(name: str) -> list[Path]:
    """README.md and the pages of docs/ that have the markers of a short table."""
    pages = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").rglob("*.md"))]
    return [page for page in pages if markers(name)[0] in page.read_text()]


if __name__ == "__main__":
    render_readme()
    for table, make in SHORT_TABLES.items():
        for page in documents_with(table):
            fill(page, table, make())
