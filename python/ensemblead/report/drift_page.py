"""What a drift monitor has found as one file that loads nothing and needs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensemblead.common.files import StrPath, write_atomically
from ensemblead.monitoring import DriftMonitor, DriftState
from ensemblead.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    drawn_curve,
    figure,
    round_numbers,
    sample,
    x_ticks,
    y_ticks,
)
from ensemblead.report.template import filled, stamp, write_pieces

Floats = npt.NDArray[np.float64]
_HEADINGS = {
    "none": "No change found",
    "look": "Perhaps the images have changed",
    "calibrate": "The images have changed: calibrate anew",
    "extend": "The images have changed: extend the detector",
    "refit": "The images have changed: fit the detector again",
}
_STREAMS = {"score": "scores", "embedding": "features", "regions": "regions of the image"}
# Columns that points are gathered in: half a unit of the drawing each.
_COLUMNS = round(2 * (WIDTH - LEFT - RIGHT))


def write_drift_page(monitor: DriftMonitor, path: StrPath, *, note: str = "") -> Path:
    """Write a page of a monitor's state: the advice, the evidence over the images, in all and stream by
    stream, with the level of an alarm; the scores with the detector's threshold; and the evidence by cell of
    the image.

    Args:
        note: what a reader must know beside, as which model it is.

    Raises NotFittedError for a monitor that is not calibrated.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (62, 32, 32, 3), dtype=np.uint8)
        >>> detector = ead.PatchCore(
        ...     "gabor", resize=None, image_size=None, coreset_fraction=0.5, device="cpu"
        ... ).fit(images[:12])
        >>> monitor = ead.DriftMonitor(detector).calibrate(images[12:60])
        >>> _ = monitor.observe(images[60:])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     "No change found" in write_drift_page(monitor, f"{folder}/drift.html").read_text()
        True
    """
    state = monitor.state_
    parts = {
        "title": escape(_heading(state)),
        "advice": escape(state.advice_text),
        "note": f'<p class="lead">{escape(note)}</p>' if note else "",
        "facts": _facts(state),
        "promise": escape(_promise(monitor)),
        "charts": _charts(monitor, state),
        "regions": _regions(state),
        "footer": escape(stamp()),
    }
    pieces = filled("drift.html", parts, styles=("page.css", "drift.css"))
    return write_atomically(path, lambda file: write_pieces(pieces, file))


def _heading(state: DriftState) -> str:
    if state.advice == "look" and state.since is None:
        return "More images than stated are called anomalous"
    return _HEADINGS[state.advice]


def _promise(monitor: DriftMonitor) -> str:
    if monitor.mean_run_length is not None:
        return (
            f"While nothing changes, there are on average at least {monitor.mean_run_length:,} images from "
            "one alarm to the next. That holds for images whose order says nothing; parts that come in runs "
            "may raise more alarms."
        )
    return (
        f"While nothing changes, the probability that there is ever an alarm is at most "
        f"{monitor.false_alarm_probability:g}. That holds for images whose order says nothing; parts that "
        "come in runs may raise more alarms."
    )


def _facts(state: DriftState) -> str:
    rate = state.alarm_rate
    what = "all images" if state.since is None else "the images since the change"
    facts = [
        ("Images observed", f"{state.images:,}", f"{state.repeated:,} left out: seen before"),
        (
            "Evidence",
            f"10<sup>{state.total:.1f}</sup>",
            f"an alarm at 10<sup>{state.level:.3g}</sup>"
            + ("" if state.alarm_at is None else f", reached with image {state.alarm_at}"),
        ),
    ]
    if state.since is not None:
        name = "" if state.since_path is None else escape(Path(state.since_path).name)
        facts.append(("Changed since about", f"image {state.since:,}", name))
    if rate.images:
        facts.append(
            (
                "Called anomalous",
                f"{rate.rate:.1%}",
                f"{rate.anomalous} of {rate.images}, {what}; interval {rate.low:.1%} to {rate.high:.1%}, "
                + ("no rate stated" if rate.stated is None else f"stated {rate.stated:.1%}"),
            )
        )
    if state.score_ratio is not None and state.score_p90_ratio is not None:
        facts.append(
            (
                "Scores",
                f"{state.score_ratio:.2f} times",
                "those of the calibration, by the median; "
                f"{state.score_p90_ratio:.2f} times by the 90th percentile",
            )
        )
    return "".join(
        f'<div class="tile"><dt>{name}</dt>'
        f'<dd><span class="value">{value}</span><small>{more}</small></dd></div>'
        for name, value, more in facts
    )


# Charts


def _charts(monitor: DriftMonitor, state: DriftState) -> str:
    observed = monitor.observed_
    if not len(observed.score):
        return '<p class="muted">No image has been observed yet.</p>'
    streams = monitor.streams_
    # A stream alone raises the alarm at its share of the level.
    alone = state.level + math.log10(len(streams))
    names = {"all streams together": state.level, **{_STREAMS[stream]: alone for stream in streams}}
    drawn = [
        _evidence(f"Evidence: {name}", observed.evidence[:, column], level, state.since)
        for column, (name, level) in enumerate(names.items())
    ]
    calibrated = monitor.calibrated_
    median = float(np.median(calibrated.score))
    scores = _scores(observed.score.astype(np.float64), median, calibrated.threshold, state.since)
    rows = ([drawn[0], scores], drawn[1:] if len(drawn) > 2 else [])
    return "\n".join(f'<div class="charts">{"".join(row)}</div>' for row in rows if row)


def _evidence(title: str, values: Floats, level: float, since: int | None) -> str:
    low, high = min(-1.0, float(values.min())), max(level, float(values.max()))
    axes = Axes((0.0, float(len(values))), (low, high + 0.08 * (high - low)))
    body = drawn_curve(axes, (np.arange(1.0, len(values) + 1.0), values), "first")
    body += _across(axes, level, "threshold") + _since(axes, since)
    legend = [f"{sample('threshold')} alarm at <b>10<sup>{level:.3g}</sup></b>", *_since_legend(since)]
    return figure(title, _grid(axes, "evidence, power of 10") + body, legend)


def _scores(scores: Floats, median: float, threshold: float | None, since: int | None) -> str:
    known = [*scores.tolist(), median, *([] if threshold is None else [threshold])]
    low, high = min(known), max(known)
    margin = 0.08 * (high - low) or 1.0
    axes = Axes((0.0, float(len(scores))), (low - margin, high + margin))
    body = _points(axes, scores) + _across(axes, median, "second") + _since(axes, since)
    legend = [
        f"{sample('second')} median of the calibration <b>{median:.4g}</b>",
        *_since_legend(since),
    ]
    if threshold is not None:
        body += _across(axes, threshold, "threshold")
        legend.insert(0, f"{sample('threshold')} threshold <b>{threshold:.4g}</b>")
    return figure("Scores", _grid(axes, "anomaly score") + body, legend)


def _points(axes: Axes, values: Floats) -> str:
    """Every image's value; where many share a column, from the least to the largest."""
    columns = np.arange(len(values)) * _COLUMNS // max(len(values), _COLUMNS)
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    lows, highs = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    parts = (
        f"M{axes.place_x(place + 1.0):.1f} {axes.place_y(low):.1f}V{axes.place_y(high):.1f}"
        for place, low, high in zip(starts.tolist(), lows.tolist(), highs.tolist(), strict=True)
    )
    return f'<path class="points" d="{"".join(parts)}"/>'


