"""Run a detector over a data set's test images and measure it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.memory import peak_memory_mb
from ensemblead.common.objects import inspected_part
from ensemblead.datasets.categories import Category, Dataset, Sample
from ensemblead.evaluation.by_type import type_rows
from ensemblead.evaluation.gallery import PictureKeeper, describe_threshold
from ensemblead.evaluation.inspected import RegionShare
from ensemblead.evaluation.made_by import made_by
from ensemblead.evaluation.minmax import Ensemble, SetDetector, fuse_minmax, fused_set
from ensemblead.evaluation.regions import RegionCounter
from ensemblead.evaluation.results import NAN, CategoryResult, Curve, Details, ImageResult, Results, Row
from ensemblead.images import examine_mask
from ensemblead.metrics import (
    Interval,
    PixelScores,
    TypeMetrics,
    curve_points,
    precision_recall_points,
    rank_scores,
    score_intervals,
)
from ensemblead.metrics.inputs import as_floats


class Geometry(Protocol):
    """How images become network input, as `ensemblead.images.Geometry`."""

    def apply_mask(self, mask: NDArray[Any]) -> NDArray[np.bool_]: ...


@runtime_checkable
class Detector(Protocol):
    """A detector as `evaluate` needs it: a geometry, and predictions in the order of the images."""

    @property
    def geometry(self) -> Geometry: ...

    def predict_batches(self, images: Any) -> Iterable[Any]: ...


Detectors: TypeAlias = Detector | Mapping[str, Detector] | Callable[[Category], Detector]


@dataclass(frozen=True)
class ScoredImage:
    """A test image with its score, its map [H, W] and, where known, its mask; for `on_image`."""

    category: str
    sample: Sample
    score: float
    is_anomalous: bool | None
    anomaly_map: NDArray[np.float32] = field(repr=False)
    mask: NDArray[np.bool_] | None = field(repr=False)


OnImage: TypeAlias = Callable[[ScoredImage], None]
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """How a category is measured; see `evaluate`."""

    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0
    memory_limit: int = 2 << 30
    errors: Literal["raise", "skip"] = "raise"
    gallery: int = 300

    def __post_init__(self) -> None:
        for name in ("bootstrap", "memory_limit", "gallery"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")
        if self.errors not in ("raise", "skip"):
            raise ValueError(f'errors must be "raise" or "skip", got {self.errors!r}')


def measure(
    detector: Detectors,
    dataset: Dataset | Category,
    options: Options,
    *,
    on_image: OnImage | None = None,
    progress: Progress | None = None,
) -> Results:
    """The results of a detector on every category of a data set; arguments and errors as for `evaluate`."""
    categories = dataset.categories
    if isinstance(detector, Mapping):
        absent = [category.name for category in categories if category.name not in detector]
        if absent:
            raise ValueError(f"detector must have every category, got none for {', '.join(absent)}")
    for category in categories:
        check_category(category, options)
    found = [measure_category(detector, one, options, on_image, progress) for one in categories]
    rows = [one.row for one in found]
    warnings = [f"{one.row.category}: {line}" for one in found for line in one.warnings]
    settings = {
        "dataset": dataset.name,
        "bootstrap": options.bootstrap,
        "confidence": options.confidence,
        "seed": options.seed,
        "memory_limit": options.memory_limit,
    }
    details = {one.row.category: one.details for one in found}
    return Results(rows, details, [*warnings, *_uneven_means(rows)], settings)


def check_category(category: Category, options: Options) -> None:
    """Refuse, before any work, a category without test images or with masks that do not fit."""
    if not category.test:
        raise ValueError(f"category {category.name} has no test images")
    category.check_masks(options.errors)


def measure_category(
    detector: Detectors,
    category: Category,
    options: Options,
    on_image: OnImage | None = None,
    progress: Progress | None = None,
) -> CategoryResult:
    """The category's row, what lies behind it, and warnings."""
    chosen, fit_seconds = _detector_for(detector, category)
    duplicates = tuple((train, sample.path) for train, sample in category.duplicates(options.errors))
    unreadable = category.unreadable() if options.errors == "skip" else []
    batches, is_minmax = _batches(chosen, category, options)
    own = None if is_minmax else getattr(chosen, "threshold_", None)
    threshold = NAN if own is None or own == math.inf else float(own)  # infinity: there is none
    # No score is above or below NaN.
    has_verdicts = own is None or not math.isnan(threshold)
    run = _Run(chosen, category, options, has_verdicts, on_image, progress)
    seconds = run.consume(batches)
    metrics = _Metrics()
    metrics.add_scores(run.images, options)
    metrics.add_pixels(run.pixels, options)
    row = Row(
        category.name,
        num_train=len(category.train) - len(unreadable),
        num_normal=sum(not image.label for image in run.images),
        num_anomalous=sum(image.label for image in run.images),
        threshold=threshold,
        fit_seconds=fit_seconds,
        predict_seconds=seconds,
        images_per_second=len(run.images) / seconds if seconds > 0 else NAN,
        peak_memory_mb=peak_memory_mb(),
        **metrics.values,
        **_rates(run.images),
        **run.regions.values(),
    )
    details = Details(
        tuple(run.images),
        metrics.intervals,
        metrics.error_bounds,
        metrics.exact,
        duplicates,
        metrics.curves,
        pictures=run.pictures.pictures(),
        threshold_source=describe_threshold(chosen),
        inspected=run.region.describe(),
        made_by=made_by(chosen),
        types=type_rows(run.images, metrics.types),
    )
    warnings = [
        *category.notes,
        *_counted([test for _, test in duplicates], "test image(s) are also training images, byte for byte"),
        *_counted(unreadable, "training image(s) are gone or cannot be read"),
    ]
    known = sum(not category.test[index].label for index in getattr(chosen, "known_", ()))
    if known > len(duplicates) and not is_minmax:  # of copies of files there is a line already
        warnings.append(
            f"{known} of {row.num_normal} normal test images are ones that the detector has learned: AUROC "
            "and false alarms say nothing of new images"
        )
    if is_minmax:
        warnings.append('fusion="minmax" scales scores and maps over the test set: the results looked at it')
    elif sentence := _deciding(chosen):
        warnings.append(sentence)
    if not has_verdicts:
        which = "the detector has no threshold" if own == math.inf else "the detector's threshold is NaN"
        warnings.append(f"{which}: nothing is called normal or anomalous")
    return CategoryResult(row, details, (*warnings, *run.warnings(), *metrics.warnings))


