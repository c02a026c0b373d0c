"""`ensemblead demo`: the whole way on images that are drawn on the spot; nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ensemblead.cli.console import Bars, Clock, print_json, told_warnings
from ensemblead.cli.evaluate import measure, report_table, results
from ensemblead.cli.models import describe_model
from ensemblead.extras import require

if TYPE_CHECKING:
    from ensemblead.evaluation import Report

# A filter bank with few channels: neighbourhoods are averaged (see `mode="concat"`), and every image is seen
# whole, since its parts reach close to the edge.
_DETECTOR: dict[str, Any] = {"backbone": "gabor", "resize": None, "image_size": None, "aggregation": "concat"}


def command(
    out: Annotated[
        Path | None, typer.Option("--out", help="A new or empty folder to keep everything in.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the images.", min=0)] = 0,
    size: Annotated[int, typer.Option("--size", help="Side of the images.", min=64)] = 256,
    num_train: Annotated[int, typer.Option("--train", help="Normal images to fit on.", min=1)] = 40,
    num_good: Annotated[int, typer.Option("--good", help="Normal images to test on.", min=1)] = 20,
    per_defect: Annotated[int, typer.Option("--per-defect", help="Images of each defect.", min=1)] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON summary.")] = False,
) -> None:
    """Draw metal plates with six kinds of defects, fit PatchCore on whole ones, find the defects, measure.

    Needs no network: the backbone is a fixed bank of Gabor filters. Takes well under a minute.
    """
    require("torch", "ensemblead demo")
    require("scipy", "ensemblead demo")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out must be a new or an empty folder, got {out}")
    folder = Path(tempfile.mkdtemp(prefix="ensemblead-demo-")) if out is None else out
    with told_warnings() as warned:
        summary, report = run(folder, seed, size, num_train, num_good, per_defect)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        _show(summary, report)


def run(
    folder: Path, seed: int, size: int, num_train: int, num_good: int, per_defect: int
) -> tuple[dict[str, Any], Report]:
    """Draw, fit, save, evaluate; a summary in JSON's types, and the report."""
    from ensemblead.cli.parts import DEFECTS, draw_data_set
    from ensemblead.detectors import PatchCore
    from ensemblead.evaluation import MVTecAD

    data, model, out = folder / "plates", folder / "model", folder / "results"
    total = num_train + num_good + per_defect * len(DEFECTS)
    seconds = {}
    with Bars() as bars:
        clock = Clock()
        drawn = draw_data_set(
            data, seed, size=size, num_train=num_train, num_good=num_good, per_defect=per_defect
        )
        for done, _ in enumerate(drawn, 1):
            bars("drawing", done, total)
        seconds["draw"], clock = clock(), Clock()
        detector = PatchCore(**_DETECTOR, seed=seed)
        detector.fit(data / "train" / "good", progress=bars)
        detector.save(model)
        seconds["fit"], clock = clock(), Clock()
        report = measure(detector, MVTecAD(data), out, bars, per_type=2)
        seconds["evaluate"] = clock()
    summary = {
        "data": str(data),
        "model": str(model),
        "contact_sheet": str(out / "contact_sheets" / f"{data.name}.png"),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "defects": _by_defect(report),
        **describe_model(detector),
        **results(report, out),
    }
    return summary, report


def _by_defect(report: Report) -> list[dict[str, Any]]:
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
    member, seconds = summary["members"][0], summary["seconds"]
    counts = report.rows[0]
    _lines(
        console,
        f"Drew {counts.num_train} whole plates to fit on, {counts.num_normal} whole and "
        f"{counts.num_anomalous} defective ones to test on ({seconds['draw']:.1f} s).",
        f"Fitted PatchCore on Gabor features: {member['bank_rows']} patches of {member['dimensions']} "
        f"dimensions in the memory bank ({seconds['fit']:.1f} s).",
        f"Called anomalous: scores above {summary['threshold']:.4g}, which the whole plates alone set "
        f"(false alarms {summary['false_alarm_rate']:.2g}, {summary['false_alarm_rate_is']}).",
        "",
    )
    table = Table("test images", "number", "called anomalous", "mean score", box=None, pad_edge=False)
    for kind in summary["defects"]:
        cells = kind["kind"], str(kind["images"]), str(kind["called_anomalous"]), f"{kind['mean_score']:.3g}"
        table.add_row(*cells)
    console.print(table)
    console.print()
    console.print(report_table(report))
    _lines(
        console,
        "",
        "The plates are drawn, so this shows that everything works, not how well it does on yours.",
        f"Pictures: {summary['contact_sheet']}",
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
