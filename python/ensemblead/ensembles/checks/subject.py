"""The detector under check: fresh copies of it, images drawn for it, and how far two answers may differ."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from ensemblead.common.predictions import Predictions
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.method import Method
from ensemblead.ensembles.backbones import BackboneEnsemble
from ensemblead.ensembles.checks.drawing import Pixels, drawn_size, good_images, with_blots
from ensemblead.ensembles.loading import load_detector
from ensemblead.ensembles.tiles import TiledEnsemble

TRAINING_IMAGES = 6
TEST_IMAGES = 4
# Where the network is the same and all else is equal, scores may differ by so many times what rounding moves
# them by, and by this share of the largest.
_ROUNDINGS = 4.0
_RELATIVE = 1e-4
# A seed that nobody takes.
_UNUSUAL = 918_273_645
# Two fits on the same images may differ by this share of the distance between good images and defects.
_REFITTED = 0.05


class NotApplicableError(Exception):
    """A check that has nothing to say of this detector."""


class BrokenPromiseError(Exception):
    """The message says what was seen."""


class Subject:
    """A detector to be checked; it stays as it is, for checks work on copies.

    Attributes: uint8 images of `size`: `train`, `others` (as many again), `fresh`, and `test`, the fresh ones
    and after them the same with blots. `folder` is for files.
    """

    def __init__(self, detector: Detector, seed: int, folder: Path) -> None:
        self._detector = detector
        self.seed, self.folder = seed, folder
        self.name = type(detector).__name__
        self.size = drawn_size(list(detector._parts()))
        self.train = good_images(TRAINING_IMAGES, self.size, seed)
        self.others = good_images(TRAINING_IMAGES, self.size, seed + 1)
        self.fresh = good_images(TEST_IMAGES, self.size, seed + 2)
        self.test = np.concatenate([self.fresh, with_blots(self.fresh)])
        self._folders = 0

    def unfitted(self) -> Detector:
        """A copy."""
        return self._detector._clone()

    def fitted(self) -> Detector:
        """A copy, fitted."""
        detector = self.unfitted()
        detector.fit(self.train)
        return detector

    @cached_property
    def shared(self) -> Detector:
        """A fitted copy for checks that do not change it."""
        return self.fitted()

    @cached_property
    def predictions(self) -> Predictions:
        """Of `shared`, for the test images."""
        return self.shared.predict(self.test)

    def new_folder(self) -> Path:
        self._folders += 1
        folder = self.folder / str(self._folders)
        folder.mkdir()
        return folder

    def files(self, images: Pixels) -> list[str]:
        """Images as files, in their order."""
        paths = [str(self.new_folder() / "image.png") for _ in images]
        for path, pixels in zip(paths, images, strict=True):
            Image.fromarray(pixels).save(path)
        return paths

    def unreadable_file(self) -> str:
        path = self.new_folder() / "broken.png"
        path.write_bytes(b"no image")
        return str(path)

    def saved_and_loaded(self, detector: Detector) -> Detector:
        path = self.new_folder() / "model"
        detector.save(path)
        return load_detector(path, backbone=_modules(detector))


def _modules(detector: Detector) -> Any:
    """What `load` needs to be given: the modules that are backbones, in the form that it takes them."""
    if isinstance(detector, BackboneEnsemble):
        return [_modules(member) for member in detector.members]
    if isinstance(detector, TiledEnsemble):
        return _modules(detector.member)
    backbone = getattr(detector, "backbone", None)
    return backbone if isinstance(backbone, nn.Module) else None


def children(detector: Detector) -> list[Detector]:
    """What an ensemble is made of: once it is fitted, its fitted members."""
    if isinstance(detector, TiledEnsemble):
        return detector.members_ if detector.is_fitted else [detector.member]
    return list(detector.members) if isinstance(detector, BackboneEnsemble) else []


def methods(detector: Detector) -> list[Method]:
    """All methods in a detector."""
    own = [detector] if isinstance(detector, Method) else []
    return own + [method for child in children(detector) for method in methods(child)]


def set_batch_size(detector: Detector, size: int) -> None:
    """Let a detector, and what it is made of, work in batches of this size."""
    detector.batch_size = size
    for child in children(detector):
        set_batch_size(child, size)


def contains_tiles(detector: Detector) -> bool:
    return any(isinstance(part, TiledEnsemble) for part in detector._parts())


def random_states() -> list[bytes]:
    """The global random states of Python, NumPy and torch."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    generators = [torch.random.get_rng_state()]
    if torch.cuda.is_available():
        generators += torch.cuda.get_rng_state_all()
    states = [repr(random.getstate()).encode(), repr(sorted(legacy.items(), key=str)).encode()]
    return states + [state.numpy().tobytes() for state in generators]