def _detector_for(detector: Detectors, category: Category) -> tuple[Detector, float]:
    """The detector of a category, and the seconds that fitting it took, if it was."""
    if isinstance(detector, Mapping):
        return detector[category.name], NAN
    if isinstance(detector, Detector):
        return detector, NAN
    if not callable(detector):
        raise TypeError(
            "detector must be a detector (with geometry and predict_batches), a mapping of them, "
            f"or a function, got {type(detector).__name__}"
        )
    start = time.perf_counter()
    fitted = detector(category)
    return fitted, time.perf_counter() - start


def _batches(detector: Detector, category: Category, options: Options) -> tuple[Iterator[Any], bool]:
    """Batches of predictions for the category's test images, and whether they are fused over the test set."""
    paths = [sample.path for sample in category.test]
    # Only where it is asked for: a detector of the caller's need not know the option.
    extra: dict[str, Any] = {} if options.errors == "raise" else {"errors": options.errors}
    if getattr(detector, "fusion", None) != "minmax":
        predict: Callable[..., Iterable[Any]] = detector.predict_batches
        return iter(predict(paths, **extra)), False
    if isinstance(detector, Ensemble):
        weights = getattr(detector, "weights", None)
        return fuse_minmax(detector, paths, weights, options.memory_limit, **extra), True
    if not isinstance(detector, SetDetector):
        raise TypeError(
            f'{type(detector).__name__} with fusion="minmax" must have predict_members or predict_set'
        )
    return fused_set(detector, paths, **extra), True


