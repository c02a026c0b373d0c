"""Images that a robust fit has left out: what is said of them, kept of them, and joined over members."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ensemblead.calibration import Calibration
from ensemblead.common.files import valid_text
from ensemblead.common.validation import finite_number, whole_number
from ensemblead.images import ImageSource


@dataclass(frozen=True)
class LeftOut:
    """A training image that a robust fit has left out, since it is odd among the others.

    Attributes:
        index: its place among the images given to `fit`.
        path: of its file; None of an array.
        score: how many robust deviations it lies above the median of all images.
        by: which members of an ensemble, or tile locations, have left it out; empty for a detector alone.
        partly: whether others of them have learned it.
    """

    index: int
    path: str | None
    score: float
    by: tuple[int, ...] = ()
    partly: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", whole_number("index", self.index, 0))
        object.__setattr__(self, "score", finite_number("score", self.score))
        object.__setattr__(self, "by", tuple(whole_number("by", one, 0) for one in self.by))
        if not (self.path is None or isinstance(self.path, str)) or not isinstance(self.partly, bool):
            raise TypeError(
                f"path must be a str or None and partly a bool, got {self.path!r}, {self.partly!r}"
            )

    def plain(self) -> list[Any]:
        """In JSON's types; `LeftOut.of` reads it."""
        path = None if self.path is None else valid_text(self.path)
        return [self.index, path, self.score, list(self.by), self.partly]

    @classmethod
    def of(cls, plain: Any) -> LeftOut:
        """What `plain` gave. Raises ValueError or TypeError for what it never gives."""
        index, path, score, by, partly = plain
        return cls(index, path, score, tuple(by), partly)


def oddest_first(found: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """In the order in which they are told."""
    return tuple(sorted(found, key=lambda one: (-one.score, one.index)))


def with_copies(scores: Mapping[int, float], copies: Mapping[int, Sequence[int]]) -> tuple[LeftOut, ...]:
    """Images by the score of their number; `copies` has the places of all images of a number."""
    return oddest_first(
        LeftOut(place, None, score) for number, score in scores.items() for place in copies[number]
    )


def named(found: Iterable[LeftOut], source: ImageSource) -> tuple[LeftOut, ...]:
    """With their paths."""
    paths = source.paths
    return tuple(replace(one, path=None if (at := paths[one.index]) is None else str(at)) for one in found)


def joined(found: Sequence[Iterable[LeftOut]]) -> tuple[LeftOut, ...]:
    """What several members or tile locations have left out: every image once, with its largest score."""
    by: dict[int, list[tuple[int, LeftOut]]] = {}
    for number, own in enumerate(found):
        for one in own:
            by.setdefault(one.index, []).append((number, one))
    return oddest_first(
        replace(
            max((one for _, one in several), key=lambda one: one.score),
            by=tuple(number for number, _ in several),
            partly=len(several) < len(found) or any(one.partly for _, one in several),
        )
        for several in by.values()
    )


def not_learned(found: Sequence[Iterable[LeftOut]]) -> frozenset[int]:
    """Places of the images that no part has learned anything of."""
    return frozenset(one.index for one in joined(found) if not one.partly)


def in_step(calibrations: Sequence[Calibration], found: Sequence[Iterable[LeftOut]]) -> list[Calibration]:
    """Scores of the images that no part has left out: of the same ones for all parts, so that they can be
    fused image by image. Means and deviations of maps stay those of the part's own images.

    Where no image is left, or it is not known which they are, every part keeps its own, and the digests say
    that they are not the same.
    """
    out = {one.index for own in found for one in own}
    which = [[at not in out for at in one.positions] for one in calibrations]
    if not out or not all(any(rows) for rows in which):
        pairs = zip(calibrations, found, strict=True)
        return [replace(one, images_sha256=digest_without(one.images_sha256, own)) for one, own in pairs]
    return [
        replace(
            one,
            scores=one.scores[rows],
            pixels=one.pixels[rows],
            peaks=None if one.peaks is None else one.peaks[rows],
            positions=tuple(at for at in one.positions if at not in out),
            images_sha256=digest_without(one.images_sha256, joined(found)),
        )
        for one, rows in zip(calibrations, which, strict=True)
    ]


def digest_without(digest: str, found: Iterable[LeftOut]) -> str:
    """SHA-256 of a set of images, from that of the set which these were left out of."""
    out = sorted({one.index for one in found})
    return hashlib.sha256(f"{digest} without {out}".encode()).hexdigest() if out else digest
