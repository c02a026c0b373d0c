"""`ensemblead extend`: a saved model and more good images, or false alarms that were marked on a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json, reported_warnings
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.cli.update import Device, Model, Out, Update, Weights, show_update

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.images import ImageList, ImageSource


def command(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="Folders, images, patterns such as 'a/*.png', or a list: a .txt with a path or pattern on "
            "each line, or the .json of marks that a page exports, of which the false alarms are learned.",
        ),
    ],
    out: Out = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace MODEL; nothing is kept of it as it was.")
    ] = False,
    max_rows: Annotated[
        int | None,
        typer.Option("--max-rows", help="Keep a memory bank at so many rows; it grows if absent."),
    ] = None,
    defects: Annotated[
        bool,
        typer.Option("--defects", help="Learn the missed defects among the marks, too, as known defects."),
    ] = False,
    weights: Weights = None,
    device: Device = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Let a model learn more images of good parts, without starting over: MODEL and IMAGES to --out NEW.

    What it has learned stays, unless --max-rows lets new rows take the place of others. Methods that are
    trained cannot be extended: they are fitted again. With --defects the missed defects that are marked are
    learned as known ones: patches like theirs score higher. `compare MODEL NEW DATA` shows what has changed.
    """
    if (out is None) == (not in_place):
        raise ValueError(
            "extend writes a new model to --out NEW, or with --in-place replaces MODEL: give one"
        )

    def update(detector: Detector, source: ImageSource | None, errors: Any, bars: Bars) -> None:
        missed = _missed_images(run.lists, detector) if defects else []
        if source is not None:
            detector.extend(source, max_rows=max_rows, errors=errors, progress=bars)
        if missed:
            learning: Any = detector
            learning.learn_defects(missed)

    run = Update(model, images, out, weights or (), device, skip_unreadable, update, defects)
    with reported_warnings() as warned, Bars() as bars:
        summary = run.execute(bars)
    marks = [one for one in run.lists if one.is_marks]
    summary["missed_defects"] = list(dict.fromkeys(path for one in marks for path in one.missed))
    summary["missed_defects_learned"] = defects
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    console = show_update(summary)
    if marks:
        were = (
            "were learned as known defects" if defects else "were left out, since only good parts are learned"
        )
        missed = f"{len(summary['missed_defects'])} missed defects"
        console.print(f"of the marks the false alarms were learned; {missed} {were}")


def _missed_images(lists: list[ImageList], detector: Detector) -> list[str]:
    """The files of the missed defects that are marked. Raises ValueError where there are none."""
    from ensemblead.images import listed_images

    if not hasattr(detector, "learn_defects"):
        raise ValueError(
            f"--defects: a {type(detector).__name__} learns no known defects; PatchCore and a "
            "BackboneEnsemble with one do"
        )
    found = [path for one in lists for path in listed_images(replace(one, entries=one.missed))]
    if not found:
        raise ValueError("--defects: no missed defects are marked; give the .json of marks of a page")
    return list(dict.fromkeys(found))
