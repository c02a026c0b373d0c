"""The results of an evaluation as data: a row per category, and its details."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ensemblead.evaluation.gallery import Pictures
from ensemblead.metrics import Interval

Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]

NAN = math.nan


@dataclass(frozen=True)
class Row:
    """One row of `results.csv`: one category, or the summary of several.

    Metrics and rates are in [0, 1], and of metrics larger is better. NaN (an empty cell, `null` in JSON)
    stands for values that are not defined or not known. `..._threshold` are the thresholds of the best
    F1, which the labels decide. `threshold` is the detector's own, which no label has touched;
    `false_alarm_rate` (normal images called anomalous) and `miss_rate` (anomalous ones called normal) are
    those at it. `region_threshold` is the detector's own, too, for pixels of maps. `false_regions` are the
    regions of the maps above it, per normal image, so there may be more than one; `region_recall` is the
    share of the masks' regions that are hit by a pixel above it or more (regions are 8-connected, see
    `RegionCounter`). `aupro` is up to a false-positive rate of 0.3, `aupro_005` up to 0.05; `aupro_image...`
    average per image instead of per component. `peak_memory_mb` is the peak resident size of the whole
    process so far (in a suite: since the cell began).
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
    region_threshold: float = NAN
    false_regions: float = NAN
    region_recall: float = NAN
    fit_seconds: float = NAN
    predict_seconds: float = NAN
    images_per_second: float = NAN
    peak_memory_mb: float = NAN

    def __repr__(self) -> str:
        shown = ("image_auroc", "pixel_auroc", "aupro")
        values = ", ".join(f"{name}={getattr(self, name):.4f}" for name in shown)
        images = f"{self.num_normal} normal and {self.num_anomalous} anomalous images"
        return f"Row({self.category!r}, {images}, {values})"


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
_THRESHOLDS = ("threshold", "image_f1_threshold", "pixel_f1_threshold", "region_threshold")


@dataclass(frozen=True)
class ImageResult:
    """One test image, its score and verdict; `is_anomalous` is None where the detector has no threshold."""

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
    """The images, intervals and curves behind one row.

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
        inspected: What a region leaves of the images and of the defects, for reading; "" without a region.
        made_by: The detector, its weights and history, versions, date and machine, see `made_by`; empty where
            they are not known.
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
    inspected: str = ""
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Details({len(self.images)} images, {len(self.types)} types of defects)"


@dataclass(frozen=True)
class CategoryResult:
    """One category: its row, its details, and warnings for the reader, one line each."""

    row: Row
    details: Details
    warnings: tuple[str, ...] = ()


class Results:
    """Rows, their summary and their details; see `Report`, which makes files of them."""

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
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

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
        count = f"{len(self.rows)} categor{'y' if len(self.rows) == 1 else 'ies'}"
        return f"{type(self).__name__}({count}, {values})"

    def details_of(self, row: Row) -> Details:
        """The details of a row; empty for the summary of several, and where they were not kept."""
        is_own = any(row is one for one in self.rows)
        return self.details.get(row.category, Details()) if is_own else Details()

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """The rows, and the summary below them if there are several."""
        return self.rows if len(self.rows) == 1 else (*self.rows, self.summary)


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
