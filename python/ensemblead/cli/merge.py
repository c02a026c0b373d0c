"""`ensemblead merge`: the scores and objects of `predict --part` in one file each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ensemblead.cli.console import print_json
from ensemblead.cli.objects import merge_objects
from ensemblead.cli.scores import merge_scores
from ensemblead.cli.shared import Json
from ensemblead.common.files import valid_text


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The OUT of predict --part K/N.")],
    as_json: Json = False,
) -> None:
    """Put all parts together: DIR/scores.csv and DIR/objects.json, as predict writes them without --part.
    Pages are not put together: each part has its own, DIR/report.part-K-of-N.html.
    """
    path, images, anomalous, parts = merge_scores(folder)
    found = merge_objects(folder, parts)
    objects, regions = (None, None) if found is None else (str(found[0]), found[1])
    if as_json:
        summary = {"scores": str(path), "images": images, "anomalous": anomalous}
        print_json({**summary, "objects": objects, "regions": regions})
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{images} images, {anomalous} anomalous\n{valid_text(str(path))}")
    if objects is not None:
        console.print(f"{regions} regions\n{valid_text(objects)}")
