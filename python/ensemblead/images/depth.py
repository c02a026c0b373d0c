"""Bit depth: how 16-bit pixels become 8-bit ones.

Cameras of 8, 10, 12 or 14 bits write their values into 16-bit files as they are: 0..4095 for 12 bits. Read as
0..65535 such an image is nearly black. A model therefore has one depth for all of its images, `bits`, which
is detected over its training images (`ensemblead.images.detect_bits`) and stored with it: `v` becomes
`round(v * 255 / (2**bits - 1))`. A value beyond the range is an error, never a wrong brightness.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import UnreadableImageError
from ensemblead.common.validation import whole_number
from ensemblead.common.warnings import warn

BIT_DEPTHS = (8, 10, 12, 14, 16)


class BitDepthWarning(UserWarning):
    """16-bit pixels whose values use fewer bits, and how they are read."""


def checked_bits(bits: Any) -> int | None:
    """`bits` as one of `BIT_DEPTHS`, or None; TypeError for no whole number, ValueError for another one."""
    if bits is None:
        return None
    number = whole_number("bits", bits)
    if number not in BIT_DEPTHS:
        raise ValueError(f"bits must be 8, 10, 12, 14, 16 or None, got {number}")
    return number


def depth_of(largest: int) -> int:
    """The smallest of `BIT_DEPTHS` whose range 0..2**bits - 1 holds the largest value of all images."""
    return next(bits for bits in BIT_DEPTHS if largest < 1 << bits)


def to_eight_bits(values: npt.NDArray[Any], bits: int | None, what: str) -> npt.NDArray[np.uint8]:
    """Integers in 0..2**bits - 1 to 0..255, rounded to the nearest.

    None stands for 16 bits and warns where the values say that there are fewer. `what` names the image in
    errors: UnreadableImageError for values outside of the range.
    """
    low, largest = int(values.min()), int(values.max())
    if low < 0 or largest > 65535:
        raise UnreadableImageError(
            f"cannot read image {what}: 32-bit pixels with values in [{low}, {largest}] have no "
            "defined range; save it with 8 or 16 bits"
        )
    if bits is None and largest > 0 and (fewer := depth_of(largest)) < 16:
        warn(
            f"a 16-bit image has no value above {(1 << fewer) - 1}, as cameras of {fewer} bits write them: "
            "16 bits are read as 0..65535, so it is nearly black and most of its levels are lost; give "
            f"bits={fewer} (or bits=16, if it really is that dark), or save such images as 8 bits",
            BitDepthWarning,
        )
    depth = bits or 16
    if largest >= 1 << depth:
        raise UnreadableImageError(
            f"cannot read image {what}: its largest value {largest} is beyond the {depth} bits "
            f"(0..{(1 << depth) - 1}) in which the 16-bit images of this model are read"
        )
    return _table(depth)[values.astype(np.uint16, copy=False)]


@lru_cache(maxsize=len(BIT_DEPTHS))
def _table(bits: int) -> npt.NDArray[np.uint8]:
    """The 8-bit value of every value of so many bits."""
    top = (1 << bits) - 1
    values = np.arange(top + 1, dtype=np.int64)
    return ((values * 510 + top) // (2 * top)).astype(np.uint8)
