"""Metrics of anomaly maps against masks: pixel AUROC, average precision, F1, and the per-region overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .bootstrap import BinnedImages, Interval, bin_edges
from .curve import Doubles, PositiveValues, Ranking
from .histogram import BITS, PixelHistogram, area_error, average_precision_error, check_bits, f1_max_error
from .inputs import Floats, map_and_mask, maps_and_masks
from .regions import ImagePixels, split_pixels

Average = Literal["component", "image"]

# Report's names for the area under the per-region-overlap curve, and the false-positive rate it is taken to.
PRO_LIMITS = {"aupro": 0.3, "aupro_005": 0.05, "aupro_image": 0.3, "aupro_image_005": 0.05}

_CHUNK = 32_000_000  # pixels that are sorted together


@dataclass(frozen=True)
class PixelMetrics:
    """What `PixelScores.compute` found.

    Attributes:
        values: By name: `pixel_auroc`, `anomaly_pixel_auroc` (over images with a defect only; missing if
            those are defective everywhere), `pixel_ap`, `pixel_f1_max`, and the areas under the
            per-region-overlap curve `aupro`, `aupro_005`, `aupro_image`, `aupro_image_005`. All in [0, 1].
        f1_threshold: The threshold of `pixel_f1_max`: a pixel counts as defective where map >= threshold.
        exact: False if the streaming mode was used.
        errors: By the same names, the most by which a value can differ from the exact one; 0 if `exact`.
        ranking: The counts behind the curves.
        component_weights: [K] the rises of the per-region-overlap curve at `ranking.thresholds`.
        intervals: By the same names, bootstrap confidence intervals over images; empty if not asked for.
    """

    values: dict[str, float]
    f1_threshold: float
    exact: bool
    errors: dict[str, float]
    ranking: Ranking
    component_weights: Doubles
    intervals: dict[str, Interval] = field(default_factory=dict)


class PixelScores:
    """Anomaly maps and their masks, taken in one by one; all pixel metrics at once.

    Exact as long as the pixels fit into `memory_limit`: 4 bytes a pixel (8 for float64 maps) and 8 more for
    every defective one; beyond it, counts over bins of float bits, in memory that does not grow with the
    pixels, and with an error that is bounded and stated (`PixelMetrics.errors`).
    Connected components (8-connectivity) are labelled once, pixels are sorted once.

    Args:
        memory_limit: Bytes of pixels held before the streaming mode takes over.
        bits: Leading float32 bits that tell the streaming mode's bins apart.
        dtype: float32, or float64 to rank maps by all of their 64 bits.
    """

    def __init__(self, *, memory_limit: int = 2 << 30, bits: int = BITS, dtype: Any = np.float32) -> None:
        if memory_limit < 0:
            raise ValueError(f"memory_limit must be at least 0, got {memory_limit}")
        check_bits(bits)
        self._dtype = np.dtype(dtype)
        self._limit = memory_limit
        self._bits = bits
        self._bytes = 0
        self._images: list[ImagePixels] = []
        self._histogram: PixelHistogram | None = None
        self._binned: BinnedImages | None = None
        self.num_pixels = 0
        self.num_defective_pixels = 0
        self.num_components = 0
        self.num_defective_images = 0

    def add(self, anomaly_map: Any, mask: Any = None) -> None:
        """Take in one image.

        Args:
            anomaly_map: [H, W], finite, larger is more anomalous.
            mask: [H, W], defective where > 0; None for an image without a defect.

        Raises:
            ValueError: The map is not 2-D or not finite, or the mask has another shape.
        """
        values, truth = map_and_mask(
            anomaly_map, np.zeros(np.shape(anomaly_map), np.bool_) if mask is None else mask
        )
        pixels = split_pixels(values.astype(self._dtype, copy=False), truth)
        self.num_pixels += values.size
        self.num_defective_pixels += pixels.positives.size
        self.num_components += pixels.sizes.size
        self.num_defective_images += bool(pixels.sizes.size)
        if self._histogram is None:
            self._images.append(pixels)
            self._bytes += pixels.nbytes
            if self._bytes > self._limit:
                self._start_streaming()
        else:
            self._stream(pixels)

    @property
    def streaming(self) -> bool:
        """Whether the memory limit has been reached."""
        return self._histogram is not None

    def _start_streaming(self) -> None:
        self._histogram = PixelHistogram(self._bits)
        self._binned = BinnedImages(bin_edges(self._images))
        self._images.reverse()
        while self._images:
            self._stream(self._images.pop())

    def _stream(self, pixels: ImagePixels) -> None:
        assert self._histogram is not None
        assert self._binned is not None
        self._histogram.add(pixels)
        self._binned.add(pixels)

    def compute(self, *, replicates: int = 0, confidence: float = 0.95, seed: int = 0) -> PixelMetrics:
        """All metrics of the images taken in so far.

        Args:
            replicates: Bootstrap replicates for the confidence intervals; 0 for none.
            confidence: What an interval is to hold.
            seed: Of the resampling.

        Raises:
            ValueError: There is no defective pixel, or nothing but defective ones.
        """
        if self.num_defective_pixels == 0:
            raise ValueError(f"masks must hold a defective pixel, got none in {self.num_pixels} pixels")
        if self.num_defective_pixels == self.num_pixels:
            raise ValueError(f"masks must hold a defect-free pixel, got none in {self.num_pixels} pixels")
        histogram = self._histogram
        rankings = _exact_rankings(self._images) if histogram is None else histogram.rankings()
        values, errors, threshold = _read_off(*rankings, bounds=self.streaming)
        intervals = {}
        if replicates:
            binned = self._binned
            if binned is None:
                binned = BinnedImages(bin_edges(self._images))
                for pixels in self._images:
                    binned.add(pixels)
            intervals = binned.intervals(values, PRO_LIMITS, replicates, confidence, seed)
        return PixelMetrics(
            values, threshold, not self.streaming, errors, rankings[0], rankings[2], intervals
        )


def _exact_rankings(images: Sequence[ImagePixels]) -> tuple[Ranking, Ranking, Doubles, Doubles]:
    """Over all images, over the defective ones, and the weights of components and of images [K]."""
    defective = [image for image in images if image.sizes.size]
    values = PositiveValues(np.concatenate([image.positives for image in defective]))
    within = values.count_negatives(_sorted_chunks(defective))
    outside = values.count_negatives(_sorted_chunks([image for image in images if not image.sizes.size]))
    everywhere = Ranking(
        values.thresholds,
        values.counts,
        within[0] + outside[0],
        within[1] + outside[1],
        np.asarray(within[2] + outside[2]),
    )
    only_defective = Ranking(values.thresholds, values.counts, *within[:2], np.asarray(within[2]))
    component = values.sums(np.concatenate([image.component_weights() for image in defective]))
    image = values.sums(np.concatenate([image.image_weights() for image in defective]))
    return everywhere, only_defective, component, image


def _sorted_chunks(images: Sequence[ImagePixels]) -> Iterator[Floats]:
    """The negatives of the images, some at a time, so that sorting needs little memory beside them."""
    waiting: list[Floats] = []
    size = 0
    for position, image in enumerate(images, 1):
        waiting.append(image.negatives)
        size += image.negatives.size
        if size and (size >= _CHUNK or position == len(images)):
            chunk = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            if len(waiting) > 1:
                chunk.sort()
            yield chunk
            waiting, size = [], 0


def _read_off(
    ranking: Ranking, defective: Ranking, component: Doubles, image: Doubles, *, bounds: bool
) -> tuple[dict[str, float], dict[str, float], float]:
    """All metrics, the bounds of their errors, and the threshold of the best F1."""
    f1, threshold = ranking.f1_max()
    values = {"pixel_auroc": float(ranking.area())}
    errors = {"pixel_auroc": area_error(ranking) if bounds else 0.0}
    if defective.total_negatives > 0:
        values["anomaly_pixel_auroc"] = float(defective.area())
        errors["anomaly_pixel_auroc"] = area_error(defective) if bounds else 0.0
    values["pixel_ap"] = float(ranking.average_precision())
    errors["pixel_ap"] = average_precision_error(ranking) if bounds else 0.0
    values["pixel_f1_max"] = f1
    errors["pixel_f1_max"] = f1_max_error(ranking) if bounds else 0.0
    for name, limit in PRO_LIMITS.items():
        weights = image if name.startswith("aupro_image") else component
        values[name] = float(ranking.area(weights, limit))
        errors[name] = area_error(ranking, weights, limit) if bounds else 0.0
    return values, errors, threshold


def aupro(anomaly_maps: Any, masks: Any, *, fpr_limit: float = 0.3, average: Average = "component") -> float:
    """Area under the per-region-overlap curve (PRO; Bergmann et al., MVTec AD), in [0, 1]; exact.

    For every threshold: the mean, over all 8-connected components of all masks, of the fraction of the
    component at or above it, against the false-positive rate over the defect-free pixels of all images. The
    area is taken up to `fpr_limit`, linearly interpolated there, and divided by it. All distinct values of
    the maps are thresholds; pixels with one value enter together.

    Args:
        anomaly_maps: [N, H, W], or a sequence of [H, W] that may differ in size; larger is more anomalous.
        masks: The same shapes; defective where > 0. Images without a defect count for the false positives.
        fpr_limit: In (0, 1].
        average: "component", or "image": the mean over the components of an image first, then over the images
            that have a defect.

    Raises:
        ValueError: Shapes or counts differ, a map is not finite, there is no defective or no defect-free
            pixel, or an option is out of range.
        TypeError: An array does not hold numbers.
    """
    if not 0.0 < fpr_limit <= 1.0:
        raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit}")
    if average not in ("component", "image"):
        raise ValueError(f'average must be "component" or "image", got {average!r}')
    images = [split_pixels(values, mask) for values, mask in maps_and_masks(anomaly_maps, masks)]
    if not any(image.positives.size for image in images):
        raise ValueError(
            "masks must hold a defective pixel, got none: the overlap with regions is not defined"
        )
    if not any(image.negatives.size for image in images):
        raise ValueError(
            "masks must hold a defect-free pixel, got none: the false-positive rate is not defined"
        )
    ranking, _, component, image = _exact_rankings(images)
    return float(ranking.area(component if average == "component" else image, fpr_limit))
