"""Checks of methods that learn in one pass: their leave-one-out statistics, and their states."""

from __future__ import annotations

import copy

import numpy as np
import torch

from ensemblead.calibration import DEFAULT_RATE, Calibration, NormalSample
from ensemblead.detectors.method import Method
from ensemblead.detectors.returned import tensors_of
from ensemblead.ensembles.checks.subject import (
    BrokenPromiseError,
    NotApplicableError,
    Subject,
    require_alike,
    tolerance,
)

# Where every training image comes twice, scores may lie lower by this share of the distance between those by
# leave-one-out and those of images that are known.
_LOWER = 0.4
# Scores are the same within this share of the largest.
_SAME = 1e-4


def _one_pass(subject: Subject) -> Method:
    """A fitted copy; ensembles and trained methods have statistics that are made for them."""
    method = subject.unfitted()
    if not isinstance(method, Method) or method.passes == "held_out":
        raise NotApplicableError("not a method that leaves images out one by one")
    method.fit(subject.train)
    return method


def _as_known(subject: Subject, method: Method) -> Calibration:
    """The statistics of the training images if none is left out."""
    found = method.predict(subject.train)
    sample = NormalSample()
    sample.add(torch.from_numpy(found.anomaly_score), torch.from_numpy(found.anomaly_map))
    known = sample.calibration(DEFAULT_RATE, "leave_one_out", "")
    if known.scores.shape != method.calibration_.scores.shape:
        raise NotApplicableError("not every training image is in the statistics")
    return known


def _require_left_out(method: Method, known: Calibration, what: str) -> None:
    """Raise where the statistics of a fit are those of images that are known."""
    found = method.calibration_
    pairs = ((found.scores, known.scores), (found.pixels, known.pixels))
    # In the same batches the network rounds alike, so that its precision does not matter.
    if not any(np.abs(one - other).max() > _SAME * np.abs(other).max() for one, other in pairs):
        raise BrokenPromiseError(f"{what}, calibration_ has the scores of predict on the training images")


def statistics_leave_one_out(subject: Subject) -> None:
    """The statistics of `fit` are of images left out, and not as `predict` scores the training images."""
    method = _one_pass(subject)
    _require_left_out(method, _as_known(subject, method), "fitted")


def statistics_leave_copies_out(subject: Subject) -> None:
    """Images that are equal are left out together: with every image twice, scores are not much lower."""
    method, other = _one_pass(subject), subject.unfitted()
    other.fit(np.concatenate([subject.train, subject.train]))
    assert isinstance(other, Method)
    known, once, twice = _as_known(subject, method), method.calibration_.scores, other.calibration_.scores
    if once.shape != twice.shape:
        raise BrokenPromiseError(
            f"with every image twice there are statistics of {len(twice)} images, not {len(once)}"
        )
    try:
        require_alike(method, other.predict(subject.test), method.predict(subject.test), "", refitted=True)
    except BrokenPromiseError:  # it learns more of twice as many images, so that scores may be lower
        _require_left_out(other, _as_known(subject, other), "with every image twice")
        return
    lower, most = float((once - twice).mean()), float((once - known.scores).mean())
    if most > 0 and lower > _LOWER * most + tolerance(method, once):
        raise BrokenPromiseError(
            f"with every image twice scores are lower by {lower:.4g} in the mean, and by {most:.4g} where "
            "nothing is left out"
        )


def extending_leaves_the_state(subject: Subject) -> None:
    """`extend` makes a new state, and leaves the one before it as it was."""
    method = _one_pass(subject)
    before, known = method.state_, copy.deepcopy(list(tensors_of(method._state_to_save())))
    method.extend(subject.others)
    method._state = before
    for (place, was), (_, now) in zip(known, tensors_of(method._state_to_save()), strict=True):
        if not torch.equal(was, now):
            raise BrokenPromiseError(f"extend changed the tensor {place} of the state that it was given")


def extending_forgets_nothing(subject: Subject) -> None:
    """After `extend` scores come from all images, not from those of `extend` alone."""
    method = _one_pass(subject)
    found = method.extend(subject.others).predict(subject.test)
    anew = subject.unfitted().fit(subject.others).predict(subject.test)
    difference = float(np.abs(found.anomaly_map - anew.anomaly_map).max())
    if not difference > _SAME * np.abs(found.anomaly_map).max():
        raise BrokenPromiseError("extended, it scores as if fitted on the new images alone")
