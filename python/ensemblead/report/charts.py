"""Curves and histograms as inline SVG, drawn for a page: its style sheet has the colours, light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from ensemblead.evaluation.results import Details, Row

# In units of the drawing, which are pixels on a page that shows four charts side by side.
WIDTH, HEIGHT = 280.0, 216.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 10.0, 38.0
_NEAR = 0.3  # points closer than that to the last one are left out


@dataclass(frozen=True)
class Axes:
    """Values to places on the drawing."""

    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def place_x(self, value: float) -> float:
        return LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)

    def place_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)


@dataclass(frozen=True)
class Chart:
    """One or two curves in common axes: their names in `Details.curves`, labels and columns of `Row`."""

    title: str
    x: str
    y: str
    curves: tuple[tuple[str, str, str], ...]


ROC = Chart(
    "ROC",
    "false-positive rate",
    "true-positive rate",
    (("roc", "images, AUROC", "image_auroc"), ("pixel_roc", "pixels, AUROC", "pixel_auroc")),
)
PRECISION_RECALL = Chart(
    "Precision and recall",
    "recall",
    "precision",
    (("precision_recall", "images, AP", "image_ap"), ("pixel_precision_recall", "pixels, AP", "pixel_ap")),
)
PRO = Chart(
    "Overlap per region (PRO)",
    "false-positive rate",
    "mean overlap",
    (("pro", "area up to 0.3:", "aupro"),),
)


def charts(row: Row, details: Details) -> str:
    """Figures of a category: ROC, precision-recall, PRO and the scores; those that are defined."""
    curves = [_curves(ROC, row, details), _curves(PRECISION_RECALL, row, details)]
    return "\n".join(one for one in (*curves, _pro(row, details), scores_chart(row, details)) if one)


def _curves(chart: Chart, row: Row, details: Details) -> str:
    axes = Axes()
    body, legend = "", []
    for (name, label, column), style in zip(chart.curves, ("first", "second"), strict=False):
        if name in details.curves:
            body = drawn_curve(axes, details.curves[name], style) + body  # the first above the second
            legend.append(f"{sample(style)} {label} <b>{number(getattr(row, column))}</b>")
    ticks = (0.0, 0.5, 1.0)
    axis = frame(axes, ticks, ticks, chart.x, chart.y)
    return figure(chart.title, axis + body, legend) if legend else ""


def _pro(row: Row, details: Details) -> str:
    """The curve up to 0.3 alone, with a mark at 0.05."""
    if "pro" not in details.curves:
        return ""
    axes = Axes(x=(0.0, 0.3))
    x = axes.place_x(0.05)
    mark = f'<path class="guide" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
    legend = (
        f"{sample('first')} area up to 0.3: <b>{number(row.aupro)}</b>",
        f"{sample('guide')} up to 0.05: <b>{number(row.aupro_005)}</b>",
    )
    axis = frame(axes, (0.0, 0.1, 0.2, 0.3), (0.0, 0.5, 1.0), PRO.x, PRO.y)
    return figure(PRO.title, axis + mark + drawn_curve(axes, details.curves["pro"], "first"), legend)


def scores_chart(row: Row, details: Details) -> str:
    """Normal images upwards, defective ones downwards, so that they differ without colours."""
    scores = scores_by_label(details)
    if not details.images:
        return ""
    edges = score_edges(scores[False] + scores[True], row.threshold)
    counts = {label: np.histogram(found, edges)[0] for label, found in scores.items()}
    up, down = (max(1, int(counts[label].max())) for label in (False, True))
    span = float(edges[-1] - edges[0])
    axes = Axes((float(edges[0]) - 0.02 * span, float(edges[-1]) + 0.02 * span), (-1.08 * down, 1.08 * up))
    body = _bars(axes, edges, counts[False], 1, "normal") + _bars(axes, edges, counts[True], -1, "defective")
    body += f'<path class="axis" d="M{LEFT} {axes.place_y(0):.1f}H{WIDTH - RIGHT}"/>'
    legend = [
        f"{_swatch('normal')} normal, upwards ({len(scores[False])})",
        f"{_swatch('defective')} defective, downwards ({len(scores[True])})",
    ]
    if not math.isnan(row.threshold):
        x = axes.place_x(row.threshold)
        body += f'<path class="threshold" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        legend.append(f"{sample('threshold')} threshold <b>{number(row.threshold)}</b>")
    ticks = [(float(-down), str(down)), (0.0, "0"), (float(up), str(up))]
    axis = x_ticks(axes, round_numbers(*axes.x), "anomaly score") + y_ticks(axes, ticks, "images")
    return figure("Scores", axis + body, legend)


def scores_by_label(details: Details) -> dict[bool, list[float]]:
    """The scores of normal and of anomalous images."""
    return {label: [one.score for one in details.images if one.label is label] for label in (False, True)}


def score_edges(scores: Sequence[float], threshold: float = math.nan) -> NDArray[np.float64]:
    """Edges of a histogram's bins; the threshold is one, so that no bar has it in its midst."""
    known = not math.isnan(threshold)
    low, high = min(scores), max(scores)
    if known:
        low, high = min(low, threshold), max(high, threshold)
    width = (high - low) / min(40, max(20, len(scores) // 3)) if high > low else 1.0
    origin = threshold if known else low
    first = math.floor((low - origin) / width - 1e-9)
    # One more than needed: the largest score may lie on the last edge but one.
    edges: NDArray[np.float64] = origin + width * np.arange(
        first, math.ceil((high - origin) / width + 1e-9) + 1, dtype=np.float64
    )
    return edges


def _bars(axes: Axes, edges: NDArray[np.float64], counts: NDArray[np.int64], way: int, style: str) -> str:
    parts = []
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            x0, x1 = axes.place_x(float(left)) + 0.4, axes.place_x(float(right)) - 0.4
            y0, y1 = sorted((axes.place_y(0.0), axes.place_y(float(way * count))))
            parts.append(f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z")
    return f'<path class="bar {style}" d="{"".join(parts)}"/>'


def drawn_curve(axes: Axes, curve: tuple[NDArray[np.float64], NDArray[np.float64]], style: str) -> str:
    """The curve within the axes, without points that nobody could see."""
    x, y = (np.asarray(values, np.float64) for values in curve)
    inside = x <= axes.x[1]
    if not inside.all():
        end = float(np.interp(axes.x[1], x, y))
        x, y = np.append(x[inside], axes.x[1]), np.append(y[inside], end)
    places = [(axes.place_x(float(a)), axes.place_y(float(b))) for a, b in zip(x, y, strict=True)]
    kept = [places[0]]
    for place in places[1:-1]:
        if math.hypot(place[0] - kept[-1][0], place[1] - kept[-1][1]) >= _NEAR:
            kept.append(place)
    kept.append(places[-1])
    return f'<path class="curve {style}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in kept)}"/>'


def frame(axes: Axes, x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> str:
    return x_ticks(axes, x, x_label) + y_ticks(axes, [(tick, f"{tick:g}") for tick in y], y_label)


def x_ticks(axes: Axes, ticks: Sequence[float], label: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in ticks:
        x = axes.place_x(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


def y_ticks(axes: Axes, ticks: Sequence[tuple[float, str]], label: str) -> str:
    parts = []
    for tick, text in ticks:
        y = axes.place_y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="translate(9 {middle}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


def round_numbers(low: float, high: float) -> list[float]:
    """About four round numbers between two values."""
    rough = (high - low) / 4
    if not rough > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [float(n) * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def figure(title: str, body: str, legend: Sequence[str]) -> str:
    entries = "".join(f"<li>{entry}</li>" for entry in legend)
    drawing = f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">{body}</svg>'
    caption = f"<figcaption><h3>{escape(title)}</h3><ul>{entries}</ul></figcaption>"
    return f'<figure class="chart">{caption}{drawing}</figure>'


def sample(style: str) -> str:
    return _legend_mark(f'<path class="curve {style}" d="M0 4H22"/>')


def _swatch(style: str) -> str:
    return _legend_mark(f'<path class="bar {style}" d="M4 0H18V8H4Z"/>')


def _legend_mark(path: str) -> str:
    return f'<svg class="sample" viewBox="0 0 22 8" aria-hidden="true">{path}</svg>'


def number(value: float, digits: int = 4) -> str:
    """A metric, a rate or a threshold for reading; a dash if it is not known."""
    if math.isnan(value):
        return "&ndash;"
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.4g}"
