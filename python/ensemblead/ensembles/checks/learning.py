"""Checks of `fit`, `extend` and `calibrate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ensemblead.common.errors import UnreadableImageError
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.parts import Progress
from ensemblead.ensembles.checks.subject import (
    TRAINING_IMAGES,
    BrokenPromiseError,
    Snapshot,
    Subject,
    other_random_states,
    random_states,
    require_alike,
    set_batch_size,
    tolerance,
)


def fit_returns_the_detector(subject: Subject) -> None:
    """`fit` returns the detector, which is then fitted."""
    detector = subject.unfitted()
    if detector.fit(subject.train) is not detector:
        raise BrokenPromiseError("fit returned something else")
    if not detector.is_fitted:
        raise BrokenPromiseError("is_fitted is false after fit")


def input_stays_unchanged(subject: Subject) -> None:
    """Images given to `fit` and `predict` stay as they are."""
    train, test, detector = subject.train.copy(), subject.test.copy(), subject.unfitted()
    detector.fit(train)
    detector.predict(test)
    if not (np.array_equal(train, subject.train) and np.array_equal(test, subject.test)):
        raise BrokenPromiseError("the pixels of the array given were changed")
    paths = subject.files(subject.train)
    given = list(paths)
    subject.unfitted().fit(given)
    if given != paths:
        raise BrokenPromiseError("the list of paths given was changed")


def global_random_state_stays(subject: Subject) -> None:
    """Neither `fit` nor `predict` touches the global random states of Python, NumPy and torch."""
    detector = subject.unfitted().load_networks()
    for name, act in (("fit", detector.fit), ("predict", detector.predict)):
        with other_random_states():
            before = random_states()
            act(subject.train)
            if random_states() != before:
                raise BrokenPromiseError(f"{name} changed a global random state")


def seed_decides(subject: Subject) -> None:
    """The same images and the same seed give the same scores and the same threshold."""
    again, expected = subject.fitted(), subject.predictions
    require_alike(subject.shared, again.predict(subject.test), expected, "fitted a second time")
    allowed = tolerance(subject.shared, expected.anomaly_score)
    if not abs(again.threshold_ - subject.shared.threshold_) <= allowed:
        raise BrokenPromiseError(
            f"the threshold of a second fit is {again.threshold_:.6g}, not {subject.shared.threshold_:.6g}"
        )


def extending_keeps_what_is_known(subject: Subject) -> None:
    """`extend` learns more images and returns the detector, or raises ValueError and changes nothing."""
    detector = subject.fitted()
    before = Snapshot(detector, subject.test)
    try:
        returned = detector.extend(subject.others)
    except ValueError:
        before.require_unchanged("after an extend that was refused")
        return
    if returned is not detector:
        raise BrokenPromiseError("extend returned something else")
    found = detector.predict(subject.test)
    if not (np.isfinite(found.anomaly_score).all() and np.isfinite(found.anomaly_map).all()):
        raise BrokenPromiseError("extended, the detector gives scores that are not finite")
    for name, images in (("fitted", subject.train), ("extended", subject.others)):
        _require_refused(detector.calibrate, images, f"calibrate on {name} images")
    parts = detector._parts()
    if len(parts) == 1 and parts[0].extending_lowers_scores:
        rise = found.anomaly_score - subject.predictions.anomaly_score
        if not float(rise.max()) <= tolerance(detector, found.anomaly_score):
            raise BrokenPromiseError(
                f"extending_lowers_scores, but a score has risen by {float(rise.max()):.4g}"
            )


def one_image_is_enough(subject: Subject) -> None:
    """`fit` on a single image succeeds, and warns that its threshold says little."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        subject.unfitted().fit(subject.train[:1])
    if not any(issubclass(one.category, UserWarning) for one in caught):
        raise BrokenPromiseError("a fit on a single image warned of nothing")


def failure_changes_nothing(subject: Subject) -> None:
    """A `fit` or `extend` that fails or is interrupted leaves the detector as it was, ready to be fitted."""
    detector, twin = subject.unfitted(), subject.unfitted()
    before = Snapshot(detector, subject.test)
    last_calls = _last_calls(twin.fit, subject.train)
    for stage, number in last_calls.items():
        _interrupt(detector.fit, subject.train, stage, number, KeyboardInterrupt())
        before.require_unchanged(f"after a first fit interrupted in {stage!r}")
    detector.fit(subject.train)
    found = detector.predict(subject.test)
    require_alike(subject.shared, found, subject.predictions, "fitted after interrupts")
    before = Snapshot(detector, subject.test)
    # How often a stage reports may depend on the images: on how many rows a bank keeps of them, for one.
    for stage, number in _last_calls(subject.unfitted().fit, subject.others).items():
        _interrupt(detector.fit, subject.others, stage, number, RuntimeError("stop"))
        before.require_unchanged(f"after a second fit that failed in {stage!r}")
    try:
        last_calls = _last_calls(twin.extend, subject.others)
    except ValueError:
        return
    for stage, number in last_calls.items():
        _interrupt(detector.extend, subject.others, stage, number, KeyboardInterrupt())
        before.require_unchanged(f"after an extend interrupted in {stage!r}")


def _last_calls(act: Callable[..., Any], images: Any) -> dict[str, int]:
    """For every stage of learning the number of calls of `progress`."""
    stages: list[str] = []
    act(images, progress=lambda stage, done, total: stages.append(stage))
    return {stage: stages.count(stage) for stage in stages}


