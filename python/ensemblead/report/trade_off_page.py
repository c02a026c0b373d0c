"""Misses of known defects against false alarms: a table, and a page that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensemblead.common.files import StrPath, csv_line, write_atomically
from ensemblead.evaluation.results import Details, ImageResult, Row
from ensemblead.evaluation.thresholds import TradeOff, TradeOffPoint
from ensemblead.report.charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    Axes,
    drawn_curve,
    figure,
    number,
    round_numbers,
    sample,
    scores_chart,
    x_ticks,
    y_ticks,
)
from ensemblead.report.template import filled, stamp, write_pieces

Floats = npt.NDArray[np.float64]
_ROWS = 40  # of the table of thresholds on the page
_NAMES = {
    "model": "The model's",
    "proposed": "Proposed",
    "no miss": "No defect missed",
    "no false alarm": "No false alarm here",
}
_ORIGINS = {
    "calibrated": "fresh images that the model has not learned",
    "leave_one_out": "training images, each scored without itself",
    "held_out": "training images that were held out of the training",
}
_COLUMNS = ("threshold", "false_alarms", "false_alarm_rate", "false_alarm_low", "false_alarm_high")
_MISS_COLUMNS = ("misses", "miss_rate", "miss_low", "miss_high")


def write_trade_off_csv(found: TradeOff, path: StrPath) -> Path:
    """One line per threshold, ascending: counts, rates, and the ends of their intervals."""
    lines = [csv_line([*_COLUMNS, *_MISS_COLUMNS])]
    for point in found.points():
        (low, high), (least, most) = point.false_alarm_interval, point.miss_interval
        cells = (f"{point.threshold:.9g}", point.false_alarms, point.false_alarm_rate, low, high)
        lines.append(csv_line([*cells, point.misses, point.miss_rate, least, most]))
    return write_atomically(path, "".join(lines))


def write_trade_off_page(found: TradeOff, path: StrPath, *, note: str = "") -> Path:
    """Write a page of what thresholds do to normal and to defective images, and of the one proposed.

    Args:
        note: what a reader must know beside, as which model it is.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from ensemblead.evaluation import TradeOff
        >>> found = TradeOff(np.array([1.0, 1.5, 2.0]), np.array([1.75, 3.0]), threshold=2.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "Proposed" in write_trade_off_page(found, f"{folder}/page.html").read_text()
        True
    """
    proposal = found.proposal
    parts = {
        "title": f"Threshold {number(proposal.threshold)} is proposed",
        "rule": escape(f"It has {found.rule()}."),
        "note": f'<p class="lead">{escape(note)}</p>' if note else "",
        "images": (
            f"{len(found.normal):,} normal images ({_ORIGINS.get(found.origin, escape(found.origin))}) and "
            f"{len(found.defective):,} images of known defects. Intervals are those of "
            f"{100 * found.confidence:g} %, for a threshold that was chosen beforehand."
        ),
        "notable": _notable(found),
        "charts": f'<div class="charts">{_rates(found)}{_scores(found)}</div>',
        "table": _table([("", point) for point in _thinned(found)], found, titled=False),
        "footer": escape(stamp()),
    }
    pieces = filled("trade_off.html", parts, styles=("page.css", "trade_off.css"))
    return write_atomically(path, lambda file: write_pieces(pieces, file))


def _notable(found: TradeOff) -> str:
    return _table([(_NAMES[name], point) for name, point in found.notable().items()], found, titled=True)


def _thinned(found: TradeOff) -> list[TradeOffPoint]:
    """So many points as a page shows, evenly spread over the ranks of the scores."""
    thresholds = found.thresholds
    chosen = np.unique(np.linspace(0, len(thresholds) - 1, _ROWS).round().astype(int))
    return found.points(thresholds[chosen])


def _table(rows: Sequence[tuple[str, TradeOffPoint]], found: TradeOff, *, titled: bool) -> str:
    lines = []
    for name, point in rows:
        value = number(point.threshold)
        head = f'<th scope="row">{name}</th><td>{value}</td>' if titled else f'<th scope="row">{value}</th>'
        lines.append(
            f"<tr>{head}{_cell(point.false_alarms, len(found.normal), point.false_alarm_interval)}"
            f"{_cell(point.misses, len(found.defective), point.miss_interval)}</tr>"
        )
    titles = [*([""] if titled else []), "Threshold", "False alarms", "Misses"]
    cells = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _cell(count: int, total: int, interval: tuple[float, float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in interval)
    rate = f"{100 * count / total:.1f} %"
    return f"<td>{rate}<small>{count:,} of {total:,}<br>{low}&ndash;{high} %</small></td>"


def _rates(found: TradeOff) -> str:
    """Both rates at every threshold, with their intervals."""
    # The rates change at the scores, and are level in between.
    thresholds = np.unique(np.concatenate([found.normal, found.defective])).astype(np.float64)
    points = found.points(thresholds)
    low, high = float(thresholds[0]), float(thresholds[-1])
    margin = 0.04 * (high - low) or 1.0
    axes = Axes((low - margin, high + margin), (0.0, 1.0))
    body = ""
    curves = (
        ("second", [one.false_alarm_rate for one in points], [one.false_alarm_interval for one in points]),
        ("first", [one.miss_rate for one in points], [one.miss_interval for one in points]),
    )
    for style, rates, intervals in curves:
        ends = np.array(intervals, np.float64)
        body += _band(axes, thresholds, ends[:, 0], ends[:, 1], style)
        body += drawn_curve(axes, _stepped(thresholds, np.array(rates, np.float64)), style)
    legend = [f"{sample('second')} false alarms", f"{sample('first')} misses"]
    for style, words, value in (
        ("threshold", "threshold of the model", found.threshold),
        ("proposal", "proposed", found.proposal.threshold),
    ):
        if axes.x[0] <= value <= axes.x[1]:
            body += f'<path class="curve {style}" d="M{axes.place_x(value):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
            legend.append(f"{sample(style)} {words} <b>{number(value)}</b>")
    grid = x_ticks(axes, round_numbers(*axes.x), "threshold")
    grid += y_ticks(axes, [(0.0, "0"), (0.5, "0.5"), (1.0, "1")], "rate")
    return figure("Rates by threshold", grid + body, legend)


def _stepped(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """A curve that goes level until the next point."""
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def _band(axes: Axes, x: Floats, low: Floats, high: Floats, style: str) -> str:
    places, upper = _stepped(x, high)
    _, lower = _stepped(x, low)
    outline = [*zip(places, upper, strict=True), *zip(places[::-1], lower[::-1], strict=True)]
    if len(outline) < 4:
        return ""
    drawn = "L".join(f"{axes.place_x(float(a)):.1f} {axes.place_y(float(b)):.1f}" for a, b in outline)
    return f'<path class="band {style}" d="M{drawn}Z"/>'


def _scores(found: TradeOff) -> str:
    images = tuple(
        ImageResult("", label, "", None, score, None)
        for label, scores in ((False, found.normal), (True, found.defective))
        for score in scores.tolist()
    )
    return scores_chart(Row("", threshold=found.proposal.threshold), Details(images))
