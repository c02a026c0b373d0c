"""`ensemblead duplicates`: images of an index that nearly repeat one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.shared import Json
from ensemblead.common.extras import require
from ensemblead.common.files import csv_line


def command(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that index wrote.")],
    threshold: Annotated[
        float, typer.Option("--threshold", help="The least cosine similarity of a pair, -1 to 1.")
    ] = 0.98,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print lines of group, path.")] = False,
) -> None:
    """Find the groups of images in an index that nearly repeat one another.

    Run it before a training set is split: copies on both sides of a split make a model seem better than it
    is. Images that a chain of pairs connects are one group; keep a group on one side.
    """
    if as_json and as_csv:
        raise ValueError("--json and --csv exclude one another")
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead duplicates")
        from ensemblead.retrieval.index import ImageIndex

        clock = Clock()
        with ImageIndex.open(index) as opened:
            images = len(opened)
            pairs = opened.duplicates(threshold, progress=bars)
    groups = connected(pairs)
    if as_json:
        counts = {"images": images, "pairs": sum(map(len, pairs.values())), "seconds": round(clock(), 3)}
        found = {"duplicates": pairs, "groups": groups, "warnings": warned}
        print_json({"index": str(index), "threshold": threshold, **counts, **found})
    elif as_csv:
        lines = [csv_line((number, path)) for number, group in enumerate(groups, start=1) for path in group]
        typer.echo(csv_line(("group", "path")) + "".join(lines), nl=False)
    else:
        typer.echo(_described(groups, images, threshold))


def connected(pairs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Groups of paths that chains of pairs connect, in the order in which they are first named."""
    first = {path: path for one, others in pairs.items() for path in (one, *others)}  # in its group, so far

    def root(path: str) -> str:
        while first[path] != path:
            first[path] = path = first[first[path]]
        return path

    for one, others in pairs.items():
        for other in others:
            first[root(other)] = root(one)
    groups: dict[str, list[str]] = {}
    for path in first:
        groups.setdefault(root(path), []).append(path)
    return list(groups.values())


def _described(groups: Sequence[Sequence[str]], images: int, threshold: float) -> str:
    lines = [line for group in groups for line in (group[0], *(f"  {path}" for path in group[1:]))]
    inside = sum(map(len, groups))
    lines.append(
        f"{inside} of {images} images are in {len(groups)} groups of similarity {threshold:g} and more"
    )
    if 2 * max(map(len, groups), default=0) > images:
        lines.append(
            "most of them are in one group: these networks see them as nearly alike; raise --threshold"
        )
    return "\n".join(lines)