class _Run:
    """One pass over the predictions: images are matched with their samples, pixels go to the metrics."""

    def __init__(
        self,
        detector: Detector,
        category: Category,
        options: Options,
        has_verdicts: bool,
        on_image: OnImage | None,
        progress: Progress | None,
    ) -> None:
        self.images: list[ImageResult] = []
        self.pictures = PictureKeeper(detector, options.gallery)
        self.pixels = PixelScores(memory_limit=options.memory_limit)
        self.regions = RegionCounter()
        self._geometry = detector.geometry
        # A detector of the caller's may have a geometry without regions.
        self.region = RegionShare(inspected_part(detector.geometry))
        self._category = category
        self._has_verdicts = has_verdicts
        self._on_image, self._progress = on_image, progress
        self._skipped: list[str] = []
        self._empty_masks: list[str] = []
        self._suspicious_masks: dict[str, list[str]] = {}  # by what is suspicious
        self._next = 0

    def consume(self, batches: Iterator[Any]) -> float:
        """Measure all batches; the seconds that predicting them took."""
        seconds = 0.0
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            seconds += time.perf_counter() - start
            if batch is None:
                break
            verdicts = batch.is_anomalous if self._has_verdicts else None
            above = getattr(batch, "pixel_threshold", None)  # a detector of the caller's may have none
            for index, path in enumerate(batch.paths):
                verdict = None if verdicts is None else bool(verdicts[index])
                values = batch.anomaly_map[index]
                self._add(self._sample(path), batch.anomaly_score[index], values, verdict, above)
        self._skipped += [sample.path for sample in self._category.test[self._next :]]
        if not self.images:
            raise ValueError(f"category {self._category.name} has no readable test images")
        return seconds

    def _sample(self, path: str | None) -> Sample:
        """The sample that a prediction belongs to; samples before it were skipped by the detector."""
        test = self._category.test
        position = self._next
        while path is not None and position < len(test) and test[position].path != os.fspath(path):
            position += 1
        if position >= len(test):
            raise ValueError(
                f"predictions must come in the order of the images asked for, got {path} out of turn"
            )
        self._skipped += [sample.path for sample in test[self._next : position]]
        self._next = position + 1
        return test[position]

    def _add(
        self, sample: Sample, score: Any, anomaly_map: Any, verdict: bool | None, above: float | None
    ) -> None:
        value = float(score)
        if not math.isfinite(value):
            raise ValueError(f"anomaly_score must be finite, got {value} for {sample.path}")
        try:
            values = as_floats(anomaly_map, "anomaly_maps")
        except ValueError as error:
            raise ValueError(f"{sample.path}: {error}") from error
        mask = self._mask(sample, values)
        if mask is not None:
            kind = sample.defect_type if sample.label else None
            self.pixels.add(values, mask, kind, self.region.inside)
            self.region.add(sample, mask)
        self.regions.add(values, mask, sample.label, above, self.region.inside)
        self.pictures.add(len(self.images), values, value, verdict, sample.label, sample.defect_type)
        self.images.append(
            ImageResult(sample.path, sample.label, sample.defect_type, sample.mask_path, value, verdict)
        )
        if self._on_image is not None:
            self._on_image(ScoredImage(self._category.name, sample, value, verdict, values, mask))
        if self._progress is not None:
            self._progress(self._category.name, self._next, len(self._category.test))

    def _mask(self, sample: Sample, anomaly_map: NDArray[Any]) -> NDArray[np.bool_] | None:
        """The mask in the frame of the map; None if the image is defective and nobody knows where."""
        if not sample.label:
            return np.zeros(anomaly_map.shape, np.bool_)
        if sample.mask_path is None:
            return None
        decoded, notes = examine_mask(sample.mask_path)
        for note in notes:
            self._suspicious_masks.setdefault(note, []).append(sample.mask_path)
        mask = self._geometry.apply_mask(decoded)
        if mask.shape != anomaly_map.shape:
            raise ValueError(
                f"anomaly_map of {sample.path} must be as large as its mask after resize and crop "
                f"{mask.shape}, got {anomaly_map.shape}"
            )
        if not mask.any():
            self._empty_masks.append(sample.mask_path)
        return mask

    def warnings(self) -> list[str]:
        """Images that were skipped, defects that were cropped away, and suspicious masks."""
        suspicious = self._suspicious_masks.items()
        return [
            *_counted(self._skipped, "image(s) were not predicted"),
            *_counted(self._empty_masks, "mask(s) are empty after resize and crop"),
            *self.region.warnings(),
            *(line for text, found in suspicious for line in _counted(found, f"mask(s) {text}")),
        ]


