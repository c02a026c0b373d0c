"""An exported graph against its detector, on real images."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemblead.common.errors import ExportError
from ensemblead.common.predictions import Predictions
from ensemblead.deploy.runtime import ExportedDetector
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.exporting import ExportReport, compared
from ensemblead.detectors.parts import Progress
from ensemblead.detectors.provenance import loaded_model
from ensemblead.images import ImageSource, open_images
from ensemblead.store import save
from ensemblead.store.folders import parse_manifest

# The most that scores and maps may move; docs/design/export.md has what is measured.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "int8": 5e-2}
FEWEST_IMAGES = 10


def verify(
    exported: ExportedDetector,
    detector: Detector,
    images: Any,
    *,
    tolerance: float | None = None,
    allow_flag_changes: int = 0,
    progress: Progress | None = None,
) -> ExportReport:
    """Compare an exported detector with the one that it was made of, image by image.

    Args:
        images: as `predict` takes them, 10 at least.
        tolerance, allow_flag_changes: see `Detector.export`.

    Raises ExportError, with the table and the worst image, where scores or maps move more than `tolerance`,
    or more verdicts change than `allow_flag_changes`, or where the thresholds differ, as they do when the
    detector was calibrated since; ValueError for too few images.
    """
    source = checked_images(images, detector)
    bound = TOLERANCES[exported.contract.precision] if tolerance is None else tolerance
    names = [source.describe(number) for number in range(len(source))]
    pairs = _pairs(exported, detector, source, progress)
    known = detector.calibration_
    report = compared(pairs, names, known.threshold, bound, allow_flag_changes, known.rounding)
    if not report.passed:
        is_other = exported.contract.source.get("checksum") != checksum_of_model(detector)
        other = "the export was made of another model; " if is_other else ""
        raise ExportError(other + report.failure(), report)
    if not math.isclose(exported.threshold_, known.threshold, rel_tol=1e-6):
        raise ExportError(
            f"the exported graph calls images anomalous by another threshold, {exported.threshold_:.6g}, "
            f"than the detector, {known.threshold:.6g}: export it again",
            report,
        )
    return report


def checked_images(images: Any, detector: Detector) -> ImageSource:
    """The images to verify with, read as the detector reads them."""
    source = open_images(images)
    if len(source) < FEWEST_IMAGES:
        raise ValueError(
            f"verify must be {FEWEST_IMAGES} images at least, good and defective ones, got {len(source)}"
        )
    return open_images(source, bits=detector.bits_) if source.bits is None else source


def _pairs(
    exported: ExportedDetector, detector: Detector, source: ImageSource, progress: Progress | None
) -> Iterator[tuple[Predictions, Predictions]]:
    theirs = exported.predict_batches(source)
    done = 0
    for batch in detector.predict_batches(source):
        for i in range(len(batch)):
            one = slice(i, i + 1)
            ours = Predictions(
                batch.anomaly_score[one], batch.anomaly_map[one], batch.is_anomalous[one], batch.paths[one]
            )
            yield ours, next(theirs)
            done += 1
            if progress is not None:
                progress("verify", done, len(source))


def checksum_of_model(detector: Detector) -> str:
    """The checksum of the detector's saved model: of the one that it was loaded from, on whatever device, if
    nothing was done to it since; else of one that is saved now.
    """
    if (loaded := loaded_model(detector)) is not None:
        return loaded
    with tempfile.TemporaryDirectory(prefix="ensemblead-") as folder:
        save(detector, Path(folder) / "model")
        checksum: str = parse_manifest(Path(folder) / "model")["checksum"]
    return checksum
