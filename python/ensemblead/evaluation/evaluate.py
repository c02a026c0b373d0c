"""Run a detector over a data set's test images and measure it."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.memory import peak_memory_mb
from ensemblead.datasets.categories import Category, Dataset, Sample
from ensemblead.evaluation.by_type import type_rows
from ensemblead.evaluation.gallery import PictureKeeper, describe_threshold
from ensemblead.evaluation.minmax import Ensemble, SetDetector, fuse_minmax, fused_set
from ensemblead.evaluation.results import NAN, Details, ImageResult, Report, Row
from ensemblead.images import examine_mask
from ensemblead.metrics import (
    PixelScores,
    TypeMetrics,
    curve_points,
    precision_recall_points,
    rank_scores,
    score_intervals,
)


class Geometry(Protocol):
    """How images become network input, as `ensemblead.images.Geometry`."""

    def apply_mask(self, mask: NDArray[Any]) -> NDArray[np.bool_]: ...


@runtime_checkable
class Detector(Protocol):
    """What is asked of a detector: its geometry, and batches of predictions in the order of the images."""

    @property
    def geometry(self) -> Geometry: ...

    def predict_batches(self, images: Any) -> Iterable[Any]: ...


Detectors: TypeAlias = Detector | Mapping[str, Detector] | Callable[[Category], Detector]


@dataclass(frozen=True)
class ScoredImage:
    """What `on_image` is given: a test image with its score, its map [H, W] and, where known, its mask."""

    category: str
    sample: Sample
    score: float
    is_anomalous: bool | None
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class _Options:
    bootstrap: int
    confidence: float
    seed: int
    memory_limit: int
    errors: Literal["raise", "skip"]
    gallery: int
    on_image: Callable[[ScoredImage], None] | None
    progress: Callable[[str, int, int], None] | None


def evaluate(
    detector: Detectors,
    dataset: Dataset | Category,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    memory_limit: int = 2 << 30,
    errors: Literal["raise", "skip"] = "raise",
    gallery: int = 300,
    on_image: Callable[[ScoredImage], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Predict all test images of every category and compute all metrics (see `Row` for their names).

    A mask is resized (nearest neighbour) and cropped as the detector does with the image, and binarised at
    > 0. What cannot be computed, because the test set has one class only or no masks, is NaN, with a line in
    `Report.warnings` (all lines are issued as one warning as well); the rest is still given. A detector whose
    `fusion` is "minmax" is fused over the test set and has no threshold then. `Report.details` has the types
    of defects one by one (`TypeRow`).

    Args:
        detector: A fitted detector, used for every category; or one per category, as a mapping by name; or a
            function that is given a `Category` and returns its fitted detector (its time is `fit_seconds`).
        dataset: `MVTecAD`, `VisA`, `Folder`, or one `Category`.
        bootstrap: Replicates for the confidence intervals over images; 0 for none.
        confidence: What the intervals are to hold, in (0, 1).
        seed: Of the bootstrap.
        memory_limit: Bytes of pixels per category up to which the pixel metrics are exact (4 bytes a pixel).
            Beyond it their error is bounded and stated in `Report.details`, and a warning says so.
        errors: "raise" stops at a test image that cannot be read; "skip" leaves it out of all metrics, and a
            warning counts such images and names the first. The same holds for training images that are gone
            or whose header cannot be read; `num_train` is without them.
        gallery: How many images per category to keep a small copy of the map of, for `Report.to_html`: errors
            first, then normal images with high scores and defective ones with low scores; 0 for none.
        on_image: Called for every test image as it is scored: to save maps, to draw, to log to a tracker.
        progress: Called with the category's name, the number of images done, and of all.

    Raises:
        ValueError: A category without a detector or without test images, a mask of another size than its
            image or its map, a test image or a mask that cannot be read (UnreadableImageError, naming it;
            masks are not skipped), scores that are not finite, predictions that do not belong to the images
            asked for.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be at least 0, got {bootstrap}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if errors not in ("raise", "skip"):
        raise ValueError(f'errors must be "raise" or "skip", got {errors!r}')
    if gallery < 0:
        raise ValueError(f"gallery must be at least 0, got {gallery}")
    options = _Options(bootstrap, confidence, seed, memory_limit, errors, gallery, on_image, progress)
    categories = dataset.categories
    if isinstance(detector, Mapping):
        absent = [category.name for category in categories if category.name not in detector]
        if absent:
            raise ValueError(f"detector must have every category, got none for {', '.join(absent)}")
    for category in categories:
        if not category.test:
            raise ValueError(f"category {category.name} has no test images")
        category.check_masks(errors)
    rows, details, remarks = [], {}, []
    for category in categories:
        chosen, fit_seconds = _detector_for(detector, category)
        row, detail, lines = _evaluate_category(chosen, category, fit_seconds, options)
        rows.append(row)
        details[category.name] = detail
        remarks += [f"{category.name}: {line}" for line in lines]
    remarks += _uneven_means(rows)
    if remarks:
        warnings.warn("\n".join(remarks), stacklevel=2)
    settings = {
        "dataset": dataset.name,
        "bootstrap": bootstrap,
        "confidence": confidence,
        "seed": seed,
        "memory_limit": memory_limit,
    }
    return Report(rows, details, remarks, settings)


def _detector_for(detector: Detectors, category: Category) -> tuple[Detector, float]:
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


def _evaluate_category(
    detector: Detector, category: Category, fit_seconds: float, options: _Options
) -> tuple[Row, Details, list[str]]:
    """The category's row, what lies behind it, and warnings."""
    notes = list(category.notes)
    duplicates = tuple((train, sample.path) for train, sample in category.duplicates(options.errors))
    if duplicates:
        notes.append(
            f"{len(duplicates)} test image(s) are also training images, byte for byte, "
            f"the first is {duplicates[0][1]}"
        )
    lost = category.unreadable() if options.errors == "skip" else []
    if lost:
        notes.append(f"{len(lost)} training image(s) are gone or cannot be read, the first is {lost[0]}")
    batches, minmax = _batches(detector, category, options)
    if minmax:
        notes.append('fusion="minmax" scales scores and maps over the test set: the results looked at it')
    pixels = PixelScores(memory_limit=options.memory_limit)
    run = _Run(detector, category, pixels, options)
    seconds = run.consume(batches)
    notes += run.notes()
    values: dict[str, Any] = {}
    intervals: dict[str, tuple[float, float]] = {}
    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    notes += _image_metrics(run.images, options, values, intervals, curves)
    types: dict[str, TypeMetrics] = {}
    exact, bounds, lines = _pixel_metrics(pixels, options, values, intervals, curves, types)
    notes += lines
    values.update(_rates(run.images))
    own = None if minmax else getattr(detector, "threshold_", None)
    row = Row(
        category.name,
        num_train=len(category.train) - len(lost),
        num_normal=sum(not image.label for image in run.images),
        num_anomalous=sum(image.label for image in run.images),
        threshold=NAN if own is None else float(own),
        fit_seconds=fit_seconds,
        predict_seconds=seconds,
        images_per_second=len(run.images) / seconds if seconds > 0 else NAN,
        peak_memory_mb=peak_memory_mb(),
        **values,
    )
    details = Details(
        *(tuple(run.images), intervals, bounds, exact, duplicates, curves),
        pictures=run.pictures.pictures(),
        threshold_source=describe_threshold(detector),
        types=type_rows(run.images, types),
    )
    return row, details, notes


