"""Checks of a region of interest."""

from __future__ import annotations

import inspect

import numpy as np
import numpy.typing as npt

from ensemblead.detectors.detector import Detector
from ensemblead.detectors.regions import give_region
from ensemblead.ensembles.checks.drawing import Pixels
from ensemblead.ensembles.checks.subject import (
    BrokenPromiseError,
    NotApplicableError,
    Subject,
    methods,
    require_alike,
)
from ensemblead.images import Region


def inspects_its_region(subject: Subject) -> None:
    """With a region, what lies outside moves nothing, maps are zero there, and a defect inside is seen."""
    detector, region = _with_region(subject)
    mask = region.mask
    detector.fit(_spoiled(subject.train, mask, subject.seed))
    found = detector.predict(subject.test)
    outside = detector.predict(_spoiled(subject.test, mask, subject.seed + 1))
    require_alike(detector, outside, found, "painted outside of its region")
    inside = detector.geometry.inside()
    if inside is None:
        raise BrokenPromiseError("its geometry has no region")
    if found.anomaly_map[:, ~inside].any():
        raise BrokenPromiseError("its maps are not zero outside of the region")
    good, bad = np.split(found.anomaly_map, 2)
    if not (np.abs(bad - good) > detector.calibration_.rounding_of_maps).any():
        raise BrokenPromiseError("its maps with and without a defect inside of the region are equal")
    again = subject.saved_and_loaded(detector)
    require_alike(detector, again.predict(subject.test), found, "saved and loaded with a region")
    if again.region != detector.region:
        raise BrokenPromiseError(f"saved and loaded, its region is {again.region}")


def _with_region(subject: Subject) -> tuple[Detector, Region]:
    """An unfitted copy that inspects the middle of images, where the blots of test images are."""
    detector, (height, width) = subject.unfitted(), subject.size
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 8] = True
    if any("region" not in inspect.signature(type(one)).parameters for one in methods(detector)):
        raise NotApplicableError("a method without the parameter region")
    if detector.region is not None or getattr(detector, "fusion", None) == "minmax":
        raise NotApplicableError("it has a region, or may have none")
    region = Region(mask)
    try:
        give_region(detector._parts(), region)
    except ValueError as error:  # a detector that all tiles share
        raise NotApplicableError(str(error)) from error
    return detector, region


def _spoiled(images: Pixels, mask: npt.NDArray[np.bool_], seed: int) -> Pixels:
    """The same images with noise of all colours outside of a mask."""
    noise = np.random.default_rng(seed).integers(0, 256, images.shape, dtype=np.uint8)
    spoiled: Pixels = np.where(mask[..., None], images, noise)
    return spoiled
