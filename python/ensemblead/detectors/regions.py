"""Regions of detectors: where they lie in frames, and how they come into a tree of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ensemblead.images import Geometry, Region
from ensemblead.kernels.inside import Inside


@lru_cache(maxsize=32)
def inside_of(frame: Geometry) -> Inside | None:
    """The region of a decided geometry in its frame; None without one."""
    mask = frame.inside()
    return None if mask is None else Inside(mask)


def inside_seen(frame: Geometry, size: tuple[int, int], shown: tuple[int, int] | None) -> Inside | None:
    """The region of a decided geometry in images that are padded to `size` (h, w): nothing of the padding,
    and of what is `shown` the region of their frame, or all. They are not padded where `shown` is None.
    """
    if shown is None:
        return inside_of(frame)
    mask, region = np.zeros(size, dtype=bool), frame.inside()
    mask[: shown[0], : shown[1]] = True if region is None else region
    return Inside(mask)


def common_region(parts: Sequence[Any], argument: str) -> Region | None:
    """What all parts inspect. Raises ValueError where they differ."""
    regions: list[Region | None] = [part.region for part in parts]
    for number, region in enumerate(regions):
        if region != regions[0]:
            raise ValueError(
                f"{argument} must inspect the same region of photographs, but that of part 0 is "
                f"{regions[0]} and of part {number} {region}; give region= to the ensemble alone"
            )
    return regions[0]


def give_region(parts: Sequence[Any], region: Region) -> None:
    """Have all parts inspect a region. Raises ValueError for one that has another, or has learned without."""
    for part in parts:
        name = type(part).__name__
        if part.region == region:
            continue
        if part.region is not None:
            raise ValueError(f"region is {region}, but that of a {name} in the ensemble {part.region}")
        if part.has_learned:
            raise ValueError(f"region: a {name} in the ensemble has learned already, without it; fit it anew")
    for part in parts:
        part._take_region(region)