def _batches(detector: Detector, category: Category, options: _Options) -> tuple[Iterator[Any], bool]:
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
        self, detector: Detector, category: Category, pixels: PixelScores, options: _Options
    ) -> None:
        self.images: list[ImageResult] = []
        self.pictures = PictureKeeper(detector, options.gallery)
        self._geometry = detector.geometry
        self._category = category
        self._pixels = pixels
        self._options = options
        self._skipped: list[str] = []
        self._emptied: list[str] = []
        self._remarks: dict[str, list[str]] = {}  # on masks: which there are of each
        self._next = 0

    def consume(self, batches: Iterator[Any]) -> float:
        """Take in all batches; the seconds that predicting them took."""
        seconds = 0.0
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            seconds += time.perf_counter() - start
            if batch is None:
                break
            called = batch.is_anomalous
            for index, path in enumerate(batch.paths):
                verdict = None if called is None else bool(called[index])
                self._take_in(
                    self._sample(path), batch.anomaly_score[index], batch.anomaly_map[index], verdict
                )
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

    def _take_in(self, sample: Sample, score: Any, anomaly_map: Any, verdict: bool | None) -> None:
        value, values = float(score), np.asarray(anomaly_map)
        if not np.isfinite(value):
            raise ValueError(f"anomaly_score must be finite, got {value} for {sample.path}")
        mask = self._mask(sample, values)
        if mask is not None:
            try:
                self._pixels.add(values, mask, sample.defect_type if sample.label else None)
            except ValueError as error:
                raise ValueError(f"{sample.path}: {error}") from error
        self.pictures.add(len(self.images), values, value, verdict, sample.label, sample.defect_type)
        self.images.append(
            ImageResult(sample.path, sample.label, sample.defect_type, sample.mask_path, value, verdict)
        )
        if self._options.on_image is not None:
            scored = ScoredImage(self._category.name, sample, value, verdict, values, mask)
            self._options.on_image(scored)
        if self._options.progress is not None:
            self._options.progress(self._category.name, self._next, len(self._category.test))

    def _mask(self, sample: Sample, anomaly_map: NDArray[Any]) -> NDArray[np.bool_] | None:
        """The mask in the frame of the map; None if the image is defective and nobody knows where."""
        if not sample.label:
            return np.zeros(anomaly_map.shape, np.bool_)
        if sample.mask_path is None:
            return None
        decoded, remarks = examine_mask(sample.mask_path)
        for remark in remarks:
            self._remarks.setdefault(remark, []).append(sample.mask_path)
        mask = self._geometry.apply_mask(decoded)
        if mask.shape != anomaly_map.shape:
            raise ValueError(
                f"anomaly_map of {sample.path} must be as large as its mask after resize and crop "
                f"{mask.shape}, got {anomaly_map.shape}"
            )
        if not mask.any():
            self._emptied.append(sample.path)
        return mask

    def notes(self) -> list[str]:
        """Notes on images that were skipped, on suspicious masks and on defects that were cropped away."""
        notes = [
            f"{len(paths)} mask(s) {text}; the first is {paths[0]}" for text, paths in self._remarks.items()
        ]
        if self._skipped:
            notes.append(f"{len(self._skipped)} image(s) were not predicted, the first is {self._skipped[0]}")
        if self._emptied:
            notes.append(
                f"{len(self._emptied)} mask(s) are empty after resize and crop, "
                f"the first is of {self._emptied[0]}"
            )
        return notes


