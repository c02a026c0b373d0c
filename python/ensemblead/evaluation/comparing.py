"""Two detectors on the same images: scores, verdicts that change, and metrics where truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblead.common.extras import require
from ensemblead.common.objects import quiet_outside
from ensemblead.datasets.categories import Category, Dataset
from ensemblead.detectors.text import constructor_text
from ensemblead.evaluation.gallery import Picture, Pictures, color_scale, describe_threshold, reduced_map
from ensemblead.evaluation.measure import Options, check_category, measure_category
from ensemblead.evaluation.results import NAN, Row
from ensemblead.metrics import Interval

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

Progress = Callable[[str, int, int], None]
_SIDES = ("old", "new")


@dataclass(frozen=True)
class ComparedImage:
    """One image, by the old detector and by the new one.

    Attributes:
        path: the file; "image 3" for the fourth one that is in none.
        label, defect_type: what is known of it: whether it is defective, and how; None where nothing is.
        old_score, new_score: the scores, each in its detector's units.
        old_relative, new_relative: where the score lies: -1 at the median of the detector's normal images, 0
            at its threshold. NaN where one of the two is not known.
        old_verdict, new_verdict: whether it is called anomalous; None where there is no threshold.
        old_knows, new_knows: whether the detector has learned this image, so that its score says nothing of
            new ones.
    """

    path: str
    label: bool | None
    defect_type: str | None
    old_score: float
    new_score: float
    old_relative: float
    new_relative: float
    old_verdict: bool | None
    new_verdict: bool | None
    old_knows: bool
    new_knows: bool

    @property
    def is_changed(self) -> bool:
        """Whether both have a verdict, and not the same."""
        return None not in (self.old_verdict, self.new_verdict) and self.old_verdict != self.new_verdict


@dataclass(frozen=True)
class ComparedDetector:
    """One of the two.

    Attributes:
        name: the detector with its parameters, in a line.
        threshold: its own; NaN where it has none.
        threshold_source: where it comes from, in words; "" where there is none.
        row: its metrics; None without ground truth.
        intervals: bootstrap intervals of the metrics, by name.
        history: what was done to it, in plain values, as `detector.history_`.
        checksum: of the saved model that it was loaded from; None if from none.
    """

    name: str
    threshold: float
    threshold_source: str
    row: Row | None
    intervals: Mapping[str, Interval]
    history: tuple[Any, ...]
    checksum: str | None


@dataclass(frozen=True)
class ComparedMaps:
    """The maps of a changed image, to be shown: of the old detector and of the new one."""

    index: int
    old: Picture
    new: Picture


@dataclass(frozen=True, eq=False)
class Compared:
    """The outcome of `compare` as data.

    Attributes:
        images: All images that both have scored, in their order.
        old, new: The detectors.
        notes: What a reader must know, a sentence each.
        maps: Those of changed images that are kept to be shown.
        frames: How maps lie on their images and their colours, of both; no pictures are in them.
    """

    images: tuple[ComparedImage, ...]
    old: ComparedDetector
    new: ComparedDetector
    notes: tuple[str, ...] = ()
    maps: tuple[ComparedMaps, ...] = ()
    frames: tuple[Pictures, Pictures] | None = None

    @property
    def changed(self) -> tuple[ComparedImage, ...]:
        """The images whose verdict changes, the largest change first; of equal ones in their order."""
        return tuple(sorted((one for one in self.images if one.is_changed), key=lambda one: -_change(one)))

    @property
    def has_truth(self) -> bool:
        """Whether it is known which images are defective."""
        return self.old.row is not None

    @property
    def mended(self) -> int:
        """How many of the changed verdicts were wrong before, and are right now; 0 without ground truth."""
        return sum(one.new_verdict == one.label for one in self.changed) if self.has_truth else 0

    @property
    def broken(self) -> int:
        """How many of the changed verdicts were right before, and are wrong now; 0 without ground truth."""
        return len(self.changed) - self.mended if self.has_truth else 0

    @property
    def chance(self) -> float:
        """McNemar's exact test: the probability of so uneven a change, or a more uneven one, if both were as
        often right (Psychometrika 12, 1947). NaN without ground truth; 1 where nothing changes.
        """
        if not self.has_truth:
            return NAN
        require("scipy", "the test of changed verdicts")
        from scipy.special import bdtr

        less, total = min(self.mended, self.broken), self.mended + self.broken
        return min(1.0, 2.0 * float(bdtr(less, total, 0.5))) if total else 1.0


@dataclass
class _Scored:
    """What one detector says of all images."""

    paths: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    verdicts: list[bool | None] = field(default_factory=list)
    known: frozenset[str] = frozenset()
    row: Row | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    truth: dict[str, tuple[bool, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()  # those of `paths` that are in a file


def compare_detectors(
    old: Detector,
    new: Detector,
    data: Any,
    options: Options,
    progress: Progress | None = None,
) -> Compared:
    """Score the same images with both; arguments and errors as for `compare`."""
    for name, detector in zip(_SIDES, (old, new), strict=True):
        if getattr(detector, "fusion", None) == "minmax":
            raise ValueError(
                f"{name}: fusion='minmax' gives single images no score that could be compared; evaluate both"
            )
    category = _category_of(data)
    if category is not None:
        check_category(category, options)
    first, second = (
        _scored(name, detector, data, category, options, progress)
        for name, detector in zip(_SIDES, (old, new), strict=True)
    )
    images = _joined(first, second, old, new)
    if not images:
        raise ValueError("data: no image was scored by both detectors")
    found = Compared(
        images,
        _described(old, first),
        _described(new, second),
        tuple(_notes(old, new, first, second, images)),
    )
    return _with_maps(found, old, new, first.files, options) if options.gallery else found


def _category_of(data: Any) -> Category | None:
    """The only category of a data set; None of plain images. Raises ValueError for several."""
    if not isinstance(data, (Dataset, Category)):
        return None
    if len(data.categories) != 1:
        names = ", ".join(one.name for one in data.categories)
        raise ValueError(
            f"data must have one category, got {len(data.categories)} ({names}): compare by each"
        )
    return data.categories[0]


def _scored(
    name: str,
    detector: Detector,
    data: Any,
    category: Category | None,
    options: Options,
    progress: Progress | None,
) -> _Scored:
    def report(_: str, done: int, total: int) -> None:
        if progress is not None:
            progress(name, done, total)

    if category is not None:
        # The pictures of an evaluation are others: here those of changed images matter.
        found = measure_category(detector, category, replace(options, gallery=0), progress=report)
        images = found.details.images
        learned = {category.test[index].path for index in detector.known_}
        return _Scored(
            [one.path for one in images],
            [one.score for one in images],
            [one.is_anomalous for one in images],
            frozenset(learned),
            found.row,
            found.details.intervals,
            {one.path: (one.label, one.defect_type) for one in images},
            found.warnings,
            frozenset(one.path for one in images),
        )
    scored = _Scored()
    has_threshold = math.isfinite(detector.threshold_)
    for batch in detector.predict_batches(data, errors=options.errors, progress=report):
        start = len(scored.paths)
        scored.paths += [path or f"image {start + i}" for i, path in enumerate(batch.paths)]
        scored.files |= {path for path in batch.paths if path is not None}
        scored.scores += batch.anomaly_score.tolist()
        scored.verdicts += batch.is_anomalous.tolist() if has_threshold else [None] * len(batch)
    # `known_` counts images that were left out, as the detector does.
    left_out = {image.index for image in detector.skipped_}
    places = [index for index in range(len(scored.paths) + len(left_out)) if index not in left_out]
    learned_places = set(detector.known_)
    named = zip(places, scored.paths, strict=True)
    scored.known = frozenset(path for place, path in named if place in learned_places)
    return scored


def _joined(first: _Scored, second: _Scored, old: Detector, new: Detector) -> tuple[ComparedImage, ...]:
    """The images that both have scored."""
    later = {path: place for place, path in enumerate(second.paths)}
    relative = _relative(old), _relative(new)
    images = []
    for place, path in enumerate(first.paths):
        other = later.get(path)
        if other is None:
            continue
        label, kind = first.truth.get(path, (None, None))
        before, after = first.scores[place], second.scores[other]
        images.append(
            ComparedImage(
                path,
                label,
                kind,
                before,
                after,
                relative[0](before),
                relative[1](after),
                first.verdicts[place],
                second.verdicts[other],
                path in first.known,
                path in second.known,
            )
        )
    return tuple(images)


def _relative(detector: Detector) -> Callable[[float], float]:
    """Scores to where they lie between the median normal image and the threshold."""
    known = detector.calibration_
    threshold = float(detector.threshold_)
    median = float(np.median(known.scores)) if known.has_statistics else NAN
    reach = threshold - median
    if not (math.isfinite(reach) and reach > 0):
        return lambda score: NAN
    return lambda score: (score - threshold) / reach


def _change(image: ComparedImage) -> float:
    change = abs(image.new_relative - image.old_relative)
    return abs(image.new_score - image.old_score) if math.isnan(change) else change


def _described(detector: Detector, scored: _Scored) -> ComparedDetector:
    threshold = float(detector.threshold_)
    return ComparedDetector(
        constructor_text(detector),
        threshold if math.isfinite(threshold) else NAN,
        describe_threshold(detector),
        scored.row,
        scored.intervals,
        detector.history_,
        detector._loaded,
    )


def _notes(
    old: Detector, new: Detector, first: _Scored, second: _Scored, images: Sequence[ComparedImage]
) -> list[str]:
    """What makes the comparison less than it seems."""
    both = [line for line in first.notes if line in second.notes]
    notes = [
        *both,
        *(
            f"{name}: {line}"
            for name, scored in zip(_SIDES, (first, second), strict=True)
            for line in scored.notes
            if line not in both
        ),
    ]
    own = "metrics of pixels are those of each one's own frame"
    if replace(old.geometry, region=None) != replace(new.geometry, region=None):
        notes.append(
            f"the detectors see images in other sizes: the old one {_seen(old)}, the new one {_seen(new)}; "
            f"{own}"
        )
    if old.geometry.region != new.geometry.region:
        regions = [one.geometry.region or "all of a photograph" for one in (old, new)]
        notes.append(
            f"the detectors inspect other regions: the old one {regions[0]}, the new one {regions[1]}; {own}"
        )
    known = sum(one.old_knows for one in images), sum(one.new_knows for one in images)
    for name, count in zip(_SIDES, known, strict=True):
        # Of a data set the measurement has said so.
        if count and first.row is None:
            notes.append(
                f"the {name} detector has learned {count} of the {len(images)} images: their scores by it "
                "say nothing of new images"
            )
    for name, scored in zip(_SIDES, (first, second), strict=True):
        if None in scored.verdicts:
            notes.append(f"the {name} detector has no threshold, so that no verdict can change")
    left_out = len(set(first.paths) ^ set(second.paths))
    if left_out:
        notes.append(f"{left_out} images were scored by one of the detectors alone, and are left out")
    return notes


def _seen(detector: Detector) -> str:
    geometry = detector.geometry
    crop = "" if geometry.crop is None else f", crop {geometry.crop}"
    return f"resize {geometry.resize}{crop}"


def _with_maps(
    found: Compared, old: Detector, new: Detector, in_files: frozenset[str], options: Options
) -> Compared:
    """With the maps of the most changed images that are in files, which are predicted once more."""
    places = {one.path: place for place, one in enumerate(found.images)}
    chosen = [places[one.path] for one in found.changed if one.path in in_files]
    chosen = chosen[: options.gallery]
    before, after = _frame(old), _frame(new)
    if not chosen or before is None or after is None:
        return found
    files = [found.images[place].path for place in chosen]
    pairs = []
    for detector in (old, new):
        kept: dict[str, Picture] = {}
        # An image that has gone since has no picture.
        for batch in detector.predict_batches(files, errors=options.errors):
            for path, values in zip(batch.paths, batch.anomaly_map, strict=True):
                kept[str(path)] = reduced_map(places[str(path)], quiet_outside(values, batch.geometry))
        pairs.append(kept)
    first, second = pairs
    maps = [
        ComparedMaps(place, first[path], second[path])
        for place, path in zip(chosen, files, strict=True)
        if path in first and path in second
    ]
    return replace(found, maps=tuple(maps), frames=(before, after))


def _frame(detector: Detector) -> Pictures | None:
    """How a detector's maps are shown; None where it has no statistics for their colours."""
    if not detector.calibration_.has_statistics:
        return None
    return Pictures((), detector.geometry, color_scale(detector), detector.bits_)
