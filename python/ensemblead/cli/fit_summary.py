"""What `ensemblead fit` prints of the model it has made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensemblead.cli.models import describe_learned
from ensemblead.common.files import valid_text
from ensemblead.common.validation import some_of

_NAMED = 3  # of the images left out
_FEW = 20  # of fewer images it is said what they tell of false alarms


def show_summary(summary: dict[str, Any]) -> None:
    """The model in a table."""
    console = Console()
    table = Table("backbone", "layers", "learned", "dimensions", box=None, pad_edge=False)
    for member in summary["members"]:
        cells = member["backbone"] or "-", " ".join(member["layers"]), describe_learned(member)
        table.add_row(*map(escape, cells), f"{member.get('dimensions', '-')}")
    if any(member["backbone"] or member["learned"] for member in summary["members"]):
        console.print(table)
    for tiles in {str(member["tiles"]): member["tiles"] for member in summary["members"]}.values():
        if tiles is not None:
            size, scales = "x".join(map(str, tiles["tile_size"])), tiles["scales"]
            grids = " and ".join(f"{rows} x {columns}" for rows, columns in tiles["grids"])
            at = f" at scale{'s' * (len(scales) > 1)} {' and '.join(f'{scale:g}' for scale in scales)}"
            at = "" if list(scales) == [1.0] else at
            console.print(f"{grids} tiles of {size}{at}; counts are sums over them", highlight=False)
    if any(member["pad_to_grid"] for member in summary["members"]):
        console.print("images are padded to the next size that the network takes", highlight=False)
    for line in dict.fromkeys(_changed(member) for member in summary["members"] if member["augment"]):
        console.print(line, highlight=False)
    if summary["below"]:
        console.print(
            f"{summary['below']} of the images lie in folders below, or in linked ones", highlight=False
        )
    if summary["ignored"]:
        console.print(escape(valid_text(summary["ignored"])), highlight=False, soft_wrap=True)
    if summary["excluded"]:
        names = some_of([os.path.basename(path) for path in summary["excluded"]], 3)
        console.print(
            escape(valid_text(f"{len(summary['excluded'])} images excluded ({names})")),
            highlight=False,
            soft_wrap=True,
        )
    if summary["left_out"]:
        line = describe_left_out(summary["left_out"], summary["images"])
        console.print(escape(line), highlight=False, soft_wrap=True)
    if summary["inspected_share"] < 0.995:
        share = f"{summary['inspected_share']:.0%}"
        rest = "lies outside of the region" if summary["region"] else "is cropped away"
        console.print(f"{share} of a photograph is inspected: the rest {rest}", highlight=False)
    # Fresh images have set the threshold in place of them.
    is_guaranteed = summary["false_alarm_rate_is"] == "guaranteed"
    deciding = [] if is_guaranteed else summary["deciding_images"]
    if summary["odd_images"]:
        head = "training images least like the others, with their scores (are these parts good?):"
        console.print(head, soft_wrap=True)
    for odd in summary["odd_images"]:
        mark = "  (decides the threshold)" if odd in deciding else ""
        line = f"  {escape(valid_text(odd['path']))}  {odd['score']:.4g}{mark}"
        console.print(line, highlight=False, soft_wrap=True)
    if deciding:
        which, without = "it" if len(deciding) == 1 else "both", summary["threshold_without_deciding"]
        console.print(f"without {which} the threshold is {without:.4g}", highlight=False)
    by = f"{summary['threshold_images']} {'fresh images' if is_guaranteed else 'of them'}"
    console.print(
        f"{summary['learned']} images in {summary['seconds']:.1f} s; threshold {summary['threshold']:.4g} by "
        f"{by}, false alarms {summary['false_alarm_rate']:.2g} ({summary['false_alarm_rate_is']})\n"
        f"model: {escape(summary['model'])}",
        highlight=False,
        soft_wrap=True,
    )
    if summary["rate_in_words"] and summary["threshold_images"] < _FEW:
        console.print(escape(summary["rate_in_words"]), highlight=False, soft_wrap=True)
    if not summary["include_backbone"]:
        console.print(
            "The networks' weights are not in it, but read from where they are now: for another machine, fit "
            "with --include-backbone.",
            highlight=False,
            soft_wrap=True,
        )


def _changed(member: Mapping[str, Any]) -> str:
    """How images were changed, and, where not all detectors of tiles have chosen so, of how many."""
    some, count = member.get("augmented_tiles", (1, 1))
    where = "" if some == count else f", by {some} of {count} detectors of tiles"
    return f"learned with changed copies: {' and '.join(member['augment'])}{where}"


def describe_left_out(found: Sequence[Mapping[str, Any]], num_images: int) -> str:
    """A line on the images that a robust fit has not learned, the oddest first."""
    names = some_of((valid_text(str(one["path"])) for one in found), _NAMED)
    partly = sum(one["partly"] for one in found)
    some = f", {partly} of them only by some members or tile locations" if partly else ""
    return f"left out {len(found)} of {num_images} images, as odd among the others{some}: {names}"


def show_coverage(summary: dict[str, Any]) -> None:
    """What is known of memory banks, in a line each."""
    console = Console()
    banks = [member for member in summary["members"] if member.get("covering_radius") is not None]
    for number, member in enumerate(banks):
        name = f"memory bank {number}" if len(banks) > 1 else "memory bank"
        known = "not certified"
        if (factor := member["certified_factor"]) is not None:
            known = f"certified: at most {factor:.3g} times the least that as many patches can do"
        console.print(
            f"{name}: every patch learned lies within {member['covering_radius']:.4g} of it; {known}",
            highlight=False,
            soft_wrap=True,
        )
