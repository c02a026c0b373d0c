"""Statistics of normal images, thresholds, fingerprints."""

from ensemblead.calibration.fingerprints import (
    MAX_IMAGES,
    Originals,
    known_images,
    sampled_positions,
    set_digest,
)
from ensemblead.calibration.sample import NormalSample
from ensemblead.calibration.statistics import (
    DEFAULT_RATE,
    Calibration,
    Origin,
    deciding_images,
    extended,
    floored,
    odd_images,
    warn_if_too_few,
    weakest,
)
from ensemblead.calibration.thresholds import conformal_threshold, estimated_threshold

__all__ = [
    "DEFAULT_RATE",
    "MAX_IMAGES",
    "Calibration",
    "NormalSample",
    "Origin",
    "Originals",
    "conformal_threshold",
    "deciding_images",
    "estimated_threshold",
    "extended",
    "floored",
    "known_images",
    "odd_images",
    "sampled_positions",
    "set_digest",
    "warn_if_too_few",
    "weakest",
]
