"""What a region leaves of a test set: how much is inspected, and which defects are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemblead.datasets.categories import Sample


class RegionShare:
    """Counts, image by image, what of the masks lies inside of a region.

    Pixel metrics are of the pixels inside alone. Image metrics keep their labels: a defective image whose
    defects all lie outside stays defective, and is a miss where it is called normal. So a region that looks
    away from defects makes no figure better without a line that says so.

    Args:
        inside: bool `[h, w]`, in the frame of the maps; None: all is inspected.
    """

    def __init__(self, inside: NDArray[np.bool_] | None) -> None:
        self.inside = inside
        self._defective = self._outside = 0  # pixels of masks
        self._masks = 0
        self._unseen: list[str] = []  # defective images of which no defect is inspected

    def add(self, sample: Sample, mask: NDArray[np.bool_]) -> None:
        """An image with its mask `[h, w]` in the frame."""
        if self.inside is None or not mask.any():
            return
        defective, seen = (int(np.count_nonzero(one)) for one in (mask, mask & self.inside))
        self._masks += 1
        self._defective += defective
        self._outside += defective - seen
        if not seen:
            self._unseen.append(sample.path)

    def describe(self) -> str:
        """Sentences on what is inspected; "" without a region."""
        if self.inside is None:
            return ""
        text = f"{self.inside.mean():.1%} of the map is inspected, and pixel metrics are of that alone."
        if self._masks:
            text += (
                f" {self._outside / self._defective:.1%} of the defective pixels lie outside, and count in "
                f"none. {len(self._unseen)} of {self._masks} defective images with a mask have no "
                "defect inside; in image metrics they count as defective all the same."
            )
        return text

    def warnings(self) -> list[str]:
        """A line for defective images of which no defect is inspected."""
        if not self._unseen:
            return []
        return [
            f"{len(self._unseen)} defective image(s) have no defect inside of the region, the first is "
            f"{self._unseen[0]}: they count as defective in image metrics"
        ]
