"""The tables and texts of `report.html`, as HTML; text from data sets is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ensemblead.evaluation.by_type import count_errors, missed, worst_first
from ensemblead.evaluation.results import Results, Row
from ensemblead.report.charts import number

_METRICS = (
    ("Image AUROC", "image_auroc"),
    ("Image AP", "image_ap"),
    ("Image F1-max", "image_f1_max"),
    ("Pixel AUROC", "pixel_auroc"),
    ("Pixel AP", "pixel_ap"),
    ("AUPRO 0.3", "aupro"),
    ("AUPRO 0.05", "aupro_005"),
)


def tiles(report: Results) -> str:
    """The numbers that decide, large."""
    row = report.summary
    mean = "mean; " if len(report.rows) > 1 else ""
    shown = [
        ("Image AUROC", number(row.image_auroc), _spread(report, row, "image_auroc")),
        ("Pixel AUROC", number(row.pixel_auroc), _spread(report, row, "pixel_auroc")),
        ("AUPRO", number(row.aupro), _spread(report, row, "aupro")),
        ("False alarms", _percent(row.false_alarm_rate), mean + _share(report, report.rows, False)),
        ("Misses", _percent(row.miss_rate), mean + _share(report, report.rows, True)),
    ]
    return "".join(
        f'<div class="tile"><dt>{name}</dt><dd><span class="value">{value}</span> '
        f'<span class="muted">{note}</span></dd></div>'
        for name, value, note in shown
    )


def warning_list(report: Results) -> str:
    """The report's warnings, if there are any."""
    if not report.warnings:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in report.warnings)
    return f'<div class="warnings" role="note"><h3>Know before you read on</h3><ul>{lines}</ul></div>'


def metrics(report: Results) -> str:
    """A line per category and the mean; confidence intervals below the values."""
    lines = []
    for position, row in enumerate(report.all_rows):
        found = report.details_of(row).intervals
        cells = []
        for _, name in _METRICS:
            pair = found.get(name)
            below = "" if pair is None else f"<small>{number(pair[0])}&ndash;{number(pair[1])}</small>"
            cells.append(f"<td>{number(getattr(row, name))}{below}</td>")
        lines.append(_line(report, position, row, cells))
    return _table(["Category", *(title for title, _ in _METRICS)], lines) + _inspected(report)


def _inspected(report: Results) -> str:
    """What regions leave of images and defects, a line per category that has one."""
    several = len(report.rows) > 1
    lines = [
        (f"{row.category}: " if several else "") + report.details_of(row).inspected
        for row in report.rows
        if report.details_of(row).inspected
    ]
    return "".join(f'<p class="muted">{escape(line)}</p>' for line in lines)


def decisions(report: Results) -> str:
    """A line per category and the mean: the model's threshold and its errors; times and memory."""
    titles = ["Threshold", "False alarms", "Misses", "False regions", "Region recall"]
    titles += ["Fit, s", "Predict, s", "Images/s", "Peak memory, MB"]
    lines = []
    for position, row in enumerate(report.all_rows):
        of = [row] if row in report.rows else report.rows
        cells = [
            f"<td>{number(row.threshold)}</td>",
            f"<td>{_percent(row.false_alarm_rate)}{_small(_share(report, of, False))}</td>",
            f"<td>{_percent(row.miss_rate)}{_small(_share(report, of, True))}</td>",
            f"<td>{number(row.false_regions, 2)}</td>",
            f"<td>{_percent(row.region_recall)}</td>",
            f"<td>{number(row.fit_seconds, 1)}</td>",
            f"<td>{number(row.predict_seconds, 1)}</td>",
            f"<td>{number(row.images_per_second, 1)}</td>",
            f"<td>{_whole(row.peak_memory_mb)}</td>",
        ]
        lines.append(_line(report, position, row, cells))
    return _table(["Category", *titles], lines)


