"""Defects as objects: false regions of normal images, and how many true regions are hit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.regions import label_regions


class RegionCounter:
    """Counts regions of the maps above the detector's pixel threshold, image by image.

    A region is an 8-connected part of a map; no area is too small. `false_regions` are those of normal
    images, per normal image: regions beside the defects of a defective image do not count. A true region is
    an 8-connected component of a mask in the frame of the map, and it is hit where one pixel of it lies
    above the threshold, or more. `region_recall` is the share of all true regions that are hit.
    """

    def __init__(self) -> None:
        self._threshold: float | None = None
        self._normal = self._false = self._true = self._hit = 0

    def add(
        self,
        values: NDArray[Any],
        mask: NDArray[np.bool_] | None,
        label: bool,
        threshold: float | None,
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """A map `[h, w]`, its mask if that is known, whether the image is defective, the pixel threshold
        (None: the detector has none), and the part of the map that is inspected (None: all of it).
        """
        if threshold is None:
            return
        self._threshold = threshold
        above = values > np.float64(threshold)
        if inside is not None:
            above, mask = above & inside, None if mask is None else mask & inside
        if not label:
            self._normal += 1
            self._false += label_regions(above)[1] if above.any() else 0
        elif mask is not None and mask.any():
            labels, count = label_regions(mask)
            self._true += count
            self._hit += len(np.unique(labels[mask & above]))

    def values(self) -> dict[str, float]:
        """`region_threshold`, `false_regions` and `region_recall`, those that are defined."""
        found = {}
        if self._threshold is not None:
            found["region_threshold"] = self._threshold
        if self._normal:
            found["false_regions"] = self._false / self._normal
        if self._true:
            found["region_recall"] = self._hit / self._true
        return found
