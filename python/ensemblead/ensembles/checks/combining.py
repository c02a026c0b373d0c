"""Checks of a detector as a member of ensembles."""

from __future__ import annotations

import numpy as np

from ensemblead.common.predictions import Predictions
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.method import Method
from ensemblead.detectors.patchcore import PatchCore
from ensemblead.ensembles.backbones import BackboneEnsemble
from ensemblead.ensembles.checks.drawing import Pixels, darkened, good_images, with_blots
from ensemblead.ensembles.checks.subject import (
    TEST_IMAGES,
    TRAINING_IMAGES,
    BrokenPromiseError,
    NotApplicableError,
    Subject,
    contains_tiles,
    methods,
    require_alike,
)
from ensemblead.ensembles.tiles import TiledEnsemble


def works_beside_others(subject: Subject) -> None:
    """In a `BackboneEnsemble`, beside another detector, it learns what it learns alone."""
    ensemble = BackboneEnsemble([subject.unfitted(), _neighbour(subject)])
    ensemble.fit(subject.train)
    own = [batch[0] for batch in ensemble.predict_members(subject.test)]
    require_alike(
        subject.shared,
        Predictions.concatenate(own),
        subject.predictions,
        "fitted beside another detector",
        refitted=True,
    )
    _require_whole(subject, ensemble, subject.test)


def works_in_tiles(subject: Subject) -> None:
    """In a `TiledEnsemble` the detector of a location learns what it would alone, of its part of images."""
    tiles = _Tiles(subject)
    ensemble = tiles.ensemble(shared=False)
    ensemble.fit(tiles.train)
    if len(ensemble.members_) != tiles.count:
        raise BrokenPromiseError(f"{tiles.count} locations have {len(ensemble.members_)} detectors")
    _require_whole(subject, ensemble, tiles.test)
    if not tiles.comparable:
        return
    tests = [tiles.framed(tiles.test, number) for number in range(tiles.count)]
    # Before others are fitted, from which nothing may come to these.
    predictions = [member.predict(test) for member, test in zip(ensemble.members_, tests, strict=True)]
    for number, member in enumerate(ensemble.members_):
        alone = subject.unfitted()
        alone.fit(tiles.framed(tiles.train, number))
        what = f"at tile location {number}"
        require_alike(alone, predictions[number], alone.predict(tests[number]), what, refitted=True)
        found, wanted = member.calibration_.scores, alone.calibration_.scores
        if found.shape != wanted.shape:
            raise BrokenPromiseError(f"{what} there are statistics of {len(found)} images, not {len(wanted)}")


def works_shared_by_tiles(subject: Subject) -> None:
    """In a `TiledEnsemble` with `shared=True` one detector learns the tiles of all images."""
    tiles = _Tiles(subject)
    if any(getattr(part, "position_radius", None) is not None for part in subject.unfitted()._parts()):
        raise NotApplicableError("places of one tile are not those of another")
    ensemble = tiles.ensemble(shared=True)
    ensemble.fit(tiles.train)
    if len(ensemble.members_) != 1:
        raise BrokenPromiseError(f"there are {len(ensemble.members_)} detectors, not one")
    _require_whole(subject, ensemble, tiles.test)
    alone, member = subject.unfitted(), ensemble.members_[0]
    # Statistics, and images held out, go by whole images there, which scores that are divided by them show.
    if not isinstance(alone, Method) or alone.has_scale or ensemble.passes == "held_out":
        return
    framed = [tiles.framed(tiles.train, number) for number in range(tiles.count)]
    alone.fit(np.stack(framed, 1).reshape(-1, *framed[0].shape[1:]))
    test = tiles.framed(tiles.test, 0)
    what = "shared by all tiles"
    require_alike(alone, member.predict(test), alone.predict(test), what, refitted=True)


def works_nested(subject: Subject) -> None:
    """It works in ensembles of ensembles, those of tiles and of backbones."""
    inner: Detector = BackboneEnsemble([subject.unfitted(), _neighbour(subject)], fusion="max")
    other: Detector = _neighbour(subject)
    images, test = subject.train, subject.test
    if not contains_tiles(inner):
        tiles = _Tiles(subject)
        inner, other = tiles.ensemble(member=inner), tiles.ensemble(member=other)
        images, test = tiles.train, tiles.test
    ensemble = BackboneEnsemble([inner, other])
    ensemble.fit(images)
    _require_whole(subject, ensemble, test)


def _neighbour(subject: Subject) -> PatchCore:
    """Another detector, that looks at the same part of images."""
    detector = subject.unfitted()
    own = methods(detector)
    geometry = detector.geometry
    return PatchCore(
        "gabor",
        ("layer1",),
        resize=geometry.resize,
        image_size=geometry.crop,
        coreset_fraction=0.1,
        region=detector.region,
        device=own[0].device if own else "cpu",
        seed=subject.seed,
    )


def _require_whole(subject: Subject, ensemble: Detector, test: Pixels) -> None:
    """Raise for an ensemble that does not see defects, or is another one after it was saved."""
    found = ensemble.predict(test)
    if not (np.isfinite(found.anomaly_score).all() and np.isfinite(found.anomaly_map).all()):
        raise BrokenPromiseError("the ensemble gives scores that are not finite")
    good, bad = np.split(found.anomaly_map, 2)
    if not (np.abs(bad - good) > ensemble.calibration_.rounding_of_maps).any():
        raise BrokenPromiseError("the ensemble's maps with and without a defect are equal")
    again = subject.saved_and_loaded(ensemble)
    require_alike(ensemble, again.predict(test), found, "saved and loaded")


class _Tiles:
    """Images of two overlapping tiles, each of the size at which the detector sees images."""

    count = 2

    def __init__(self, subject: Subject) -> None:
        detector = subject.unfitted()
        if contains_tiles(detector):
            raise NotApplicableError("tiles are not tiled again")
        if detector.region is not None:
            raise NotApplicableError("a region is of whole images, so that a tile's detector is given none")
        if any(getattr(part, "defects", None) is not None for part in methods(detector)):
            raise NotApplicableError("known defects are whole images, and tiles do not learn them")
        if any(getattr(part, "foreground", None) is not None for part in detector._parts()):
            raise NotApplicableError("a tile need not hold the object that it looks for")
        self._subject = subject
        geometries = {part.geometry for part in detector._parts()}
        self._geometry = detector.geometry
        # Then images can be drawn, of which no part sees more or less than a tile.
        self.comparable = len(geometries) == 1
        height, width = self._tile = self._geometry.output_size(*subject.size)
        self._step = max(1, width // 2)
        self._size = (height, width + self._step)
        self.train = darkened(good_images(TRAINING_IMAGES, self._size, subject.seed + 3))
        fresh = darkened(good_images(TEST_IMAGES, self._size, subject.seed + 4))
        self.test = np.concatenate([fresh, with_blots(fresh)])

    def ensemble(self, member: Detector | None = None, *, shared: bool = False) -> TiledEnsemble:
        stride = (self._tile[0], self._step)
        return TiledEnsemble(
            member or self._subject.unfitted(), self._tile, stride, image_size=self._size, shared=shared
        )

    def framed(self, images: Pixels, number: int) -> Pixels:
        """A tile of images, in images of which the detector, on its own, sees just that."""
        height, width = self._tile
        top, left, _, _ = map(round, self._geometry.crop_box(*self._subject.size))
        framed = np.zeros((len(images), *self._subject.size, 3), dtype=np.uint8)
        start = number * self._step
        framed[:, top : top + height, left : left + width] = images[:, :, start : start + width]
        return framed
