"""`ensemblead benchmark`: how fast a model predicts on this machine by every engine, and which to take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json, reported_warnings
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import moved_weights
from ensemblead.cli.shared import MovedWeights
from ensemblead.common.extras import require

if TYPE_CHECKING:
    from ensemblead.evaluation.speed import Measured


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Folders, images, or patterns such as 'a/*.png'."),
    ],
    count: Annotated[int, typer.Option("--count", help="So many of the images, drawn.", min=1)] = 32,
    rounds: Annotated[int, typer.Option("--rounds", help="How often each is measured, in turn.", min=1)] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.", min=0)] = 0,
    weights: MovedWeights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure predict by every engine and precision on this machine's CPU, and say which to take.

    Decoding is left out. Scores are compared with those of torch in float32. Give good and defective images,
    so that verdicts are compared too. A model without int8 is quantized by them, in memory; `ensemblead
    quantize` saves that.
    """
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead benchmark")
        from ensemblead.evaluation.speed import measure_engines, recommended
        from ensemblead.images import chosen_images as drawn

        source, _ = chosen_images(images)
        found = measure_engines(
            model,
            drawn(source, count, seed),
            weights=moved_weights(weights or ()),
            rounds=rounds,
            progress=bars,
        )
        best = recommended(found)
    if as_json:
        choice = {"engine": best.engine, "precision": best.precision}
        measured = [_plain(one) for one in found]
        print_json({"measured": measured, "recommended": choice, "warnings": warned})
        return
    _show(found, best, min(count, len(source)))


def _plain(one: Measured) -> dict[str, Any]:
    """In JSON's types, which have no NaN."""
    return {name: None if value != value else value for name, value in asdict(one).items()}


def _show(found: list[Measured], best: Measured, count: int) -> None:
    console = Console()
    table = Table(
        "engine",
        "precision",
        "ms one",
        "ms many",
        "times",
        "score change",
        "verdicts",
        box=None,
        pad_edge=False,
    )
    for one in found:
        if one.failure is not None:
            table.add_row(one.engine, one.precision, "-", "-", "-", "-", escape(one.failure))
            continue
        table.add_row(
            one.engine,
            one.precision,
            f"{one.one:.1f}",
            f"{one.many:.1f}",
            f"{found[0].many / one.many:.2f}",
            f"{one.median_change:.2%}, at most {one.largest_change:.2%}",
            f"{one.changed_verdicts} of {count} change",
        )
    console.print(table)
    reason = "the fastest that changes no verdict of these images"
    if best is found[0]:
        reason = "no other that changes no verdict of these images is a tenth faster"
    console.print(
        f"\nTake engine={best.engine!r}, precision={best.precision!r}: {reason}.",
        highlight=False,
        soft_wrap=True,
    )
