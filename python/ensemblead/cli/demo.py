"""`ensemblead demo`: the whole way on images that are drawn on the spot; nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings, without_threshold_warnings
from ensemblead.cli.evaluate import measure, report_table, results
from ensemblead.cli.models import describe_model
from ensemblead.cli.shared import Json
from ensemblead.common.extras import require

if TYPE_CHECKING:
    from ensemblead.evaluation import Report

# The filter bank has few channels, so neighbourhoods are averaged and channels kept; with so few images a
# larger memory bank is affordable.
_DETECTOR: dict[str, Any] = {
    "type": "PatchCore",
    "backbone": "gabor",
    "resize": None,
    "image_size": None,
    "aggregation": "concat",
    "coreset_fraction": 0.1,
}
_FALSE_ALARMS = 0.05
_REPLICATES = 200


def command(
    out: Annotated[
        Path | None, typer.Option("--out", help="A new or empty folder to keep everything in.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the images.", min=0)] = 0,
    size: Annotated[int, typer.Option("--size", help="Side of the images.", min=64)] = 256,
    num_train: Annotated[int, typer.Option("--train", help="Normal images to fit on.", min=1)] = 30,
    num_fresh: Annotated[int, typer.Option("--fresh", help="Normal images for the threshold.", min=1)] = 20,
    num_good: Annotated[int, typer.Option("--good", help="Normal images to test on.", min=1)] = 20,
    per_defect: Annotated[int, typer.Option("--per-defect", help="Images of each defect.", min=1)] = 4,
    as_json: Json = False,
) -> None:
    """Draw metal plates with six kinds of defects, learn what whole ones look like, find the defects.

    Needs no network connection: the backbone is a fixed bank of Gabor filters. Takes well under a minute.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be a new or an empty folder, got {out}")
    folder = Path(tempfile.mkdtemp(prefix="ensemblead-demo-")) if out is None else out
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead demo")
        require("scipy", "ensemblead demo")
        numbers = {"num_train": num_train, "num_fresh": num_fresh, "num_good": num_good}
        summary, report = run(folder, seed, size, {**numbers, "per_defect": per_defect}, bars)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        _show(summary, report)


def run(
    folder: Path, seed: int, size: int, numbers: dict[str, int], bars: Bars
) -> tuple[dict[str, Any], Report]:
    """Draw, fit, calibrate, save, evaluate; a summary in JSON's types, and the report. `numbers` are those of
    `draw_data_set`.
    """
    from ensemblead.cli.parts import DEFECTS, draw_data_set
    from ensemblead.config.registry import create
    from ensemblead.evaluation import MVTecAD

    data, model, out = folder / "plates", folder / "model", folder / "results"
    total = sum(numbers.values()) + numbers["per_defect"] * (len(DEFECTS) - 1)
    seconds = {}
    clock = Clock()
    for done, _ in enumerate(draw_data_set(data, seed, size=size, **numbers), 1):
        bars("drawing", done, total)
    seconds["draw"], clock = clock(), Clock()
    detector = create(_DETECTOR, seed=seed)
    with without_threshold_warnings():
        detector.fit(data / "train" / "good", progress=bars)
    detector.calibrate(
        data / "calibration",
        _FALSE_ALARMS,
        progress=lambda _, done, total: bars("calibrating", done, total),
    )
    bars.step("saving")
    detector.save(model)
    seconds["fit"], clock = clock(), Clock()
    report = measure(detector, MVTecAD(data), out, bars, bootstrap=_REPLICATES, per_type=2)
    seconds["evaluate"] = clock()
    summary = {
        "data": str(data),
        "model": str(model),
        "report": str(out / "report.html"),
        "contact_sheet": str(out / "contact_sheets" / f"{data.name}.png"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "images": numbers,
        "by_kind": _by_kind(report),
        **describe_model(detector),
        **results(report, out),
    }
    return summary, report


def _by_kind(report: Report) -> list[dict[str, Any]]:
    """For every kind of image how many there are, and how many were called anomalous."""
    images = report.details[report.rows[0].category].images
    kinds = sorted({image.defect_type for image in images}, key=lambda kind: (kind != "good", kind))
    return [
        {
            "kind": kind,
            "images": len(found),
            "called_anomalous": sum(bool(image.is_anomalous) for image in found),
            "mean_score": sum(image.score for image in found) / len(found),
        }
        for kind in kinds
        for found in [[image for image in images if image.defect_type == kind]]
    ]


def _show(summary: dict[str, Any], report: Report) -> None:
    console = Console(highlight=False, soft_wrap=True)
    member, seconds, fresh = summary["members"][0], summary["seconds"], summary["images"]["num_fresh"]
    counts = report.rows[0]
    _lines(
        console,
        f"Drew {counts.num_train} whole plates to fit on, {fresh} to set the threshold, "
        f"{counts.num_normal} whole and {counts.num_anomalous} defective ones to test on "
        f"({seconds['draw']:.1f} s).",
        f"Fitted {member['method']} on Gabor features: {member['bank_rows']} patches of "
        f"{member['dimensions']} dimensions in the memory bank ({seconds['fit']:.1f} s).",
        f"Called anomalous: scores above {summary['threshold']:.4g}, which whole plates alone have set "
        f"(false alarms at most {summary['false_alarm_rate']:.2g}, {summary['false_alarm_rate_is']}).",
        "",
    )
    table = Table("test images", "number", "called anomalous", "mean score", box=None, pad_edge=False)
    for kind in summary["by_kind"]:
        cells = kind["kind"], str(kind["images"]), str(kind["called_anomalous"]), f"{kind['mean_score']:.3g}"
        table.add_row(*cells)
    console.print(table)
    console.print()
    console.print(report_table(report))
    _lines(
        console,
        "",
        "The plates are drawn, so this shows that everything works, not how well it does on yours.",
        f"Pictures: {summary['report']} (open it in a browser)",
        "Next:",
        *(f"  {line}" for line in _next_steps(summary)),
    )


def _lines(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False)


def _next_steps(summary: dict[str, Any]) -> Sequence[str]:
    data = Path(summary["data"])
    return (
        f"ensemblead predict {summary['model']} {data / 'test'} --out {data.parent / 'predictions'}",
        "ensemblead fit FOLDER_OF_GOOD_IMAGES --model MODEL -b wide_resnet50_2",
    )
