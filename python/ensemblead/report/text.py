"""Results as csv, JSON and Markdown: what one report and a suite of many have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ensemblead.common.files import StrPath, csv_line, write_atomically
from ensemblead.evaluation.results import COLUMNS, TYPE_COLUMNS, Details, Results, Row
from ensemblead.metrics import Interval

# Title and column of a table in Markdown.
MARKDOWN = (
    ("image AUROC", "image_auroc"),
    ("image AP", "image_ap"),
    ("image F1-max", "image_f1_max"),
    ("pixel AUROC", "pixel_auroc"),
    ("pixel AUROC, defective", "anomaly_pixel_auroc"),
    ("pixel AP", "pixel_ap"),
    ("pixel F1-max", "pixel_f1_max"),
    ("AUPRO", "aupro"),
    ("AUPRO 0.05", "aupro_005"),
    ("false alarms", "false_alarm_rate"),
    ("misses", "miss_rate"),
    ("false regions", "false_regions"),
    ("region recall", "region_recall"),
    ("predict, s", "predict_seconds"),
    ("images/s", "images_per_second"),
    ("peak memory, MB", "peak_memory_mb"),
)
_ONE_DECIMAL = ("fit_seconds", "predict_seconds", "images_per_second", "peak_memory_mb")


# csv


def csv_cells(record: object, columns: Sequence[str]) -> list[str]:
    """The columns of a row; what is not known is empty."""
    return [_csv_cell(getattr(record, column)) for column in columns]


def _csv_cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return str(value)


def rows_csv(rows: Iterable[Row]) -> str:
    """A line per row; the columns of `Row`."""
    return csv_line(COLUMNS) + "".join(csv_line(csv_cells(row, COLUMNS)) for row in rows)


def types_csv(names: Sequence[str], found: Iterable[tuple[Sequence[str], Details]]) -> str:
    """A line per type of defect.

    Args:
        names: Of the columns before `category`.
        found: The values of those and of `category`, and the details whose types are written.
    """
    lines = [csv_line([*names, "category", *TYPE_COLUMNS])]
    for where, details in found:
        lines += [csv_line([*where, *csv_cells(row, TYPE_COLUMNS)]) for row in details.types]
    return "".join(lines)


# JSON


def write_json(path: StrPath, document: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """A JSON file; what JSON cannot write, NaN and infinity, becomes null."""
    text = json.dumps(without_nan(document), indent=indent, allow_nan=False)
    write_atomically(path, text + "\n")


def without_nan(value: Any) -> Any:
    """`value` with every float that JSON cannot write replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def details_document(details: Details) -> dict[str, Any]:
    """Everything but images, curves and pictures, in JSON's types."""
    return {
        "intervals": {name: list(pair) for name, pair in details.intervals.items()},
        "pixel_metrics_exact": details.exact,
        "error_bounds": dict(details.error_bounds),
        "duplicates": [list(pair) for pair in details.duplicates],
        "types": [asdict(row) for row in details.types],
        "made_by": dict(details.made_by),
    }


def results_document(results: Results) -> dict[str, Any]:
    """Everything but the curves: rows, intervals, error bounds, image scores, warnings, settings."""
    categories = []
    for row in results.rows:
        details = results.details_of(row)
        categories.append(
            {
                **asdict(row),
                **details_document(details),
                "threshold_source": details.threshold_source,
                "inspected": details.inspected,
                "images": [asdict(image) for image in details.images],
            }
        )
    return {
        "summary": asdict(results.summary),
        "categories": categories,
        "warnings": list(results.warnings),
        "settings": results.settings,
    }


# Markdown


def markdown_table(names: Sequence[str], titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines: columns of names on the left, then columns of numbers."""
    head = [f"| {' | '.join([*names, *titles])} |", "|" + " --- |" * len(names) + " ---: |" * len(titles)]
    return [*head, *(f"| {' | '.join(cells)} |" for cells in lines)]


def results_markdown(results: Results, *, intervals: bool = False) -> str:
    """A table of the main columns, and the warnings below it."""
    lines = []
    for row in results.all_rows:
        found = results.details_of(row).intervals if intervals else {}
        cells = [markdown_cell(getattr(row, name), found.get(name), name) for _, name in MARKDOWN]
        lines.append([markdown_name(row.category), *cells])
    text = markdown_table(["category"], [title for title, _ in MARKDOWN], lines)
    inspected = [(row.category, results.details_of(row).inspected) for row in results.rows]
    notes = [f"{markdown_name(name)}: {text}" for name, text in inspected if text]
    if notes or results.warnings:
        text += ["", *(f"- {line}" for line in (*notes, *results.warnings))]
    return "\n".join(text) + "\n"


def markdown_name(text: str) -> str:
    """A name that stays within its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def markdown_cell(value: float, found: Interval | None, name: str) -> str:
    """A number, and its confidence interval if there is one."""
    if math.isnan(value):
        return "-"
    if name in _ONE_DECIMAL:
        return f"{value:.1f}"
    return f"{value:.4f}" if found is None else f"{value:.4f} [{found[0]:.4f}, {found[1]:.4f}]"