@contextmanager
def other_random_states() -> Iterator[None]:
    """Global random states that no fit has left behind: one that seeds them anew would go unseen."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            random.seed(_UNUSUAL)
            np.random.seed(_UNUSUAL)  # noqa: NPY002
            torch.manual_seed(_UNUSUAL)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


# How far two answers may differ


def tolerance(detector: Detector, values: npt.NDArray[np.float32]) -> float:
    """How far rounding moves scores or maps, by what the fitted detector knows of its network."""
    calibration = detector.calibration_
    largest, normal = float(np.abs(values).max()), float(np.abs(calibration.scores).max())
    scale = max(1.0, largest / normal) if normal > 0 else 1.0
    rounding = max(calibration.rounding, calibration.rounding_of_maps)
    return _ROUNDINGS * rounding * scale + _RELATIVE * largest


def refitted_tolerance(detector: Detector, values: npt.NDArray[np.float32]) -> float:
    """How far another fit on the same images may move them."""
    return _REFITTED * float(np.ptp(values)) + tolerance(detector, values)


def require_alike(
    detector: Detector, found: Predictions, expected: Predictions, what: str, *, refitted: bool = False
) -> None:
    """Raise where two predictions differ by more than rounding, or, if `refitted`, than two fits may.

    Verdicts may differ only where the score is at the threshold.
    """
    allow = refitted_tolerance if refitted else tolerance
    for name in ("anomaly_score", "anomaly_map"):
        one, other = getattr(found, name), getattr(expected, name)
        if one.shape != other.shape:
            raise BrokenPromiseError(f"{what}: {name} has the shape {one.shape}, not {other.shape}")
        most, allowed = float(np.abs(one - other).max()), allow(detector, other)
        if not most <= allowed:
            raise BrokenPromiseError(f"{what}: {name} differs by {most:.4g}, where {allowed:.2g} is allowed")
    score = expected.anomaly_score
    near = np.abs(score - detector.threshold_) <= allow(detector, score)
    differ = (found.is_anomalous != expected.is_anomalous) & ~near
    if differ.any() and not refitted:
        raise BrokenPromiseError(f"{what}: is_anomalous differs for image {int(np.argmax(differ))}")


class Snapshot:
    """What a detector knows at a time, to be compared with what it knows later."""

    def __init__(self, detector: Detector, images: Pixels) -> None:
        self._detector, self._images = detector, images
        self._known = self._read()

    def _read(self) -> tuple[Predictions, float, npt.NDArray[np.uint64]] | None:
        detector = self._detector
        if not detector.is_fitted:
            return None
        return detector.predict(self._images), detector.threshold_, detector._fingerprints

    def require_unchanged(self, what: str) -> None:
        """Raise where the detector is no longer fitted, is now, or predicts otherwise."""
        known, now = self._known, self._read()
        if (known is None) != (now is None):
            raise BrokenPromiseError(f"{what}, the detector is {'' if now else 'no longer '}fitted")
        if known is None or now is None:
            return
        require_alike(self._detector, now[0], known[0], what)
        if now[1] != known[1]:
            raise BrokenPromiseError(f"{what}, the threshold is {now[1]:.6g} and was {known[1]:.6g}")
        if not np.array_equal(now[2], known[2]):
            raise BrokenPromiseError(f"{what}, the detector knows other images than before")