def _image_metrics(
    images: Sequence[ImageResult],
    options: _Options,
    values: dict[str, Any],
    intervals: dict[str, tuple[float, float]],
    curves: dict[str, Any],
) -> list[str]:
    """Fill in the metrics of image scores; remarks if they are not defined."""
    scores = np.array([image.score for image in images])
    labels = np.array([image.label for image in images])
    if labels.all() or not labels.any():
        only = "anomalous" if labels.all() else "normal"
        return [f"all test images are {only}: image AUROC, AP and F1 are not defined"]
    ranking = rank_scores(scores, labels)
    f1, threshold = ranking.f1_max()
    values.update(
        image_auroc=float(ranking.area()),
        image_ap=float(ranking.average_precision()),
        image_f1_max=f1,
        image_f1_threshold=threshold,
    )
    curves["roc"] = curve_points(ranking)
    curves["precision_recall"] = precision_recall_points(ranking)
    if options.bootstrap:
        intervals.update(score_intervals(scores, labels, options.bootstrap, options.confidence, options.seed))
    return []


def _pixel_metrics(
    pixels: PixelScores,
    options: _Options,
    values: dict[str, Any],
    intervals: dict[str, tuple[float, float]],
    curves: dict[str, Any],
    types: dict[str, TypeMetrics],
) -> tuple[bool | None, dict[str, float], list[str]]:
    """Fill in the metrics of maps, of all and by type; whether they are exact, how far they can be off, and
    remarks.
    """
    if pixels.num_defective_pixels in (0, pixels.num_pixels):
        what = "defective" if pixels.num_defective_pixels == 0 else "defect-free"
        return None, {}, [f"there are no {what} pixels: pixel AUROC, AP, F1 and AUPRO are not defined"]
    found = pixels.compute(replicates=options.bootstrap, confidence=options.confidence, seed=options.seed)
    values.update(found.values, pixel_f1_threshold=found.f1_threshold)
    intervals.update(found.intervals)
    types.update(found.types)
    curves["pixel_roc"] = curve_points(found.ranking)
    curves["pixel_precision_recall"] = precision_recall_points(found.ranking)
    curves["pro"] = curve_points(found.ranking, found.component_weights)
    if found.exact:
        return True, found.errors, []
    worst = max(found.errors, key=lambda name: found.errors[name])
    line = (
        f"the maps exceed memory_limit={options.memory_limit}: pixel metrics are computed in streaming mode "
        f"and may be off by at most {found.errors[worst]:.2g} ({worst})"
    )
    # NaN is of a type without pixel metrics.
    by_type = [one.error for one in types.values() if not math.isnan(one.error)]
    if len(types) > 1 and by_type:
        line += f", those of a type of defect by {max(by_type):.2g}"
    return False, found.errors, [line]


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
