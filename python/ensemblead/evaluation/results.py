"""What `evaluate` found: rows for a table, and everything behind them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.files import StrPath, write_atomically
from ensemblead.metrics import Interval

if TYPE_CHECKING:
    from ensemblead.evaluation.gallery import Pictures

Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]

NAN = math.nan


@dataclass(frozen=True)
class Row:
    """One row of `results.csv`: one category, or the summary of several.

    Metrics and rates are in [0, 1], larger is better for metrics; NaN (an empty cell, `null` in JSON) is what
    is not defined or not known. `..._threshold` are the thresholds of the best F1, found with the labels in
    sight; `threshold` is the detector's own, which has never seen a label, and `false_alarm_rate` (normal
    images called anomalous) and `miss_rate` (anomalous ones called normal) are taken at it. `aupro` is up to
    a false-positive rate of 0.3, `aupro_005` up to 0.05; `aupro_image...` average per image instead of per
    component. `peak_memory_mb` is the peak resident size of the whole process so far (in a suite: since
    the cell began).
    """

    category: str
    num_train: int = 0
    num_normal: int = 0
    num_anomalous: int = 0
    image_auroc: float = NAN
    image_ap: float = NAN
    image_f1_max: float = NAN
    image_f1_threshold: float = NAN
    pixel_auroc: float = NAN
    anomaly_pixel_auroc: float = NAN
    pixel_ap: float = NAN
    pixel_f1_max: float = NAN
    pixel_f1_threshold: float = NAN
    aupro: float = NAN
    aupro_005: float = NAN
    aupro_image: float = NAN
    aupro_image_005: float = NAN
    threshold: float = NAN
    false_alarm_rate: float = NAN
    miss_rate: float = NAN
    fit_seconds: float = NAN
    predict_seconds: float = NAN
    images_per_second: float = NAN
    peak_memory_mb: float = NAN


@dataclass(frozen=True)
class TypeRow:
    """One row of `types.csv`: one type of defect of a category.

    The metrics are those of `Row` of a test set that has the images of this type and all good ones, and no
    other defects (Bergmann et al., MVTec AD, evaluate types so); NaN is what is not defined or not known. So
    a category's metrics are no means over its types. `miss_rate` is the share of the type's images that was
    called normal at the detector's own threshold. `error_bound` is how far `pixel_auroc` and `aupro` can be
    off, 0 unless the maps exceeded `evaluate`'s memory limit.
    """

    defect_type: str
    num_images: int = 0
    image_auroc: float = NAN
    pixel_auroc: float = NAN
    aupro: float = NAN
    miss_rate: float = NAN
    error_bound: float = NAN


COLUMNS: tuple[str, ...] = tuple(column.name for column in fields(Row))
TYPE_COLUMNS: tuple[str, ...] = tuple(column.name for column in fields(TypeRow))
_COUNTS = ("num_train", "num_normal", "num_anomalous")
_SECONDS = ("fit_seconds", "predict_seconds")
_THRESHOLDS = ("threshold", "image_f1_threshold", "pixel_f1_threshold")


@dataclass(frozen=True)
class ImageResult:
    """What became of one test image; `is_anomalous` is None where the detector has no threshold."""

    path: str
    label: bool
    defect_type: str
    mask_path: str | None
    score: float
    is_anomalous: bool | None

    @property
    def is_error(self) -> bool:
        """Whether it is a false alarm or a miss at the detector's own threshold."""
        return self.is_anomalous is not None and self.is_anomalous != self.label


