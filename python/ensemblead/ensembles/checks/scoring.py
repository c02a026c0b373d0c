"""Checks of predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ensemblead.common.errors import NotFittedError
from ensemblead.common.predictions import Predictions
from ensemblead.ensembles.checks.subject import (
    BrokenPromiseError,
    Subject,
    require_alike,
    set_batch_size,
    tolerance,
)


def unfitted_is_refused(subject: Subject) -> None:
    """Before `fit`, all that needs a fit raises NotFittedError."""
    detector = subject.unfitted()
    if detector.is_fitted:
        raise BrokenPromiseError("is_fitted is true before fit")
    needing_a_fit: dict[str, Callable[[], Any]] = {
        "predict": lambda: detector.predict(subject.test),
        "predict_batches": lambda: list(detector.predict_batches(subject.test)),
        "extend": lambda: detector.extend(subject.train),
        "calibrate": lambda: detector.calibrate(subject.fresh),
        "save": lambda: detector.save(subject.new_folder() / "model"),
        "threshold_": lambda: detector.threshold_,
    }
    for name, act in needing_a_fit.items():
        try:
            act()
        except NotFittedError:
            continue
        raise BrokenPromiseError(f"{name} before fit raised nothing")


def predictions_have_their_form(subject: Subject) -> None:
    """Scores are float32 `[N]`, maps float32 `[N, H, W]`, both finite, verdicts bool `[N]`."""
    found, count = subject.predictions, len(subject.test)
    sizes = (count, *subject.shared.geometry.output_size(*subject.size))
    wanted = {
        "anomaly_score": (np.float32, (count,)),
        "anomaly_map": (np.float32, sizes),
        "is_anomalous": (np.bool_, (count,)),
    }
    for name, (dtype, shape) in wanted.items():
        array = getattr(found, name)
        if array.dtype != dtype or array.shape != shape:
            raise BrokenPromiseError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        if not np.isfinite(array).all():
            raise BrokenPromiseError(f"{name} has values that are not finite")
    above = found.anomaly_score > subject.shared.threshold_ + subject.shared.calibration_.rounding
    near = np.abs(found.anomaly_score - subject.shared.threshold_) <= tolerance(
        subject.shared, found.anomaly_score
    )
    if ((above != found.is_anomalous) & ~near).any():
        raise BrokenPromiseError("is_anomalous is not whether the score lies above the threshold")


def predictions_keep_the_order(subject: Subject) -> None:
    """Predictions come in the order of the images, with the paths of files, from `predict` and in batches."""
    detector, paths = subject.shared, subject.files(subject.test)
    if subject.predictions.paths != [None] * len(subject.test):
        raise BrokenPromiseError("predictions for an array have paths")
    moved = [*paths[1:], paths[0]]
    found = detector.predict(moved)
    if found.paths != moved:
        raise BrokenPromiseError("the paths are not those of the images, in their order")
    back = Predictions(
        np.roll(found.anomaly_score, 1),
        np.roll(found.anomaly_map, 1, axis=0),
        np.roll(found.is_anomalous, 1),
        [*paths],
    )
    require_alike(detector, back, subject.predictions, "for the images in another order")
    batches = Predictions.concatenate(list(detector.predict_batches(subject.test)))
    require_alike(detector, batches, subject.predictions, "from predict_batches")


def defects_are_seen(subject: Subject) -> None:
    """An image with a defect does not score as the same image without, nor, unless trained, lower."""
    good, bad = np.split(subject.predictions.anomaly_score, 2)
    if not (np.abs(bad - good) > subject.shared.calibration_.rounding).any():
        raise BrokenPromiseError(
            f"scores with and without a defect differ by at most {np.abs(bad - good).max():.2g}"
        )
    if any(part.passes == "held_out" for part in subject.shared._parts()):
        return  # some that are trained find a flat blot easy
    rise = float((bad - good).mean())
    good_map, bad_map = (float(maps.mean()) for maps in np.split(subject.predictions.anomaly_map, 2))
    if not (bad_map > good_map or rise > tolerance(subject.shared, good)):
        raise BrokenPromiseError(
            f"with a defect maps have the mean {bad_map:.4g}, without {good_map:.4g}: the larger a score, "
            "the more anomalous it must be"
        )


def images_are_independent(subject: Subject) -> None:
    """An image has the same verdict, and but for rounding the same score and map, alone as among others."""
    singles = [subject.shared.predict(image[None]) for image in subject.test]
    alone = Predictions.concatenate(singles)
    require_alike(subject.shared, alone, subject.predictions, "for images one by one")


def batch_size_does_not_matter(subject: Subject) -> None:
    """Scores depend on the batch size by rounding alone, and so does what is learned in one pass."""
    detector = subject.fitted()
    for size in (1, 3):
        detector.batch_size = size
        require_alike(
            detector, detector.predict(subject.test), subject.predictions, f"with batch_size {size}"
        )
    if any(part.passes == "held_out" for part in detector._parts()):
        return
    for size in (1, 4):
        other = subject.unfitted()
        set_batch_size(other, size)
        other.fit(subject.train)
        require_alike(
            detector,
            other.predict(subject.test),
            subject.predictions,
            f"fitted with batch_size {size}",
            refitted=True,
        )


def threads_do_not_matter(subject: Subject) -> None:
    """Scores do not depend on torch's number of threads but for rounding."""
    before = torch.get_num_threads()
    expected = subject.predictions
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        found = subject.shared.predict(subject.test)
    finally:
        torch.set_num_threads(before)
    require_alike(subject.shared, found, expected, "with another number of threads")
