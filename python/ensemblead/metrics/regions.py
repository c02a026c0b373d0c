"""One image's pixels, split by its mask: what the pixel metrics keep of an anomaly map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemblead.common.regions import label_regions
from ensemblead.metrics.curve import Doubles
from ensemblead.metrics.inputs import Bools, Floats


@dataclass(frozen=True)
class ImagePixels:
    """The pixels of one anomaly map.

    Attributes:
        negatives: [n] the values outside the mask, ascending.
        positives: [p] the values inside the mask.
        component: [p] int32, which connected component (from 0) each positive belongs to.
        sizes: [c] the number of pixels of each component.
        kind: The type of defect; None for a good image, or where types do not matter.
    """

    negatives: Floats
    positives: Floats
    component: NDArray[np.int32]
    sizes: NDArray[np.int64]
    kind: str | None = None

    @property
    def nbytes(self) -> int:
        return self.negatives.nbytes + self.positives.nbytes + self.component.nbytes + self.sizes.nbytes

    def component_weights(self) -> Doubles:
        """[p] 1 / size of the pixel's component: the weights of one component sum to 1."""
        return (1.0 / self.sizes)[self.component]

    def image_weights(self) -> Doubles:
        """[p] the component weights over the number of components: the weights of the image sum to 1."""
        return self.component_weights() / max(self.sizes.size, 1)


def split_pixels(
    anomaly_map: Floats, mask: Bools, kind: str | None = None, inside: Bools | None = None
) -> ImagePixels:
    """Split [H, W] by a mask [H, W]; components are 8-connected and labelled here, once.

    `inside`: [H, W] the pixels that count; None: all. The others are neither negatives nor positives, and of
    a component what lies inside is one, or several.
    """
    sound = ~mask if inside is None else inside & ~mask
    mask = mask if inside is None else inside & mask
    if not mask.any():
        negatives = anomaly_map[sound]
        negatives.sort()
        nothing = np.empty(0, anomaly_map.dtype)
        return ImagePixels(negatives, nothing, np.empty(0, np.int32), np.empty(0, np.int64), kind)
    labels, _ = label_regions(mask)
    component = labels[mask].astype(np.int32) - 1
    negatives = anomaly_map[sound]
    negatives.sort()
    sizes = np.bincount(component).astype(np.int64)
    return ImagePixels(negatives, anomaly_map[mask], component, sizes, kind)