def _counted(paths: Sequence[str], text: str) -> list[str]:
    """How many files there are of a kind, as a warning; none if there are none."""
    return [f"{len(paths)} {text}, the first is {paths[0]}"] if paths else []


@dataclass
class _Metrics:
    """The metrics of one category as they are computed; those that are not defined are missing."""

    values: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    error_bounds: dict[str, float] = field(default_factory=dict)
    exact: bool | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    types: dict[str, TypeMetrics] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add_scores(self, images: Sequence[ImageResult], options: Options) -> None:
        """The metrics of image scores."""
        scores = np.array([image.score for image in images])
        labels = np.array([image.label for image in images])
        if labels.all() or not labels.any():
            only = "anomalous" if labels.all() else "normal"
            self.warnings.append(f"all test images are {only}: image AUROC, AP and F1 are not defined")
            return
        ranking = rank_scores(scores, labels)
        f1, threshold = ranking.f1_max()
        self.values |= {
            "image_auroc": float(ranking.area()),
            "image_ap": float(ranking.average_precision()),
            "image_f1_max": f1,
            "image_f1_threshold": threshold,
        }
        self.curves["roc"] = curve_points(ranking)
        self.curves["precision_recall"] = precision_recall_points(ranking)
        if options.bootstrap:
            resampling = options.bootstrap, options.confidence, options.seed
            self.intervals |= score_intervals(scores, labels, *resampling)

    def add_pixels(self, pixels: PixelScores, options: Options) -> None:
        """The metrics of maps, of all images and by type of defect."""
        if pixels.num_defective_pixels in (0, pixels.num_pixels):
            what = "defective" if pixels.num_defective_pixels == 0 else "defect-free"
            self.warnings.append(f"there are no {what} pixels: pixel AUROC, AP, F1 and AUPRO are not defined")
            return
        found = pixels.compute(replicates=options.bootstrap, confidence=options.confidence, seed=options.seed)
        self.values |= {**found.values, "pixel_f1_threshold": found.f1_threshold}
        self.intervals |= found.intervals
        self.error_bounds, self.exact, self.types = found.errors, found.exact, found.types
        self.curves["pixel_roc"] = curve_points(found.ranking)
        self.curves["pixel_precision_recall"] = precision_recall_points(found.ranking)
        self.curves["pro"] = curve_points(found.ranking, found.component_weights)
        if not found.exact:
            self.warnings.append(_streaming_warning(found.errors, found.types, options.memory_limit))


def _streaming_warning(
    errors: Mapping[str, float], types: Mapping[str, TypeMetrics], memory_limit: int
) -> str:
    worst = max(errors, key=lambda name: errors[name])
    line = (
        f"the maps exceed memory_limit={memory_limit}: pixel metrics are computed in streaming mode "
        f"and may be off by at most {errors[worst]:.2g} ({worst})"
    )
    # NaN is of a type without pixel metrics.
    by_type = [one.error for one in types.values() if not math.isnan(one.error)]
    if len(types) > 1 and by_type:
        line += f", those of a type of defect by {max(by_type):.2g}"
    return line


def _deciding(detector: Any) -> str:
    """A sentence on the training images that decide the detector's threshold; empty if there are none."""
    calibration = getattr(detector, "calibration_", None)
    describe = getattr(calibration, "describe_deciding", None)  # a detector of the caller's may have none
    return "" if describe is None else str(describe())


def _rates(images: Sequence[ImageResult]) -> dict[str, float]:
    """False alarms among normal images and misses among anomalous ones, at the detector's own threshold."""
    alarms = [image.is_anomalous for image in images if not image.label and image.is_anomalous is not None]
    found = [image.is_anomalous for image in images if image.label and image.is_anomalous is not None]
    return {
        "false_alarm_rate": float(np.mean(alarms)) if alarms else NAN,
        "miss_rate": 1.0 - float(np.mean(found)) if found else NAN,
    }


def _uneven_means(rows: Sequence[Row]) -> list[str]:
    """A remark for means that leave out a category."""
    lines = []
    for name in ("image_auroc", "pixel_auroc"):
        known = [row.category for row in rows if not np.isnan(getattr(row, name))]
        if 0 < len(known) < len(rows):
            kind = name.split("_")[0]
            lines.append(f"mean: the {kind} metrics are means over {len(known)} of {len(rows)} categories")
    return lines
