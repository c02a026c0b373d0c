"""`ensemblead merge`: the scores of `predict --part` in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ensemblead.cli.console import print_json
from ensemblead.cli.scores import merge_scores
from ensemblead.cli.shared import Json
from ensemblead.common.files import valid_text


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The OUT of predict --part K/N.")],
    as_json: Json = False,
) -> None:
    """Put the scores of all parts together: DIR/scores.csv, as predict writes it without --part."""
    path, images, anomalous = merge_scores(folder)
    if as_json:
        print_json({"scores": str(path), "images": images, "anomalous": anomalous})
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{images} images, {anomalous} anomalous\n{valid_text(str(path))}")
