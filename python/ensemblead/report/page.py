"""`report.html`: everything that was measured, and the images, in one file that loads nothing.

Tables and curves are written here and read without scripts; the images are data that the page's script shows,
sorts and filters. Text from file names is escaped, and the page's policy (Content-Security-Policy)
lets no other script or style run than its own two, by their hashes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ensemblead.common.files import StrPath, write_atomically
from ensemblead.common.warnings import warn
from ensemblead.evaluation.gallery import Pictures
from ensemblead.evaluation.results import Results
from ensemblead.report.charts import charts
from ensemblead.report.made_by import made_by
from ensemblead.report.pictures import COLORS, common_folder, describe_item
from ensemblead.report.similar import Neighbours
from ensemblead.report.tables import (
    decisions,
    exactness,
    has_types,
    metrics,
    thresholds,
    tiles,
    types,
    warning_list,
)
from ensemblead.report.template import filled, json_in_html, stamp, write_pieces

if TYPE_CHECKING:
    from ensemblead.retrieval.index import ImageIndex

_SCRIPTS = ("dom.js", "overlay.js", "sorting.js", "evaluation.js", "gallery.js")


def write_page(report: Results, path: StrPath, max_images: int, similar: ImageIndex | None = None) -> None:
    """Write the report as one file, under a temporary name that is then renamed.

    Findings (images that are defective, or called so) have the most similar images of the index `similar`.
    One photograph is in memory at a time. A photograph or mask that is gone or cannot be read is left out;
    the page says so where it would be, and a warning counts them.
    """
    if isinstance(max_images, bool) or not isinstance(max_images, int):
        raise TypeError(f"max_images must be an int, got {type(max_images).__name__}")
    if max_images < 0:
        raise ValueError(f"max_images must be at least 0, got {max_images}")
    missing: list[str] = []
    pieces = filled("page.html", _parts(report, max_images, similar, missing), scripts=_SCRIPTS)
    target = write_atomically(path, lambda file: write_pieces(pieces, file))
    if missing:
        files = f"{len(missing)} image(s) or mask(s)"
        warn(f"{files} could not be read for {target.name}, the first is {missing[0]}")


def _parts(
    report: Results, max_images: int, similar: ImageIndex | None, missing: list[str]
) -> dict[str, str | Iterator[str]]:
    chosen = _choose(report, max_images)
    neighbours = None if similar is None else Neighbours.of(similar, _findings(report, chosen))
    if neighbours is not None:
        every = (image for row in report.rows for image in report.details_of(row).images)
        neighbours.warn_of_defective(image.path for image in every if image.label)
    title = str(report.settings.get("dataset") or report.rows[0].category)
    if "detector" in report.settings:
        title = f"{report.settings['detector']} on {title}"
    return {
        "cells": escape(str(report.settings.get("cells", ""))),
        "title": escape(title),
        "lead": _lead(report),
        "tiles": tiles(report),
        "warnings": warning_list(report),
        "metrics": metrics(report),
        "decisions": decisions(report),
        "thresholds": thresholds(report) + made_by(report),
        "exactness": exactness(report) + ("" if neighbours is None else neighbours.note()),
        "curves_title": "Types of defect and curves" if has_types(report) else "Curves",
        "curves": _curves(report),
        "selection": _selection(report, chosen),
        "footer": _footer(report),
        "data": _data(report, chosen, neighbours, missing),
    }


def page_cells(path: Path) -> str | None:
    """The setting "cells" of the report that a page shows; None for a file without one."""
    with path.open("rb") as file:
        found = re.search(rb'<meta name="cells" content="(\w*)">', file.read(4096))
    return None if found is None else found[1].decode()


def _choose(report: Results, most: int) -> list[tuple[int, int]]:
    """Up to `most` (category, place among its kept pictures): errors first, categories taking turns."""
    ranked = []
    for number, row in enumerate(report.rows):
        details = report.details_of(row)
        for place, picture in enumerate(details.pictures.kept if details.pictures else ()):
            ranked.append((not details.images[picture.index].is_error, place, number))
    return [(number, place) for _, place, number in sorted(ranked)[:most]]


def _findings(report: Results, chosen: Sequence[tuple[int, int]]) -> list[str]:
    """The paths of chosen images that are defective, or called so."""
    found = []
    for number, place in chosen:
        details = report.details_of(report.rows[number])
        assert details.pictures is not None
        image = details.images[details.pictures.kept[place].index]
        if image.label or image.is_anomalous:
            found.append(image.path)
    return found


def _data(
    report: Results,
    chosen: Sequence[tuple[int, int]],
    neighbours: Neighbours | None,
    missing: list[str],
) -> Iterator[str]:
    """The JSON that the script reads, piece by piece."""
    categories = []
    for row in report.rows:
        pictures = report.details_of(row).pictures
        categories.append(
            {
                "name": row.category,
                "scale": list(pictures.scale) if pictures else None,
                "contour": _known(row.pixel_f1_threshold),
                "threshold": _known(row.threshold),
                "best_f1_threshold": _known(row.image_f1_threshold),
            }
        )
    yield f'{{"categories":{json_in_html(categories)},"colors":{json_in_html(COLORS)},"items":['
    bases = {
        number: common_folder(image.path for image in report.details_of(report.rows[number]).images)
        for number in {number for number, _ in chosen}
    }
    for position, (number, place) in enumerate(chosen):
        details = report.details_of(report.rows[number])
        assert isinstance(details.pictures, Pictures)
        picture = details.pictures.kept[place]
        item = describe_item(details, picture, bases[number], missing)
        if neighbours is not None:
            item.update(neighbours.described(details.images[picture.index].path))
        yield ("," if position else "") + json_in_html({"category": number, **item})
    yield '],"similar":['
    for position, photo in enumerate(neighbours.photos(missing) if neighbours is not None else ()):
        yield ("," if position else "") + json_in_html(photo)
    yield "]}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _lead(report: Results) -> str:
    row = report.summary
    parts = [
        f"{len(report.rows)} categories" if len(report.rows) > 1 else "",
        _learned(report),
        f"{row.num_normal:,} normal and {row.num_anomalous:,} defective test images",
    ]
    return " · ".join(part for part in parts if part)


def _learned(report: Results) -> str:
    """How many images the model has learned, where one measured all; else those of the data set."""
    counts = {report.details_of(row).made_by.get("learned_images") for row in report.rows}
    count = counts.pop() if len(counts) == 1 else None
    if count is not None:
        return f"a model of {count:,} images"
    return f"{report.summary.num_train:,} training images" if report.summary.num_train else ""


def _curves(report: Results) -> str:
    sections = []
    for number, row in enumerate(report.rows):
        drawn = charts(row, report.details_of(row))
        inner = f'<div class="charts">{drawn}</div>' if drawn else '<p class="muted">No curves were kept.</p>'
        inner = types(report, number) + inner
        if len(report.rows) == 1:
            return inner
        first = " open" if number == 0 else ""
        head = f"<summary>{escape(row.category)}</summary>"
        sections.append(f'<details class="curves" id="curves-{number}"{first}>{head}{inner}</details>')
    return "\n".join(sections)


def _selection(report: Results, chosen: Sequence[tuple[int, int]]) -> str:
    """Which images are on the page, and how to have more."""
    images = [image for details in report.details.values() for image in details.images]
    if not chosen:
        return "No images were kept (<code>evaluate(..., gallery=N)</code>, <code>--gallery N</code>)."
    if len(chosen) == len(images):
        return f"All {len(images):,} test images."
    errors = sum(image.is_error for image in images)
    shown = 0
    for number, place in chosen:
        details = report.details_of(report.rows[number])
        assert details.pictures is not None
        shown += details.images[details.pictures.kept[place].index].is_error
    return (
        f"{len(chosen):,} of {len(images):,} test images, to keep this file small: {shown:,} of "
        f"{errors:,} errors (false alarms and misses), then normal images with the highest scores and "
        "defective ones with the lowest, taking turns. More: <code>--gallery N</code>, or "
        "<code>evaluate(..., gallery=N)</code> and <code>to_html(..., max_images=N)</code>."
    )


def _footer(report: Results) -> str:
    settings = report.settings
    parts = [stamp()]
    if settings.get("bootstrap") and {"confidence", "seed"} <= set(settings):
        parts.append(
            f"{100 * settings['confidence']:g} % intervals over images, {settings['bootstrap']} bootstrap "
            f"replicates, seed {settings['seed']}"
        )
    return escape(" · ".join(parts))
