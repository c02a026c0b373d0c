"""Two detectors on the same images, as one file that loads nothing and needs no script."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ensemblead.common.files import StrPath, valid_text, write_atomically
from ensemblead.common.warnings import warn
from ensemblead.evaluation.comparing import Compared, ComparedDetector, ComparedImage, ComparedMaps
from ensemblead.evaluation.gallery import Picture, Pictures
from ensemblead.images import read_image
from ensemblead.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    figure,
    number,
    round_numbers,
    sample,
    x_ticks,
    y_ticks,
)
from ensemblead.report.pictures import common_folder, heat_url, photo_url
from ensemblead.report.template import filled, stamp, write_pieces

_SIDE = 320  # pixels of a picture
_RELATIVE = (-2.0, 3.0)  # what the chart of relative scores shows
_LISTED = 300  # rows of the table of changed verdicts that have no picture
_METRICS = (
    ("Image AUROC", "image_auroc"),
    ("Image AP", "image_ap"),
    ("Pixel AUROC", "pixel_auroc"),
    ("AUPRO 0.3", "aupro"),
    ("False alarms", "false_alarm_rate"),
    ("Misses", "miss_rate"),
)
_VERDICTS = {True: "anomalous", False: "normal", None: "no verdict"}


def write_comparison_page(data: Compared, path: StrPath) -> Path:
    """Write the page of a comparison; see `Comparison.to_html`."""
    missing: list[str] = []
    changed = len(data.changed)
    parts: dict[str, str | Iterator[str]] = {
        "title": f"{changed} of {len(data.images):,} verdicts change",
        "facts": _facts(data),
        "notes": _notes(data.notes),
        "models": _models(data),
        "charts": _scatter(data),
        "metrics": _metrics(data),
        "changed": _changed(data, missing),
        "footer": escape(stamp()),
    }
    pieces = filled("comparison.html", parts, styles=("page.css", "comparison.css"))
    target = write_atomically(path, lambda file: write_pieces(pieces, file))
    if missing:
        warn(f"{len(missing)} image(s) could not be read for {target.name}, the first is {missing[0]}")
    return target


def _facts(data: Compared) -> str:
    alarmed = sum(bool(one.new_verdict) for one in data.changed)
    calmed = len(data.changed) - alarmed
    facts = [
        ("Images", f"{len(data.images):,}", "scored by both"),
        ("Normal to anomalous", f"{alarmed:,}", ""),
        ("Anomalous to normal", f"{calmed:,}", ""),
    ]
    if data.has_truth:
        facts.append(("Verdicts mended", f"{data.mended:,}", "wrong before, right now"))
        facts.append(
            ("Verdicts broken", f"{data.broken:,}", f"chance of so uneven a change: {data.chance:.2g}")
        )
    return "".join(
        f'<div class="tile"><dt>{name}</dt><dd><span class="value">{value}</span>'
        f"<small>{more}</small></dd></div>"
        for name, value, more in facts
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    lines = "".join(f"<li>{escape(valid_text(note))}</li>" for note in notes)
    return f'<div class="warnings"><h3>Read this first</h3><ul>{lines}</ul></div>'


def _models(data: Compared) -> str:
    """Both models, each in a column."""
    return "".join(
        f"<div><h3>{title}</h3><dl>{''.join(_model_lines(side))}</dl></div>"
        for title, side in (("Old", data.old), ("New", data.new))
    )


def _model_lines(side: ComparedDetector) -> Iterator[str]:
    yield f"<dt>Detector</dt><dd>{escape(side.name)}</dd>"
    source = f"<small>{escape(side.threshold_source)}</small>" if side.threshold_source else ""
    yield f"<dt>Threshold</dt><dd>{number(side.threshold)}{source}</dd>"
    steps = [
        f"<li>{escape(step.date.replace('T', ' ').replace('Z', ' UTC'))}: {step.action}"
        + (f", {step.images:,} images" if step.images else "")
        + "</li>"
        for step in side.history
    ]
    listed = f"<ol>{''.join(steps)}</ol>" if steps else "unknown"
    yield f"<dt>History</dt><dd>{listed}</dd>"
    parents = [step.parent for step in side.history if step.parent is not None]
    if side.checksum is not None:
        yield f"<dt>Checksum</dt><dd><code>{side.checksum[:12]}</code></dd>"
    if parents:
        yield f"<dt>Made from</dt><dd><code>{parents[-1][:12]}</code></dd>"


# Scores


def _scatter(data: Compared) -> str:
    """Old scores against new ones, and the same relative to the thresholds."""
    raw = [(one.old_score, one.new_score) for one in data.images]
    drawn = [
        _scatter_chart("Scores", data, raw, (data.old.threshold, data.new.threshold), "score"),
    ]
    relative = [(one.old_relative, one.new_relative) for one in data.images]
    if np.isfinite(relative).all():
        clipped = [(_clipped(a), _clipped(b)) for a, b in relative]
        beyond = sum(pair != shown for pair, shown in zip(relative, clipped, strict=True))
        title = "Relative to the thresholds"
        drawn.append(_scatter_chart(title, data, clipped, (0.0, 0.0), "relative score", beyond))
    return f'<div class="charts">{"".join(drawn)}</div>'


def _clipped(value: float) -> float:
    return min(max(value, _RELATIVE[0]), _RELATIVE[1])


def _scatter_chart(
    title: str,
    data: Compared,
    places: Sequence[tuple[float, float]],
    limits: tuple[float, float],
    unit: str,
    beyond: int = 0,
) -> str:
    x, y = (_range([pair[side] for pair in places], limits[side]) for side in (0, 1))
    axes = Axes(x, y)
    kinds = [_kind(one) for one in data.images]
    body, legend = "", []
    for kind, words in (
        ("normal", "normal" if data.has_truth else "verdict stays"),
        ("defective", "defective"),
        ("changed", "verdict changes"),
    ):
        chosen = [pair for pair, own in zip(places, kinds, strict=True) if own == kind]
        if chosen:
            marks = "".join(f"M{axes.place_x(a):.1f} {axes.place_y(b):.1f}h0" for a, b in chosen)
            body += f'<path class="dot {kind}" d="{marks}"/>'
            legend.append(f"{_dot(kind)} {words} <b>{len(chosen):,}</b>")
    if not math.isnan(limits[0]):
        body += f'<path class="curve threshold" d="M{axes.place_x(limits[0]):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
    if not math.isnan(limits[1]):
        body += f'<path class="curve threshold" d="M{LEFT} {axes.place_y(limits[1]):.1f}H{WIDTH - RIGHT}"/>'
    legend.append(f"{sample('threshold')} thresholds")
    if beyond:
        legend.append(f"{beyond:,} images beyond {_RELATIVE[0]:g} or {_RELATIVE[1]:g} are drawn at the edge")
    ticks = [(tick, f"{tick:g}") for tick in round_numbers(*axes.y)]
    grid = x_ticks(axes, round_numbers(*axes.x), f"old {unit}") + y_ticks(axes, ticks, f"new {unit}")
    return figure(title, grid + body, legend)


def _range(values: Sequence[float], limit: float) -> tuple[float, float]:
    known = [*values, *([] if math.isnan(limit) else [limit])]
    low, high = min(known), max(known)
    margin = 0.06 * (high - low) or max(1e-3, abs(high) * 0.1)
    return low - margin, high + margin


def _kind(image: ComparedImage) -> str:
    return "changed" if image.is_changed else "defective" if image.label else "normal"


def _dot(kind: str) -> str:
    mark = f'<path class="dot {kind}" d="M11 4h0"/>'
    return f'<svg class="sample" viewBox="0 0 22 8" aria-hidden="true">{mark}</svg>'


# Metrics


def _metrics(data: Compared) -> str:
    if data.old.row is None or data.new.row is None:
        return ""
    lines = []
    for title, name in _METRICS:
        before, after = (getattr(row, name) for row in (data.old.row, data.new.row))
        if math.isnan(before) and math.isnan(after):
            continue
        change = after - before
        cells = "".join(
            f"<td>{number(value)}{_interval(side, name)}</td>"
            for value, side in ((before, data.old), (after, data.new))
        )
        shown = "&ndash;" if math.isnan(change) else f"{change:+.4f}"
        lines.append(f'<tr><th scope="row">{title}</th>{cells}<td>{shown}</td></tr>')
    head = "".join(f'<th scope="col">{title}</th>' for title in ("", "Old", "New", "Change"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return (
        '<section aria-labelledby="metrics"><h2 id="metrics">Metrics</h2>'
        f'<div class="scroll" role="region" aria-labelledby="metrics" tabindex="0">{table}</div></section>'
    )


def _interval(side: ComparedDetector, name: str) -> str:
    pair = side.intervals.get(name)
    return "" if pair is None else f"<small>{number(pair[0])}&ndash;{number(pair[1])}</small>"


# Changed verdicts


def _changed(data: Compared, missing: list[str]) -> Iterator[str]:
    if not data.changed:
        yield '<p class="muted">No verdict changes.</p>'
        return
    base = common_folder(one.path for one in data.changed)
    shown = {data.images[maps.index].path: maps for maps in data.maps}
    yield '<ul class="changes">'
    for image in data.changed:
        if image.path in shown:
            yield _card(data, image, shown[image.path], base, missing)
    yield "</ul>"
    others = [image for image in data.changed if image.path not in shown]
    if others:
        yield _table(others[:_LISTED], base)
    if len(others) > _LISTED:
        yield f'<p class="muted">{len(others) - _LISTED:,} more are in the CSV file.</p>'


def _card(data: Compared, image: ComparedImage, maps: ComparedMaps, base: str, missing: list[str]) -> str:
    assert data.frames is not None
    pictures = _pictures(image.path, maps, data.frames, missing)
    name = escape(valid_text(_name(image, base)))
    truth = "" if image.label is None else f" · {escape(image.defect_type or '')}"
    outcome = _outcome(image)
    style = " error" if outcome.endswith("broken") else ""
    known = " · learned by the new model" if image.new_knows else ""
    return (
        f'<li class="change"><h3>{name}</h3><p class="verdict{style}">{outcome}{truth}{known}</p>'
        f'<div class="three">{pictures}</div></li>\n'
    )


def _pictures(path: str, maps: ComparedMaps, frames: tuple[Pictures, Pictures], missing: list[str]) -> str:
    """The photograph, and the maps of both detectors over it."""
    try:
        photo = read_image(path, bits=frames[0].bits)
    except (OSError, ValueError, MemoryError):
        missing.append(path)
        return '<p class="gone">The image could not be read.</p>'

    def heat(picture: Picture, shown: Pictures) -> str:
        return heat_url(photo, picture, shown, _SIDE)

    urls = (photo_url(photo, _SIDE), heat(maps.old, frames[0]), heat(maps.new, frames[1]))
    return "".join(
        f'<figure><span class="stage"><img src="{url}" alt=""></span>'
        f"<figcaption>{words}</figcaption></figure>"
        for url, words in zip(urls, ("image", "old", "new"), strict=True)
    )


def _outcome(image: ComparedImage) -> str:
    change = (
        f"{_VERDICTS[image.old_verdict]} ({image.old_score:.4g}) to {_VERDICTS[image.new_verdict]} "
        f"({image.new_score:.4g})"
    )
    if image.label is None:
        return change
    return f"{change}: {'mended' if image.new_verdict == image.label else 'broken'}"


def _table(images: Sequence[ComparedImage], base: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(valid_text(_name(one, base)))}</th>'
        f"<td>{escape(_outcome(one))}</td></tr>"
        for one in images
    )
    return (
        '<div class="scroll" role="region" aria-label="Changed verdicts without pictures" tabindex="0">'
        f'<table><thead><tr><th scope="col">Image</th><th scope="col">Verdict</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _name(image: ComparedImage, base: str) -> str:
    return Path(os.path.relpath(image.path, base)).as_posix()