def _interrupt(act: Callable[..., Any], images: Any, stage: str, number: int, error: BaseException) -> None:
    """Learn, and raise from that call of `progress` in a stage."""
    calls = 0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal calls
        calls += name == stage
        if name == stage and calls == number:
            raise error

    try:
        act(images, progress=progress)
    except BaseException as found:
        if found is not error:
            raise
        return
    raise BrokenPromiseError(f"an error raised from progress in the stage {stage!r} was lost")


def calibration_needs_fresh_images(subject: Subject) -> None:
    """`calibrate` takes the threshold from fresh images, none of which is anomalous, and refuses others."""
    detector = subject.fitted()
    before = Snapshot(detector, subject.test)
    mixed = np.concatenate([subject.fresh, subject.train[:1]])
    _require_refused(detector.calibrate, mixed, "calibrate on images of the fit")
    before.require_unchanged("after a calibrate that was refused")
    if detector.calibrate(subject.fresh, 0.2) is not detector:
        raise BrokenPromiseError("calibrate returned something else")
    if not detector.calibration_.is_guaranteed:
        raise BrokenPromiseError(f"the origin of calibrated statistics is {detector.calibration_.origin!r}")
    found = detector.predict(subject.fresh)
    above = found.anomaly_score - detector.threshold_
    if (found.is_anomalous & (above > tolerance(detector, found.anomaly_score))).any():
        raise BrokenPromiseError("an image of so few that gave the threshold is anomalous")


def progress_ends_at_its_total(subject: Subject) -> None:
    """Every stage reports counts up to its total, and its total at last; images left out count as done."""
    detector = subject.unfitted()
    set_batch_size(detector, TRAINING_IMAGES // 2)
    files = [subject.unreadable_file(), *subject.files(subject.train), subject.unreadable_file()]
    runs: dict[str, tuple[Callable[..., Any], Any]] = {
        "fit": (detector.fit, subject.train),
        "predict": (detector.predict, subject.test),
        "calibrate": (detector.calibrate, subject.fresh),
        "predict with errors='skip'": (detector.predict, files),
        "fit with errors='skip'": (detector.fit, files),
    }
    for name, (act, images) in runs.items():
        calls: list[tuple[str, int, int]] = []
        act(images, errors="skip", progress=_recorder(calls))
        if not calls:
            raise BrokenPromiseError(f"{name} reported nothing")
        for stage, done, total in calls:
            if not (type(done) is int and type(total) is int and 0 <= done <= total):
                raise BrokenPromiseError(f"{name} reported {done!r} of {total!r} in the stage {stage!r}")
        for stage, (done, total) in {stage: (done, total) for stage, done, total in calls}.items():
            if done != total:
                raise BrokenPromiseError(f"{name} ended the stage {stage!r} at {done} of {total}")


def _recorder(calls: list[tuple[str, int, int]]) -> Progress:
    return lambda stage, done, total: calls.append((stage, done, total))


def bad_images_are_refused(subject: Subject) -> None:
    """No images, wrong pixels, and files that are missing or unreadable raise errors; nothing is learned."""
    floats = subject.train.astype(np.float32)
    unreadable = [*subject.files(subject.train), subject.unreadable_file()]
    wrong: dict[str, tuple[Any, type[Exception]]] = {
        "no images": ([], ValueError),
        "pixels of float32": (floats, TypeError),
        "a folder that is not there": (subject.folder / "nothing", FileNotFoundError),
        "an unreadable file": (unreadable, UnreadableImageError),
    }
    unfitted = subject.unfitted()
    for what, (images, kind) in wrong.items():
        _require_refused(unfitted.fit, images, f"fit on {what}", kind)
        _require_refused(subject.shared.predict, images, f"predict on {what}", kind)
    if unfitted.is_fitted:
        raise BrokenPromiseError("a fit that was refused left the detector fitted")


def unreadable_files_are_skipped(subject: Subject) -> None:
    """With `errors="skip"` files that cannot be read are left out and listed in `skipped_`, and no others."""
    # At the end, so that those before it are sampled, or held out, as they are without it.
    files = [*subject.files(subject.train), subject.unreadable_file()]
    detector = subject.unfitted()
    detector.fit(files, errors="skip")
    _require_skipped(detector, [len(subject.train)])
    require_alike(
        subject.shared,
        detector.predict(subject.test),
        subject.predictions,
        "fitted on files, one of them unreadable",
        refitted=True,
    )
    paths = subject.files(subject.test)
    found = subject.shared.predict([subject.unreadable_file(), *paths], errors="skip")
    _require_skipped(subject.shared, [0])
    if found.paths != paths:
        raise BrokenPromiseError("predictions are not those of the files that can be read")
    nothing = [subject.unreadable_file()]
    for name, act in (("fit", subject.unfitted().fit), ("predict", subject.shared.predict)):
        _require_refused(partial(act, errors="skip"), nothing, f"{name} on unreadable files alone")
    require_alike(subject.shared, found, subject.predictions, "of files, one of them unreadable")


def _require_skipped(detector: Detector, expected: list[int]) -> None:
    skipped = [one.index for one in detector.skipped_]
    if skipped != expected:
        raise BrokenPromiseError(f"skipped_ lists the images {skipped}, not {expected}")


def _require_refused(
    act: Callable[..., Any], images: Any, what: str, kind: type[Exception] = ValueError
) -> None:
    try:
        act(images)
    except kind:
        return
    raise BrokenPromiseError(f"{what} raised nothing")