def types(report: Results, position: int) -> str:
    """A line per type of defect of the category at `position`, the worst first, under a title; "" if it has
    fewer than two. The page's script makes titles of columns sort and names of types filter.
    """
    category = report.rows[position].category
    details = report.details_of(report.rows[position])
    if len(details.types) < 2:
        return ""
    lines = []
    for row in worst_first(details.types):
        place = f'data-category="{position}" data-kind="{escape(row.defect_type)}"'
        share = missed(details, row.defect_type)
        below = f'<small {place} data-outcome="miss">{share}</small>' if share else ""
        cells = [
            f'<td data-value="{row.num_images}">{row.num_images:,}</td>',
            *(_sortable(value, number(value)) for value in (row.image_auroc, row.pixel_auroc, row.aupro)),
            _sortable(row.miss_rate, _percent(row.miss_rate) + below),
        ]
        name = escape(row.defect_type).replace("_", "_<wbr>")
        lines.append(f'<tr><th scope="row" {place}>{name}</th>{"".join(cells)}</tr>')
    table = _table(["Type", "Images", "Image AUROC", "Pixel AUROC", "AUPRO 0.3", "Misses"], lines)
    label = escape(f"Types of defect, {category}")
    return (
        "<h3>By type of defect</h3>"
        f'<div class="scroll types" role="region" aria-label="{label}" tabindex="0">{table}</div>'
    )


def has_types(report: Results) -> bool:
    """Whether some category has a table of types."""
    return any(len(report.details_of(row).types) > 1 for row in report.rows)


def _sortable(value: float, text: str) -> str:
    return f'<td data-value="{"" if math.isnan(value) else value}">{text}</td>'


def thresholds(report: Results) -> str:
    """Where the thresholds come from: one sentence for all categories that share it."""
    by_source: dict[str, list[str]] = {}
    for row in report.rows:
        source = report.details_of(row).threshold_source
        by_source.setdefault(source or "none: nothing was called anomalous or normal", []).append(
            row.category
        )
    if len(by_source) == 1:
        return f'<p class="muted">Threshold: {escape(next(iter(by_source)))}.</p>'
    lines = "".join(
        f"<li>{escape(', '.join(categories))}: {escape(source)}</li>"
        for source, categories in by_source.items()
    )
    return (
        f'<details class="notes"><summary>Where the thresholds come from</summary><ul>{lines}</ul></details>'
    )


def exactness(report: Results) -> str:
    """More to explain: what the intervals are, and how exact the pixel metrics are."""
    terms = ""
    if report.settings.get("bootstrap") and "confidence" in report.settings:
        share = f"{100 * report.settings['confidence']:g} %"
        terms += (
            "<dt>Intervals</dt><dd>below a value: where it lies in "
            f"{share} of test sets drawn anew from these images.</dd>"
        )
    if has_types(report):
        terms += (
            "<dt>By type of defect</dt><dd>the images of one type together with all good ones, as if there "
            "were no other defects: a category&rsquo;s numbers are no means over its types. The worst first, "
            "by the lower one of image and pixel AUROC.</dd>"
        )
    bounds = [
        bound
        for details in report.details.values()
        if details.exact is False
        for bound in (*details.error_bounds.values(), *(row.error_bound for row in details.types))
        if not math.isnan(bound)
    ]
    if bounds:
        terms += (
            "<dt>Exactness</dt><dd>pixel metrics were computed in streaming mode: "
            f"off by at most {max(bounds):.2g}.</dd>"
        )
    return terms


def _table(titles: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _line(report: Results, position: int, row: Row, cells: Sequence[str]) -> str:
    name = escape(row.category)
    if position >= len(report.rows):
        return f'<tr class="mean"><th scope="row">{name}</th>{"".join(cells)}</tr>'
    if len(report.rows) > 1:
        name = f'<a href="#curves-{position}">{name}</a>'
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _spread(report: Results, row: Row, metric: str) -> str:
    if len(report.rows) > 1:
        return f"mean of {sum(not math.isnan(getattr(one, metric)) for one in report.rows)} categories"
    pair = report.details_of(row).intervals.get(metric)
    if pair is None:
        return ""
    confidence = report.settings.get("confidence")
    share = "" if confidence is None else f"{100 * confidence:g} %: "
    return f"{share}{number(pair[0])}&ndash;{number(pair[1])}"


def _share(report: Results, rows: Sequence[Row], label: bool) -> str:
    """How many of the images with that label were judged wrongly."""
    several = " in all" if len(rows) > 1 else ""
    images = [one for row in rows for one in report.details_of(row).images if one.label is label]
    share = count_errors(images)
    return share and share + several


def _percent(value: float) -> str:
    return "&ndash;" if math.isnan(value) else f"{100 * value:.1f} %"


def _whole(value: float) -> str:
    return "&ndash;" if math.isnan(value) else f"{value:,.0f}"


def _small(text: str) -> str:
    return f"<small>{text}</small>" if text else ""
