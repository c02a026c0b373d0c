"""`ensemblead compare`: two saved models on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import DRIFTED, print_json, reported_warnings
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import check_outside_model, load_model
from ensemblead.cli.shared import (
    Bootstrap,
    BootstrapSeed,
    FittedDevice,
    Json,
    MissingMasks,
    SkipUnreadable,
)
from ensemblead.cli.testsets import untrained
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text

if TYPE_CHECKING:
    from ensemblead.evaluation.comparing import Compared

_METRICS = ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "miss_rate")
_SHOWN = 10  # changed verdicts in the terminal
_WORDS = {True: "anomalous", False: "normal"}


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The folder of the model in use.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The folder of the model to take its place.")],
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Images: folders, files, patterns. Or one category in MVTec layout: with metrics, then.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    missing_masks: MissingMasks = "raise",
    bootstrap: Bootstrap = 1000,
    seed: BootstrapSeed = 0,
    gallery: Annotated[
        int, typer.Option("--gallery", help="Changed images that the page shows; 0 for none.", min=0)
    ] = 60,
    fail_on_change: Annotated[
        bool, typer.Option("--fail-on-change", help=f"End with exit code {DRIFTED} if a verdict changes.")
    ] = False,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="[I.]PATH: where the networks' weights of both models are now."),
    ] = None,
    device: FittedDevice = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Score the same images with two models: which verdicts change, and with ground truth what that is worth.

    Writes OUT/comparison.html, comparison.csv (a line per image) and comparison.json. Exit code 0, whatever
    changes; with --fail-on-change 3 if a verdict does.
    """
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead compare")
        from ensemblead.report.comparison import compare, comparison_document

        images = _opened(data, out, (old, new), missing_masks)
        bars.step("loading the models")
        first, second = (load_model(path, weights or (), device) for path in (old, new))
        errors: Any = "skip" if skip_unreadable else "raise"
        options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "gallery": gallery}
        comparison = compare(first, second, images, **options, errors=errors, progress=bars)
        bars.step("writing results")
        comparison.to_csv(out / "comparison.csv")
        comparison.to_json(out / "comparison.json")
        page = comparison.to_html(out / "comparison.html")
    found = comparison.data
    if as_json:
        document = comparison_document(found)
        print_json({"html": str(page), **document, "warnings": warned})
    else:
        _show(found, page)
    if fail_on_change and found.changed:
        raise typer.Exit(DRIFTED)


def _opened(data: Sequence[Path], out: Path, models: Sequence[Path], missing_masks: Any) -> Any:
    """A data set, or images; raises ValueError where results would lie in a model or among the images."""
    from ensemblead.evaluation import MVTecAD
    from ensemblead.images import check_output_outside
    from ensemblead.images.folders import subfolders

    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    for model in models:
        check_outside_model(out, model)
    first = data[0]
    has_tests = first.is_dir() and any((one / "test").is_dir() for one in (first, *subfolders(first)))
    if len(data) == 1 and has_tests:
        dataset = untrained(first, None, missing_masks) or MVTecAD(first, missing_masks=missing_masks)
        check_output_outside(out, dataset.folders)
        return dataset
    source, _ = chosen_images(data)
    check_output_outside(out, source.folders)
    return source


def _show(found: Compared, page: Path) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    alarmed = sum(bool(one.new_verdict) for one in found.changed)
    console.print(
        f"{len(found.images)} images; {len(found.changed)} verdicts change: {alarmed} normal to anomalous, "
        f"{len(found.changed) - alarmed} anomalous to normal"
    )
    if found.has_truth:
        console.print(
            f"{found.mended} of them mended, {found.broken} broken (McNemar's exact test: "
            f"p = {found.chance:.2g})"
        )
        console.print(_metrics(found))
    for image in found.changed[:_SHOWN]:
        before, after = (_WORDS[bool(one)] for one in (image.old_verdict, image.new_verdict))
        console.print(
            f"  {valid_text(image.path)}  {before} ({image.old_score:.4g}) to {after} ({image.new_score:.4g})"
        )
    if len(found.changed) > _SHOWN:
        console.print(f"  and {len(found.changed) - _SHOWN} more")
    for note in found.notes:
        console.print(f"note: {valid_text(note)}")
    console.print(f"page: {valid_text(str(page))}; comparison.csv and comparison.json beside it")


def _metrics(found: Compared) -> Table:
    table = Table("", "old", "new", box=None, pad_edge=False)
    for name in _METRICS:
        values = [getattr(side.row, name) for side in (found.old, found.new)]
        cells = ["-" if value != value else f"{value:.4f}" for value in values]
        table.add_row(name.replace("_", " "), *cells)
    return table
