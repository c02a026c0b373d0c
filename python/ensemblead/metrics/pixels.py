"""Metrics of anomaly maps against masks: pixel AUROC, average precision, F1, and the per-region overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ensemblead.metrics.bootstrap import BinnedImages, Interval, bin_edges
from ensemblead.metrics.curve import Doubles, Negatives, PositiveValues, Ranking, Rankings, TypeRanking
from ensemblead.metrics.histogram import (
    BITS,
    PixelHistogram,
    area_error,
    average_precision_error,
    check_bits,
    f1_max_error,
)
from ensemblead.metrics.inputs import Floats, map_and_mask, maps_and_masks
from ensemblead.metrics.regions import ImagePixels, split_pixels

Average = Literal["component", "image"]

# Report's names for the area under the per-region-overlap curve, and the false-positive rate it is taken to.
PRO_LIMITS = {"aupro": 0.3, "aupro_005": 0.05, "aupro_image": 0.3, "aupro_image_005": 0.05}

_CHUNK = 32_000_000  # pixels that are sorted together


@dataclass(frozen=True)
class TypeMetrics:
    """The pixel metrics of one type of defect: of its images together with all good ones, as if there were no
    other type.

    Attributes:
        pixel_auroc, aupro: As `PixelMetrics.values` has them; NaN if no defective pixel, or no defect-free
            one, is there.
        error: The most by which either can differ from the exact value; 0 if that is what they are.
    """

    pixel_auroc: float = math.nan
    aupro: float = math.nan
    error: float = math.nan


@dataclass(frozen=True)
class PixelMetrics:
    """The result of `PixelScores.compute`.

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
        types: By type of defect, for every type that `PixelScores.add` was given, sorted.
    """

    values: dict[str, float]
    f1_threshold: float
    exact: bool
    errors: dict[str, float]
    ranking: Ranking
    component_weights: Doubles
    intervals: dict[str, Interval] = field(default_factory=dict)
    types: dict[str, TypeMetrics] = field(default_factory=dict)


class PixelScores:
    """All pixel metrics at once, of anomaly maps and masks that are added one by one.

    Exact as long as the pixels fit into `memory_limit`: 4 bytes a pixel (8 for float64 maps) and 8 more for
    every defective one; beyond it, counts over bins of float bits, in memory that does not grow with the
    pixels, and with an error that is bounded and stated (`PixelMetrics.errors`).
    Connected components (8-connectivity) are labelled once, pixels are sorted once.

    Args:
        memory_limit: Bytes of pixels held before the streaming mode takes over.
        bits: Leading float32 bits that make a bin of the streaming mode.
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
        self._types: set[str] = set()
        self._has_untyped = False  # whether there is a defect of no type
        self.num_pixels = 0
        self.num_defective_pixels = 0
        self.num_components = 0
        self.num_defective_images = 0

    def __repr__(self) -> str:
        """One line: how much was added."""
        return (
            f"PixelScores of {self.num_pixels} pixels, {self.num_defective_pixels} of them defective, "
            f"{self.num_components} defects"
        )

    def add(self, anomaly_map: Any, mask: Any = None, kind: str | None = None, inside: Any = None) -> None:
        """Add one image.

        Args:
            anomaly_map: [H, W], finite, larger is more anomalous.
            mask: [H, W], defective where > 0; None for an image without a defect.
            kind: The type of defect that the image shows, for `PixelMetrics.types`; None for a good image,
                which counts for every type. (One without a type that has defective pixels counts for none.)
            inside: [H, W], the pixels that are inspected, where > 0; None: all. Others count for nothing: no
                false positives come of them, and what a mask has there is no defect.

        Raises:
            ValueError: The map is not 2-D or not finite, or the mask has another shape.
            TypeError: `kind` is no string.
        """
        if kind is not None and not isinstance(kind, str):
            raise TypeError(f"kind must be a str or None, got {type(kind).__name__}")
        values, truth = map_and_mask(
            anomaly_map, np.zeros(np.shape(anomaly_map), np.bool_) if mask is None else mask
        )
        with np.errstate(over="ignore"):
            kept = values.astype(self._dtype, copy=False)
        if kept is not values and not np.isfinite(kept).all():
            raise ValueError(f"anomaly_maps must fit into {self._dtype}, got {np.abs(values).max():g}")
        if inside is not None:
            _, inside = map_and_mask(values, inside)
        pixels = split_pixels(kept, truth, kind, inside)
        if kind is not None:
            self._types.add(kind)
        self._has_untyped |= kind is None and bool(pixels.sizes.size)
        self.num_pixels += pixels.negatives.size + pixels.positives.size
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
        """All metrics of the images added so far.

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
        is_single = len(self._types) == 1 and not self._has_untyped
        if histogram is None:
            rankings, types = _exact_rankings(self._images, by_kind=not is_single)
        else:
            rankings, by_kind = histogram.rankings()
            types = _read_off_types(by_kind, bounds=True)
        values, errors, threshold = _read_off(*rankings, bounds=self.streaming)
        if is_single:  # then it is all there is
            error = max(errors["pixel_auroc"], errors["aupro"])
            types = dict.fromkeys(self._types, TypeMetrics(values["pixel_auroc"], values["aupro"], error))
        intervals = {}
        if replicates:
            binned = self._binned
            if binned is None:
                binned = BinnedImages(bin_edges(self._images))
                for pixels in self._images:
                    binned.add(pixels)
            intervals = binned.intervals(values, PRO_LIMITS, replicates, confidence, seed)
        types = {kind: types.get(kind, TypeMetrics()) for kind in sorted(self._types)}
        return PixelMetrics(
            values, threshold, not self.streaming, errors, rankings[0], rankings[2], intervals, types
        )


def _exact_rankings(
    images: Sequence[ImagePixels], by_kind: bool = True
) -> tuple[Rankings, dict[str, TypeMetrics]]:
    """The rankings of all images, and the metrics of the types, if these are wanted (`by_kind`)."""
    by_type: dict[str | None, list[ImagePixels]] = {None: []}  # good images first
    for pixels in images:
        by_type.setdefault(pixels.kind if by_kind else None, []).append(pixels)
    defective = [pixels for group in by_type.values() for pixels in group if pixels.sizes.size]
    values = PositiveValues(np.concatenate([pixels.positives for pixels in defective]))
    weights = np.concatenate([pixels.component_weights() for pixels in defective])
    within, everywhere, types = _count_negatives(values, weights, by_type)
    everywhere.add(within)
    component = values.sums(weights)
    image = values.sums(np.concatenate([pixels.image_weights() for pixels in defective]))
    return (values.ranking(everywhere), values.ranking(within), component, image), types


def _count_negatives(
    values: PositiveValues, weights: Doubles, by_type: Mapping[str | None, Sequence[ImagePixels]]
) -> tuple[Negatives, Negatives, dict[str, TypeMetrics]]:
    """The negatives of images that have a positive, and of the others; and the metrics of the types.

    The negatives of a type are sorted and counted once, for the type and for all; of the arrays as long as
    `values`, few are there at a time.
    """
    good = within = hidden = values.count_negatives([])
    types: dict[str, TypeMetrics] = {}
    first = 0
    for kind, group in by_type.items():
        with_defect = [pixels for pixels in group if pixels.sizes.size]
        without = [pixels for pixels in group if not pixels.sizes.size]
        last = first + sum(pixels.positives.size for pixels in group)
        if kind is None:
            good = values.count_negatives(_sorted_chunks(without))
            within = values.count_negatives(_sorted_chunks(with_defect))
        else:
            part, places = values.part(first, last)
            own = good[places]
            own.add(within.add(values.count_negatives(_sorted_chunks(with_defect)))[places])
            if without:
                own.add(hidden.add(values.count_negatives(_sorted_chunks(without)))[places])
            if last > first:
                ranking = part.ranking(own)
                types |= _read_off_types([(kind, ranking, part.sums(weights))], bounds=False)
        first = last
    good.add(hidden)
    return within, good, types


def _read_off_types(found: Iterable[TypeRanking], *, bounds: bool) -> dict[str, TypeMetrics]:
    limit = PRO_LIMITS["aupro"]
    types = {}
    for kind, ranking, component in found:
        if ranking.total_negatives > 0:
            error = max(area_error(ranking), area_error(ranking, component, limit)) if bounds else 0.0
            auroc, area = float(ranking.area()), float(ranking.area(component, limit))
            types[kind] = TypeMetrics(auroc, area, error)
    return types


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
    areas: dict[str, tuple[Ranking, Doubles | None, float]] = {"pixel_auroc": (ranking, None, 1.0)}
    if defective.total_negatives > 0:
        areas["anomaly_pixel_auroc"] = defective, None, 1.0
    for name, limit in PRO_LIMITS.items():
        areas[name] = ranking, image if name.startswith("aupro_image") else component, limit
    f1, threshold = ranking.f1_max()
    values = {name: float(one.area(weights, limit)) for name, (one, weights, limit) in areas.items()}
    values |= {"pixel_ap": float(ranking.average_precision()), "pixel_f1_max": f1}
    if not bounds:
        return values, dict.fromkeys(values, 0.0), threshold
    errors = {name: area_error(*area) for name, area in areas.items()}
    errors |= {"pixel_ap": average_precision_error(ranking), "pixel_f1_max": f1_max_error(ranking)}
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

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> masks = np.zeros((1, 8, 8), bool)
        >>> masks[0, 2:4, 2:4] = True
        >>> ead.aupro(masks.astype(np.float32), masks)
        1.0
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
    (ranking, _, component, image), _ = _exact_rankings(images)
    return float(ranking.area(component if average == "component" else image, fpr_limit))
