"""`ead.check_detector`: whether a detector keeps what all detectors promise."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection
from pathlib import Path

from ensemblead.common.errors import (
    BackboneUnavailableError,
    DetectorCheckError,
    MissingExtraError,
    WeightsUnavailableError,
)
from ensemblead.common.validation import did_you_mean
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.parts import Progress
from ensemblead.ensembles.checks import combining, construction, learning, one_pass, regions, saving, scoring
from ensemblead.ensembles.checks.subject import BrokenPromiseError, NotApplicableError, Subject

_CHECKS = (
    construction.parameters_are_kept,
    construction.construction_is_light,
    construction.description_is_inverse,
    scoring.unfitted_is_refused,
    learning.fit_returns_the_detector,
    scoring.predictions_have_their_form,
    scoring.predictions_keep_the_order,
    scoring.defects_are_seen,
    learning.input_stays_unchanged,
    learning.global_random_state_stays,
    learning.seed_decides,
    scoring.images_are_independent,
    scoring.batch_size_does_not_matter,
    scoring.threads_do_not_matter,
    saving.saved_models_are_equal,
    saving.incomplete_states_are_refused,
    saving.nan_is_refused,
    learning.extending_keeps_what_is_known,
    learning.one_image_is_enough,
    learning.failure_changes_nothing,
    learning.calibration_needs_fresh_images,
    learning.progress_ends_at_its_total,
    learning.bad_images_are_refused,
    learning.unreadable_files_are_skipped,
    one_pass.statistics_leave_one_out,
    one_pass.statistics_leave_copies_out,
    one_pass.extending_leaves_the_state,
    one_pass.extending_forgets_nothing,
    regions.inspects_its_region,
    combining.works_beside_others,
    combining.works_in_tiles,
    combining.works_shared_by_tiles,
    combining.works_nested,
)
CHECKS = tuple(check.__name__ for check in _CHECKS)
# These say something of the machine, not of the detector.
_OF_THE_MACHINE = (MissingExtraError, WeightsUnavailableError, BackboneUnavailableError)


def check_detector(
    detector: Detector,
    *,
    checks: Collection[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Check that a detector, a method or an ensemble, keeps what all detectors promise.

    It is fitted about forty times, on few and small images that are drawn here, alone and as a member of
    ensembles; saved and loaded; extended, calibrated, interrupted, and given bad input. How well it finds
    defects is not judged. Checks work on copies: the detector stays as it is, but its network may be loaded.
    Its class must be registered (`ead.register`), for models are saved under that name.

    Images are drawn at the size of the mask of its region, else at that which the detector resizes to, else
    at that of its crop, else at 64 pixels: with `resize=64, image_size=None` the checks take seconds, with
    `resize=256` minutes.

    >>> import ensemblead as ead
    >>> detector = ead.PatchCore("gabor", ("layer1",), resize=32, image_size=None, device="cpu")
    >>> ead.check_detector(detector, checks=["seed_decides", "saved_models_are_equal"])
    ['seed_decides', 'saved_models_are_equal']

    Args:
        detector: unfitted or fitted; what it has learned does not matter.
        checks: the names of those to run; None: all.
        seed: of the images.
        progress: called after every check with its name, how many are done, and how many there are.

    Returns the names of the checks that were passed. Those that say nothing of this detector are left out,
    such as tiles of a detector that is tiled itself or has a region, or leave-one-out statistics of one that
    is trained.

    Raises DetectorCheckError, naming the check, at the first promise that is broken; ValueError for a
    `BackboneEnsemble` with `fusion="minmax"`, which scores sets of images.
    """
    if not isinstance(detector, Detector):
        raise TypeError(f"detector must be a detector, got {type(detector).__name__}")
    detector._require_single_image_scores()
    for name in checks or ():
        if name not in CHECKS:
            raise ValueError(f"checks: there is no {name!r}; {did_you_mean(name, CHECKS)}")
    chosen = [check for check in _CHECKS if checks is None or check.__name__ in checks]
    passed = []
    with tempfile.TemporaryDirectory(prefix="ensemblead-check-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images make poor thresholds
        subject = Subject(detector, seed, Path(folder))
        for done, check in enumerate(chosen, 1):
            name = check.__name__
            try:
                check(subject)
                passed.append(name)
            except NotApplicableError:
                pass
            except _OF_THE_MACHINE:
                raise
            except Exception as error:
                raise DetectorCheckError(_message(subject, name, check.__doc__, error)) from error
            if progress is not None:
                progress(name, done, len(chosen))
    return passed


def _message(subject: Subject, name: str, promise: str | None, error: Exception) -> str:
    promise = " ".join((promise or "").split())
    seen = str(error) if isinstance(error, BrokenPromiseError) else f"{type(error).__name__}: {error}"
    return f"{subject.name} fails {name}. Promised: {promise} Seen: {seen}"