@dataclass(frozen=True)
class Details:
    """What lies behind one row.

    Attributes:
        images: Every test image, in the order of the data set.
        intervals: Bootstrap confidence intervals over images, by column.
        error_bounds: How far the streaming mode of the pixel metrics can be off, by column; all 0 if exact.
        exact: Whether the pixel metrics are exact; None if there are none.
        duplicates: Pairs of a training file and a test file that are equal byte for byte.
        curves: Points (x, y) for drawing: `roc`, `precision_recall`, `pixel_roc`, `pixel_precision_recall`,
            `pro`; those that are defined.
        pictures: The anomaly maps that `Report.to_html` shows; None if none were kept.
        threshold_source: Where the detector's own threshold comes from, for reading; "" if it has none.
        types: A row for every type of defect, sorted by name; none if no image is anomalous.
    """

    images: tuple[ImageResult, ...] = ()
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    error_bounds: Mapping[str, float] = field(default_factory=dict)
    exact: bool | None = None
    duplicates: tuple[tuple[str, str], ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    pictures: Pictures | None = None
    threshold_source: str = ""
    types: tuple[TypeRow, ...] = ()


class Report:
    """The results of an evaluation. Every column of `results.csv` is an attribute: that of the summary row.

    Attributes:
        rows: One `Row` per category.
        summary: The only row, or a row "mean": means of metrics and rates over the categories where they are
            defined, sums of counts and seconds.
        details: By category, what lies behind its row.
        warnings: What a reader must know to trust the numbers, one line each.
        settings: How the evaluation was made.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        details: Mapping[str, Details] | None = None,
        warnings: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not rows:
            raise ValueError("rows must hold at least one category, got none")
        self.rows = tuple(rows)
        self.summary = self.rows[0] if len(self.rows) == 1 else _mean_row(self.rows)
        self.details = dict(details or {})
        self.warnings = tuple(warnings)
        self.settings = dict(settings or {})

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is not set above; `summary` is absent while unpickling or copying.
        if name in COLUMNS and "summary" in self.__dict__:
            return getattr(self.summary, name)
        raise AttributeError(f"Report has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *COLUMNS})

    def __getitem__(self, category: str) -> Row:
        """The row of a category."""
        for row in self.rows:
            if row.category == category:
                return row
        raise KeyError(f"no category {category!r}; there are {', '.join(row.category for row in self.rows)}")

    def __repr__(self) -> str:
        shown = ("image_auroc", "pixel_auroc", "aupro")
        values = ", ".join(f"{name}={getattr(self.summary, name):.4f}" for name in shown)
        return f"Report({len(self.rows)} categor{'y' if len(self.rows) == 1 else 'ies'}, {values})"

    def _all_rows(self) -> tuple[Row, ...]:
        return self.rows if len(self.rows) == 1 else (*self.rows, self.summary)

    def to_csv(self, path: StrPath, *, by_type: bool = False) -> None:
        """One line per category and, if there are several, a line "mean"; columns as in `Row`.

        Args:
            by_type: One line per category and type of defect instead; columns `category` and those of
                `TypeRow`.
        """
        if by_type:
            known = [row.category for row in self.rows if row.category in self.details]
            write_types(path, (), (((name,), self.details[name]) for name in known))
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self._all_rows():
            writer.writerow(csv_cell(getattr(row, column)) for column in COLUMNS)
        write_atomically(path, text.getvalue())

    def to_json(self, path: StrPath) -> None:
        """Everything but the curves: rows, intervals, error bounds, image scores, warnings, settings."""
        categories = []
        for row in self.rows:
            details = self.details.get(row.category, Details())
            categories.append(
                {
                    **asdict(row),
                    "intervals": {name: list(pair) for name, pair in details.intervals.items()},
                    "pixel_metrics_exact": details.exact,
                    "error_bounds": dict(details.error_bounds),
                    "duplicates": [list(pair) for pair in details.duplicates],
                    "threshold_source": details.threshold_source,
                    "types": [asdict(row) for row in details.types],
                    "images": [asdict(image) for image in details.images],
                }
            )
        document = {
            "summary": asdict(self.summary),
            "categories": categories,
            "warnings": list(self.warnings),
            "settings": self.settings,
        }
        write_atomically(path, json.dumps(without_nan(document), indent=1, allow_nan=False) + "\n")

    def to_html(self, path: StrPath, *, max_images: int = 300) -> None:
        """One file that loads nothing: tables, curves, and a gallery that sorts and filters.

        An image takes 20 to 60 KB with its heat map, smooth ones least, so that 300 take 6 to 18 MB;
        photographs and masks are read again from where they were.

        Args:
            max_images: Of the images that `evaluate` kept (see its `gallery`), how many to show: errors
                first, then normal images with high scores and defective ones with low scores. The page says
                how many were left out.

        Raises:
            ValueError: `max_images` is negative.
        """
        from ensemblead.report.page import write_page

        write_page(self, path, max_images)

    def figures(self, folder: StrPath) -> list[Path]:
        """One PNG per category with ROC, precision-recall and PRO curves and the scores' histogram.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from ensemblead.report.figures import save_curves

        return save_curves(self, folder)

    def to_markdown(self, path: StrPath | None = None, *, intervals: bool = False) -> str:
        """A table of the main columns, and the warnings below it; written to `path` if that is given.

        Args:
            intervals: Put the confidence interval behind every metric that has one.
        """
        lines = [
            "| category | " + " | ".join(title for title, _ in MARKDOWN) + " |",
            "| --- |" + " ---: |" * len(MARKDOWN),
        ]
        for row in self._all_rows():
            found = self.details.get(row.category, Details()).intervals if intervals else {}
            cells = [markdown_cell(getattr(row, name), found.get(name), name) for _, name in MARKDOWN]
            lines.append(f"| {markdown_name(row.category)} | " + " | ".join(cells) + " |")
        if self.warnings:
            lines += ["", *(f"- {warning}" for warning in self.warnings)]
        text = "\n".join(lines) + "\n"
        if path is not None:
            write_atomically(path, text)
        return text


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
    ("predict, s", "predict_seconds"),
    ("images/s", "images_per_second"),
    ("peak memory, MB", "peak_memory_mb"),
)
_PLAIN = ("fit_seconds", "predict_seconds", "images_per_second", "peak_memory_mb")