def _across(axes: Axes, value: float, style: str) -> str:
    return f'<path class="curve {style}" d="M{LEFT} {axes.place_y(value):.1f}H{WIDTH - RIGHT}"/>'


def _since(axes: Axes, since: int | None) -> str:
    if since is None:
        return ""
    return f'<path class="guide" d="M{axes.place_x(float(since)):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'


def _since_legend(since: int | None) -> list[str]:
    return [] if since is None else [f"{sample('guide')} changed since about image <b>{since}</b>"]


def _grid(axes: Axes, label: str) -> str:
    y = [(tick, f"{tick:g}") for tick in round_numbers(*axes.y)]
    places = [tick for tick in round_numbers(*axes.x) if tick == math.floor(tick)]
    return x_ticks(axes, places, "images observed") + y_ticks(axes, y, label)


# Regions


def _regions(state: DriftState) -> str:
    if state.regions is None:
        return ""
    rows = "".join(
        f"<tr>{''.join(_cell(value, state.level) for value in row)}</tr>" for row in state.regions.tolist()
    )
    moved = _moved(state.moved) if state.alarm else ""
    return (
        '<section aria-labelledby="where"><h2 id="where">Where in the image</h2>'
        "<p>Each cell is a part of the image, and its number the evidence there, as a power of 10. "
        f"{moved}</p>"
        f'<table class="regions"><caption class="unseen">Evidence by part of the image</caption>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _moved(boxes: Sequence[tuple[float, float, float, float]]) -> str:
    if not boxes:
        return "No cell has reached the level of an alarm by itself."
    places = "; ".join(
        f"rows {top:.0f} to {bottom:.0f}, columns {left:.0f} to {right:.0f}"
        for top, left, bottom, right in boxes
    )
    return (
        f"{len(boxes)} cell{'s have' if len(boxes) > 1 else ' has'} reached the level of an alarm. "
        f'<span class="muted">In pixels of the photograph: {places}.</span>'
    )


def _cell(value: float, level: float) -> str:
    heat = 0 if value < 0 else 3 if value >= level else 1 if value < level / 2 else 2
    return f'<td class="heat{heat}">{round(value, 1) + 0.0:.1f}</td>'
