"""Learning: the passes over the images that parts of a detector need, and the statistics that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.calibration import (
    DEFAULT_RATE,
    Calibration,
    NormalSample,
    Originals,
    deciding_images,
    extended,
    known_images,
    sampled_positions,
    set_digest,
    warn_if_too_few,
)
from ensemblead.common.files import valid_text
from ensemblead.common.validation import whole_number
from ensemblead.common.warnings import ThresholdWarning, warn
from ensemblead.detectors.frozen import share_networks
from ensemblead.detectors.holdout import held_out, holdout_of
from ensemblead.detectors.left_out import LeftOut, in_step, named, not_learned
from ensemblead.detectors.one_pass import SharedPass, one_pass, require_readable
from ensemblead.detectors.parts import Fitted, Progress, Reading, Run, Tree, no_note
from ensemblead.detectors.provenance import record
from ensemblead.detectors.regions import inside_of
from ensemblead.detectors.returned import check_fitted
from ensemblead.detectors.running import report_skipped, scored_batches
from ensemblead.detectors.training.checkpoint import Checkpoint
from ensemblead.images import (
    Geometry,
    Images,
    ImageSet,
    ImageSource,
    SkippedImage,
    detect_bits,
    open_images,
)

# So many images are named in a message.
_NAMED = 3


def fit(
    detector: Tree,
    images: Any,
    errors: Any,
    progress: Progress | None,
    *,
    extending: bool,
    checkpoint: Checkpoint | None = None,
    max_rows: int | None = None,
) -> None:
    """Learn from images, and give the detector what came of it at the very end. The checkpoint stays."""
    if max_rows is not None:
        max_rows = whole_number("max_rows", max_rows, 1)
        if not any(part.has_bank for part in detector._parts()):
            raise ValueError("max_rows: there is no memory bank here to keep small; leave it out")
    if checkpoint is not None and not any(part.passes == "held_out" for part in detector._parts()):
        raise ValueError(
            "checkpoint: nothing is trained here, and only training is kept in one; leave it out"
        )
    learner = detector
    if not extending and any(_was_decided(part) for part in detector._parts()):
        learner = detector._clone()  # an earlier fit has settled the size, for its images
    trained = [part for part in learner._parts() if part.passes == "held_out"]
    source = opened_source(images, errors, detector.bits_ if extending else None)
    if extending and trained:
        raise ValueError(
            f"{_trained_name(trained[0])} cannot be extended, since it learns in many passes: fit it again, "
            "on all images together"
        )
    report = progress or (lambda stage, done, total: None)
    run = Run(
        report,
        len(source),
        sampled_positions(len(source)),
        checkpoint=checkpoint,
        max_rows=max_rows,
        note=getattr(progress, "note", no_note),
        describe=source.describe,
    )
    if extending:
        run = replace(run, known=frozenset(detector._fingerprints.tolist()))
    learned = learned_from(learner, source, errors, run, extending=extending)
    settle(detector, learned, source, extending=extending, max_rows=max_rows)


@dataclass(frozen=True)
class Learned:
    """What the parts of a detector have learned, and from which images.

    Attributes:
        states, calibrations: one per part.
        warnings: why thresholds say little.
        geometries: of the parts, as the images have decided them.
        identities: as `Images.identities` gives them.
        skipped: images that could not be read.
        rose: as in `Fitted`, of any part.
        left_out: one per part, as in `Reading`; images without their paths.
    """

    states: Sequence[Any]
    calibrations: Sequence[Calibration]
    warnings: Sequence[str]
    geometries: tuple[Geometry, ...]
    identities: Sequence[tuple[int, tuple[int, int], int]]
    skipped: Sequence[SkippedImage]
    rose: bool = False
    left_out: tuple[tuple[LeftOut, ...], ...] = ()

    def fingerprints(self) -> npt.NDArray[np.uint64]:
        """Of the images that were learned, by any part."""
        out = not_learned(self.left_out)
        return np.array([look for at, _, look in self.identities if at not in out], dtype=np.uint64)

    def reading(self, source: ImageSource) -> Reading:
        """For the detector that takes it."""
        left_out = tuple(named(own, source) for own in self.left_out)
        return Reading(self.geometries, self.fingerprints(), source.bits, left_out)


def learned_from(
    detector: Tree,
    source: ImageSource,
    errors: Any,
    run: Run,
    *,
    extending: bool = False,
    shared: SharedPass | None = None,
) -> Learned:
    """What a detector learns from images, which it does not take yet. `shared`: of its ensemble."""
    parts = detector._parts()
    holdout = holdout_of(parts) if shared is None else shared.holdout
    share_networks([network for part in parts for network in part._networks()])
    # A pass more, to find the images that are held out.
    again = shared is not None and shared.holdout is not None
    reread = [part for part in parts if again or part.passes != "one"]
    kept = [geometry for part in reread for geometry in part._kept_geometries()]
    memory = min((part.spool_bytes for part in parts), default=0)
    with Images(source, kept, errors=errors, memory_bytes=memory) as data:
        if holdout is not None:
            run = replace(run, sampled=held_out(data, holdout))
        fitted = learn(detector, data, run, extending=extending, shared=shared)
        identities, skipped = data.identities(), data.skipped
        geometries = tuple(data.frame(part.geometry) for part in parts)
    digest = set_digest(*zip(*identities, strict=True))
    return Learned(
        [one.state for one in fitted],
        [one.sample.calibration(DEFAULT_RATE, one.origin, digest, one.positions) for one in fitted],
        [message for one in fitted for message in one.warnings.values()],
        geometries,
        identities,
        skipped,
        any(one.rose for one in fitted),
        tuple(one.left_out for one in fitted),
    )


def settle(
    detector: Tree,
    learned: Learned,
    source: ImageSource,
    *,
    extending: bool = False,
    max_rows: int | None = None,
) -> None:
    """Give a detector what it has learned, and warn of what is doubtful."""
    detector.skipped_ = list(learned.skipped)
    report_skipped(source, learned.skipped)
    reading = learned.reading(source)
    known = detector._fingerprints if extending else np.empty(0, dtype=np.uint64)
    if repeats := int(known_images(reading.fingerprints.tolist(), known).sum()):
        warn(
            f"{repeats} of the images were learned already: their scores say nothing of new images, and stay "
            "out of the statistics"
        )
    for message in dict.fromkeys(learned.warnings):
        warn(message, ThresholdWarning)
    calibrations = in_step(learned.calibrations, learned.left_out)
    if extending:
        falling = all(part.extending_lowers_scores for part in detector._parts()) and not learned.rose
        before = [part.calibration_ for part in detector._parts()]
        calibrations = extended(before, calibrations, falling)
        if any(one.given is not None for one in (detector.calibration_, *before)):
            warn(
                "the threshold was given and stays, though the scores of images have changed: call calibrate",
                ThresholdWarning,
            )
        before_it = tuple(part.left_out_ for part in detector._parts())
        together = np.concatenate([known, reading.fingerprints])
        reading = replace(reading, fingerprints=together, left_out=before_it)
    else:
        calibrations = _with_deciding(detector, calibrations, source, bool(learned.warnings))
        detector._forget_threshold()
    detector._take(list(learned.states), reading)
    detector._accept(calibrations)
    digest = set_digest(*zip(*learned.identities, strict=True))
    arguments = {} if max_rows is None else {"max_rows": max_rows}
    record(detector, "extend" if extending else "fit", len(learned.identities), digest, **arguments)


def _was_decided(part: Any) -> bool:
    """Whether images have settled `resize="auto"`, or the size that polygons are drawn on."""
    return not part._geometry.is_decided and part.geometry.is_decided


def _with_deciding(
    detector: Tree, calibrations: list[Calibration], source: ImageSource, is_doubtful: bool
) -> list[Calibration]:
    """The calibrations with the images that decide the detector's threshold, and a warning of them.

    `is_doubtful`: the threshold says little for another reason, of which there is a warning.
    """
    twin = detector._clone()
    twin._accept(calibrations)
    whole = twin.calibration_
    found, _ = deciding_images(whole)
    if not found:
        return calibrations
    which = tuple(whole.positions.index(position) for position, _ in found)
    names = tuple(valid_text(source.describe(position)) for position, _ in found)
    sentence = replace(whole, deciding=which, deciding_names=names).describe_deciding()
    if not is_doubtful:
        remedy = "check that they are normal, give more images, or call calibrate"
        warn(f"{sentence}; {remedy}", ThresholdWarning)
    return [replace(one, deciding=which, deciding_names=names) for one in calibrations]


def _trained_name(part: Any) -> str:
    """The class of a part that is trained; of tiles that of their trained member."""
    while hasattr(part, "member"):
        part = next(one for one in part.member._parts() if one.passes == "held_out")
    return type(part).__name__


def opened_source(images: Any, errors: Any, bits: int | None = None) -> ImageSource:
    """The images of a fit: 16-bit files by the bits that they use, if the caller has not said how many."""
    source = open_images(images)
    if source.bits is not None:
        return source
    return open_images(source, bits=detect_bits(source, errors=errors) if bits is None else bits)


def learn(
    detector: Tree,
    images: ImageSet,
    run: Run,
    *,
    extending: bool = False,
    shared: SharedPass | None = None,
) -> list[Fitted]:
    """What the parts of a detector learn from images, one per part; the detector stays as it is.

    Parts that learn in one pass share it; the others make passes of their own.
    """
    parts = detector._parts()
    sharing = {i: part for i, part in enumerate(parts) if part.passes == "one"}
    fitted: dict[int, Fitted] = {}
    if sharing:
        # Tiles are what they are; whole images must be seen alike by all members.
        check = detector._check_batch if isinstance(images, Images) else None
        learned = one_pass(
            list(sharing.values()), images, run, extending=extending, shared=shared, check=check
        )
        fitted = dict(zip(sharing, learned, strict=True))
    require_readable(images)
    for i, part in enumerate(parts):
        if i not in fitted:
            found = part._learn(images, run.below(f"part{i}"), extending=extending)
            fitted[i] = check_fitted(part, found)
    return [fitted[i] for i in range(len(parts))]


def calibrate(
    detector: Tree, images: Any, rate: float, errors: Any, progress: Progress | None
) -> list[Calibration]:
    """Statistics of fresh images, one per part; images that equal one before them count once."""
    parts = detector._parts()
    samples = [NormalSample() for _ in parts]
    learned, originals = detector._fingerprints, Originals()
    positions, sizes, fingerprints, fitted = list[int](), list[tuple[int, int]](), list[int](), list[str]()
    for batch, seen in scored_batches(detector, images, errors, progress, "calibrate"):
        known = known_images(batch.fingerprints, learned)
        fitted += [batch.paths[i] or f"image {batch.indices[i]}" for i in np.flatnonzero(known)]
        looks = zip(batch.indices, batch.sizes, batch.fingerprints, strict=True)
        fresh = [i for i, look in enumerate(looks) if originals.of(*look) == look[0]]
        positions += [batch.indices[i] for i in fresh]
        sizes += [batch.sizes[i] for i in fresh]
        fingerprints += [batch.fingerprints[i] for i in fresh]
        results = zip(samples, seen, detector._results(seen), strict=True)
        for sample, own, (scores, maps) in results:
            sample.inside = inside_of(own.frame)
            if fresh:
                sample.add(scores[fresh], maps[fresh])
    if fitted:
        some = ", ".join(fitted[:_NAMED]) + (", ..." if len(fitted) > _NAMED else "")
        raise ValueError(
            f"images: the detector was fitted on {len(fitted)} of them ({some}), so that no false-alarm rate "
            "could be guaranteed; give images that it has not seen"
        )
    for part, sample in zip(parts, samples, strict=True):
        sample.rounding, sample.map_rounding = part._roundings(sample)
    digest = set_digest(positions, sizes, fingerprints)
    calibrations = [sample.calibration(rate, "calibrated", digest) for sample in samples]
    warn_if_too_few(calibrations[:1])
    return calibrations


def nothing_read() -> Reading:
    """Of a detector that has learned nothing, or from images that others read for it."""
    return Reading((), np.empty(0, dtype=np.uint64))