def _mean_row(rows: Sequence[Row]) -> Row:
    values: dict[str, Any] = {"category": "mean"}
    for name in COLUMNS[1:]:
        column = [getattr(row, name) for row in rows]
        known = [value for value in column if not math.isnan(value)]
        if name in _COUNTS:
            values[name] = sum(column)
        elif name in _THRESHOLDS or not known:
            values[name] = NAN
        elif name in _SECONDS:
            values[name] = float(sum(known))
        elif name == "peak_memory_mb":
            values[name] = max(known)
        else:
            values[name] = float(np.mean(known))
    timed = [row for row in rows if row.predict_seconds > 0]
    if timed:
        images = sum(row.num_normal + row.num_anomalous for row in timed)
        values["images_per_second"] = images / sum(row.predict_seconds for row in timed)
    return Row(**values)


def write_types(path: StrPath, names: Sequence[str], found: Iterable[tuple[Sequence[str], Details]]) -> None:
    """A csv with a line per type of defect.

    Args:
        names: Of the columns before `category`.
        found: What stands in those and in `category`, and the details whose types are written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "category", *TYPE_COLUMNS])
    for where, details in found:
        for row in details.types:
            writer.writerow([*where, *(csv_cell(getattr(row, column)) for column in TYPE_COLUMNS)])
    write_atomically(path, text.getvalue())


def csv_cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.8g}"
    return str(value)


def markdown_name(text: str) -> str:
    """A name that stays within its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def markdown_cell(value: float, found: Interval | None, name: str) -> str:
    if math.isnan(value):
        return "-"
    if name in _PLAIN:
        return f"{value:.1f}"
    return f"{value:.4f}" if found is None else f"{value:.4f} [{found[0]:.4f}, {found[1]:.4f}]"


def without_nan(value: Any) -> Any:
    """`value` with every float that JSON cannot write replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
