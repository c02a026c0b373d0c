"""`ensemblead weights`: which weights of several networks' embeddings find images of one class best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.embedders import (
    FROM_FOLDERS,
    Backbones,
    Device,
    EmbedderOptions,
    ImageSize,
    Layers,
    LeftOut,
    Resize,
    Settings,
    WeightFiles,
    described_skips,
    labelled_images,
    save_ensemble,
)
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text

if TYPE_CHECKING:
    from ensemblead.retrieval.weights import WeightTable

_SHOWN = 10
_DEPTH = 50


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images, those of each class in a folder of their own.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The table of all combinations to write, as csv.")],
    backbone: Backbones = None,
    layers: Layers = None,
    weights: WeightFiles = None,
    labels: Annotated[
        str, typer.Option("--labels", help="from-folders: the folders between FOLDER and an image.")
    ] = FROM_FOLDERS,
    grid: Annotated[
        str, typer.Option("--grid", help="The weights to try for each network; 0 leaves it out.")
    ] = "1,2,3,4,5",
    depth: Annotated[
        int | None, typer.Option("-k", help="Depth of the mean average precision; 50 if absent.", min=1)
    ] = None,
    normalize: Annotated[
        str, typer.Option("--normalize", help="each, or joint: embeddings of one network keep their lengths.")
    ] = "each",
    holdout: Annotated[
        float, typer.Option("--holdout", help="The share of the queries that choose nothing.")
    ] = 0.5,
    max_queries: Annotated[
        int | None, typer.Option("--max-queries", help="At most so many queries, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is held out and drawn.")] = 0,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Write the ensemble of the best weights here, for index --fusion."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the ensemble that is in the folder of --model.")
    ] = False,
    resize: Resize = None,
    image_size: ImageSize = None,
    settings: Settings = None,
    device: Device = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Measure every combination of weights of several networks on labelled images.

    Every image is a query for the others of its label. The measure is the mean average precision at k
    (mAP@k). Half of the queries choose the best combination: what it reaches on the other half is the figure
    to expect.
    """
    values = {"resize": resize, "image_size": image_size, "device": device}
    options = EmbedderOptions(backbone, layers, weights, values, settings)
    searching = {
        "grid": read_grid(grid),
        "normalize": normalize,
        "holdout": holdout,
        "max_queries": max_queries,
        "seed": seed,
    }
    with reported_warnings() as warned, Bars() as bars:
        run = _WeightsRun(folder, out, options, labels, depth, searching, model, overwrite, skip_unreadable)
        summary, table = run.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        _show(summary, table)


def read_grid(text: str) -> list[float]:
    """Numbers from `1,2,3`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"grid must be numbers with commas between, such as 0,1,2, got {text!r}") from None


@dataclass
class _WeightsRun:
    """One call of `weights`; `execute` does it and returns its summary and the table."""

    folder: Path
    out: Path
    options: EmbedderOptions
    labels: str
    depth: int | None
    searching: dict[str, Any]
    model: Path | None
    overwrite: bool
    skip_unreadable: bool

    def execute(self, bars: Bars) -> tuple[dict[str, Any], WeightTable]:
        require("torch", "ensemblead weights")
        from ensemblead.retrieval.embedders import nonzero, read_vectors
        from ensemblead.retrieval.weights import planned_search, search_weights

        if self.out.is_dir():
            raise ValueError(f"out must be a file, got the folder {self.out}")
        save = None if self.model is None else save_ensemble(self.model, "model", overwrite=self.overwrite)
        clock = Clock()
        ensemble = self.options.ensemble("concat", normalize=self.searching["normalize"])
        if len(ensemble.members) < 2:
            raise ValueError("backbone must be given for each of two networks and more: there is one")
        bars.step("looking at the images")
        listed = labelled_images(self.folder, self.labels)
        planned = {name: value for name, value in self.searching.items() if name != "normalize"}
        # What is wrong with them shows before hours of reading.
        planned_search(
            len(ensemble.members), listed.labels, k=self._depth(len(listed.labels)), groups=None, **planned
        )
        left_out = LeftOut(listed.paths)
        on_error = left_out if self.skip_unreadable else None
        read = read_vectors(
            ensemble.members, listed.paths, ensemble.batch_size, on_error=on_error, progress=bars
        )
        batches = list(nonzero(read, on_error))
        if not batches:
            raise ValueError(f"images: none of {len(listed.paths)} can be read, the first: {left_out.first}")
        kept = np.concatenate([positions for positions, _ in batches])
        vectors = [np.concatenate(one) for one in zip(*(found for _, found in batches), strict=True)]
        table = search_weights(
            vectors,
            [listed.labels[position] for position in kept],
            k=self._depth(len(kept)),
            progress=bars,
            **self.searching,
        )
        table.to_csv(self.out)
        if save is not None:
            save(self.options.ensemble("concat", weights=table.best.weights, normalize=table.normalize))
        return {
            "out": str(self.out),
            "model": None if self.model is None else str(self.model),
            "networks": [f"{member.backbone} {member.layer or ''}".strip() for member in ensemble.members],
            "images": len(kept),
            "k": table.k,
            "combinations": len(table.rows),
            "queries": table.queries,
            "holdout_queries": table.holdout_queries,
            "best": {
                "weights": list(table.best.weights),
                "map": table.best.map,
                "interval": list(table.best.interval),
                "holdout_map": table.best.holdout_map,
            },
            "skipped": left_out.skipped,
            "seconds": round(clock(), 3),
        }, table

    def _depth(self, images: int) -> int:
        return min(_DEPTH, images - 1) if self.depth is None else self.depth


def _show(summary: dict[str, Any], table: WeightTable) -> None:
    """The best combinations, and where all of them are."""
    console = Console(highlight=False, soft_wrap=True)
    rows = Table(*map(escape, summary["networks"]), f"mAP@{table.k}", "held out", box=None, pad_edge=False)
    for row in table.rows[:_SHOWN]:
        held = "-" if row.holdout_map is None else f"{row.holdout_map:.4f}"
        rows.add_row(*(f"{weight:g}" for weight in row.weights), f"{row.map:.4f}", held)
    console.print(rows)
    left_out, ensemble = described_skips(summary["skipped"]), summary["model"]
    told = "; the figure to expect is the best one's on the queries held out" if table.holdout_queries else ""
    console.print(
        valid_text(
            f"{left_out}{summary['images']} images, {summary['combinations']} combinations in "
            f"{summary['seconds']:.1f} s{told}\n"
            f"table: {summary['out']}" + ("" if ensemble is None else f"\nensemble: {ensemble}")
        ),
        markup=False,
    )
