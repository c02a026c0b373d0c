"""`ensemblead search`: the images of an index that are most similar to others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.embedders import Device, LeftOut, described_skips
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import moved_weights
from ensemblead.cli.shared import Json, MovedWeights, SkipUnreadable
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text
from ensemblead.common.warnings import warn

_NUMBERS = ("id", "bytes", "mtime_ns", "height", "width", "added")


def command(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that index wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Queries: images, folders, or patterns such as 'a/*.png'."),
    ],
    top: Annotated[int, typer.Option("--top", help="How many images to find for each query.", min=1)] = 20,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="COLUMN=VALUE",
            help="Only images of this label (label=...), path, width, height, ...; repeat it. Of one column "
            "any of its values counts, and an empty one stands for none.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with pictures, one file that loads nothing.")
    ] = None,
    weights: MovedWeights = None,
    device: Device = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Find the images of an index that are most similar to each query.

    Similarity is the cosine of the angle between two embeddings, at most 1. What counts as high depends on
    the networks: compare it with that of images you know. A query that is in the index finds itself.
    """
    with reported_warnings() as warned, Bars() as bars:
        run = _SearchRun(index, images, top, where or (), html, weights or (), device, skip_unreadable)
        summary, table = run.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    page = "" if html is None else f"\npage: {html}"
    Console(highlight=False, soft_wrap=True, markup=False).print(
        valid_text(f"{described_skips(summary['skipped'])}{table}{page}")
    )


@dataclass
class _SearchRun:
    """One call of `search`; `execute` does it and returns its summary, and its hits as a table."""

    index: Path
    images: Sequence[Path]
    top: int
    where: Sequence[str]
    html: Path | None
    weights: Sequence[str]
    device: str | None
    skip_unreadable: bool

    def execute(self, bars: Bars) -> tuple[dict[str, Any], str]:
        require("torch", "ensemblead search")
        from ensemblead.report.search_page import write_search_page
        from ensemblead.retrieval.index import ImageIndex
        from ensemblead.retrieval.queries import search_images

        if self.html is not None and self.html.is_dir():
            raise ValueError(f"html must be a file, got the folder {self.html}")
        conditions = read_conditions(self.where)
        clock = Clock()
        source, _ = chosen_images(self.images)
        paths = [str(path) for path in source.paths]
        left_out = LeftOut(paths)
        bars.step("loading the networks")
        with ImageIndex.open(self.index, weights=moved_weights(self.weights), device=self.device) as index:
            images = len(index)
            if not images:
                raise ValueError(f"index: {self.index} has no images, or none yet")
            hits = search_images(
                index,
                paths,
                self.top,
                where=conditions or None,
                on_error=left_out if self.skip_unreadable else None,
                progress=bars,
            )
        if not len(hits):
            raise ValueError(f"images: none of {len(paths)} can be read, the first: {left_out.first}")
        if conditions and not hits.ids.size:
            warn(f"where: no image of the index has {', '.join(self.where)}")
        if self.html is not None:
            bars.step("writing the page")
            write_search_page(hits, self.html, note=self._note(images, len(left_out.skipped)))
        found = json.loads(hits.to_json())
        return {
            "index": str(self.index),
            "images": images,
            "queries": [{**one, "query": valid_text(one["query"])} for one in found],
            "skipped": left_out.skipped,
            "html": None if self.html is None else str(self.html),
            "seconds": round(clock(), 3),
        }, str(hits)

    def _note(self, images: int, unread: int) -> str:
        """What was searched, and what is not on the page."""
        only = f", those with {', '.join(self.where)} alone" if self.where else ""
        gone = f" Queries that could not be read and are not here: {unread}." if unread else ""
        return f"Searched: the index {self.index} of {images:,} images{only}.{gone}"


def read_conditions(given: Sequence[str]) -> dict[str, list[str | int | None]]:
    """`where` of `ImageIndex.search` from texts COLUMN=VALUE; of one column any of the values counts."""
    found: dict[str, list[str | int | None]] = {}
    for text in given:
        column, separator, value = text.partition("=")
        if not separator or not column:
            raise ValueError(f"where must be COLUMN=VALUE, such as label=good, got {text!r}")
        if value and column in _NUMBERS:
            try:
                found.setdefault(column, []).append(int(value))
            except ValueError:
                raise ValueError(f"where: {column} must be a whole number, got {value!r}") from None
        else:
            found.setdefault(column, []).append(value or None)
    return found
