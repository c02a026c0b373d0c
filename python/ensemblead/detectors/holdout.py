"""Images that a fit holds out of training, so that thresholds come from images that a method does not know.

The parts of an ensemble hold out the same images, those of their first equals. docs/design/thresholds.md has
what a threshold from images that were trained on would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensemblead.calibration import Originals, sampled_positions
from ensemblead.detectors.parts import Part
from ensemblead.images import Images

HOLDOUT = 0.1  # unless a method's constructor says otherwise

# What is warned of where no image is held out: there was nothing to hold out, or it was not wanted.
KNOWN = (
    "a single training image, or copies of one, leave nothing to hold out: the statistics and the threshold "
    "are of images that were trained on, and too low; give more images, or call calibrate"
)

ALL_KNOWN = (
    "holdout=0 trains on all images, so that the statistics and the threshold are of images that are known, "
    "and too low; call calibrate on fresh images"
)


def checked_holdout(value: Any) -> float:
    """Raise TypeError or ValueError for what is no share of the images."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"holdout must be a number, got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"holdout must be a share of the images, from 0 to below 1, got {value}")
    return float(value)


def holdout_of(parts: Sequence[Part]) -> float | None:
    """The share that the parts which are trained hold out; None if none is.

    Raises ValueError where they differ.
    """
    trained = (part.holdout for part in parts if part.passes == "held_out")
    shares = sorted({share for share in trained if share is not None})
    if len(shares) > 1:
        raise ValueError(
            f"holdout must be the same in all members, which hold out the same images, got "
            f"{' and '.join(f'{share:g}' for share in shares)}"
        )
    return shares[0] if shares else None


def held_out(images: Images, share: float) -> frozenset[int]:
    """Of the different images that can be read the given share, each by the first that equals it.

    At least one, and as many as give statistics at most. With a share of 0, images that stand for all.

    Raises ValueError where none is left to train on.
    """
    originals = Originals()
    numbers = list(dict.fromkeys(originals.of(*identity) for identity in images.identities()))
    if not numbers:
        return frozenset()
    chosen = sampled_positions(len(numbers), share=share or None)
    if share and 1 < len(numbers) == len(chosen):
        raise ValueError(
            f"holdout: {share:g} of {len(numbers)} different images leaves none to train on; give a smaller "
            "share, or more images"
        )
    return frozenset(numbers[item] for item in chosen)
