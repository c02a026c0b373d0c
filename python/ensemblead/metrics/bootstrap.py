"""Confidence intervals by resampling images.

Normal and defective images are resampled separately (a stratified bootstrap), so that every replicate holds
both. For the pixel metrics every image is summarised once as counts over a few thousand bins placed at
quantiles of the data; a replicate is then a weighted sum of images, and all of them are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemblead.metrics.curve import Doubles, Ranking
from ensemblead.metrics.inputs import Bools, Floats
from ensemblead.metrics.regions import ImagePixels

Interval = tuple[float, float]
_CHUNK = 4_000_000  # numbers in one array of replicates


def multiplicities(stratum: Bools, replicates: int, rng: np.random.Generator) -> Doubles:
    """[replicates, images] how often each image is drawn, each stratum resampled by itself."""
    drawn = np.zeros((replicates, stratum.size))
    for value in (False, True):
        members = np.flatnonzero(stratum == value)
        if members.size:
            share = np.full(members.size, 1.0 / members.size)
            drawn[:, members] = rng.multinomial(members.size, share, size=replicates)
    return drawn


def interval(samples: Doubles, confidence: float) -> Interval:
    """The central interval that holds `confidence` of the samples."""
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(samples[np.isfinite(samples)], [tail, 1.0 - tail])
    return float(low), float(high)


def score_intervals(
    scores: Floats, labels: Bools, replicates: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Intervals of image_auroc, image_ap and image_f1_max; both classes must be present."""
    rng = np.random.default_rng(seed)
    order = np.argsort(scores)[::-1]
    descending, truth = scores[order], labels[order]
    starts = np.flatnonzero(np.concatenate([[True], descending[1:] != descending[:-1]]))
    samples: dict[str, list[Doubles]] = {"image_auroc": [], "image_ap": [], "image_f1_max": []}
    for count in _chunks(replicates, scores.size):
        drawn = multiplicities(truth, count, rng)
        positives = np.add.reduceat(drawn * truth, starts, axis=1)
        negatives = np.add.reduceat(drawn * ~truth, starts, axis=1)
        ranking = _binned(descending[starts], positives, negatives)
        samples["image_auroc"].append(ranking.area())
        samples["image_ap"].append(ranking.average_precision())
        samples["image_f1_max"].append(ranking.f1().max(axis=-1))
    return {name: interval(np.concatenate(parts), confidence) for name, parts in samples.items()}


def _chunks(replicates: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, replicates, step):
        yield min(step, replicates - start)


def _binned(thresholds: Floats, positives: Doubles, negatives: Doubles) -> Ranking:
    """Rankings [R] from counts [R, K] over bins in descending order."""
    at = np.cumsum(negatives, axis=-1)
    return Ranking(thresholds, positives, at - negatives, at, at[..., -1])


def bin_edges(images: Sequence[ImagePixels], size: int = 1024) -> Floats:
    """About three times `size` values at quantiles of the pixels, closer where the metrics depend on them.

    A third of them at even ranks of the negatives, a third at even ranks within their highest tenth (below
    the usual limits of the false-positive rate) and to the very top, a third at even ranks of the positives.
    Some lie beyond the largest value: later images may have larger ones.
    """
    stride = max(1, sum(image.negatives.size for image in images) // 2_000_000)
    negatives = np.sort(np.concatenate([image.negatives[stride // 2 :: stride] for image in images]))
    positives = np.sort(np.concatenate([image.positives for image in images]))
    ranks = np.concatenate(
        [
            np.linspace(0.0, 0.9, size),
            1.0 - np.linspace(0.0, 0.1, size),
            1.0 - np.geomspace(1e-7, 1e-3, size // 4),
        ]
    )
    parts = [
        values[np.clip((share * values.size).astype(np.int64), 0, values.size - 1)]
        for values, share in ((negatives, ranks), (positives, np.linspace(0.0, 1.0, size)))
        if values.size
    ]
    top = max(float(values[-1]) for values in (negatives, positives) if values.size)
    spread = top - float(parts[0][parts[0].size // 2])
    if spread > 0:
        beyond = top + spread * np.geomspace(1e-3, 1e3, size // 4)
        parts.append(np.minimum(beyond, np.finfo(parts[0].dtype).max).astype(parts[0].dtype))
    return np.unique(np.concatenate(parts))


class BinnedImages:
    """Each image's pixels as counts over common bins; K bins, held in descending order.

    Per image 4 arrays of K float32 (about 50 KB), whatever its size.
    """

    def __init__(self, edges: Floats) -> None:
        self._edges = edges
        self._negatives: list[NDArray[np.float32]] = []
        self._positives: list[NDArray[np.float32]] = []
        self._component: list[NDArray[np.float32]] = []
        self._image: list[NDArray[np.float32]] = []
        self._defective: list[bool] = []

    def add(self, pixels: ImagePixels) -> None:
        below = np.searchsorted(pixels.negatives, self._edges, side="left")
        counts = np.diff(below, prepend=0, append=pixels.negatives.size)
        self._negatives.append(counts[::-1].astype(np.float32))
        self._defective.append(bool(pixels.sizes.size))
        if pixels.sizes.size:
            bins = np.searchsorted(self._edges, pixels.positives, side="right")
            for into, weights in (
                (self._positives, None),
                (self._component, pixels.component_weights()),
                (self._image, pixels.image_weights()),
            ):
                summed = np.bincount(bins, weights, minlength=self._edges.size + 1)
                into.append(summed[::-1].astype(np.float32))

    def intervals(
        self,
        exact: Mapping[str, float],
        limits: Mapping[str, float],
        replicates: int,
        confidence: float,
        seed: int,
    ) -> dict[str, Interval]:
        """Intervals of the metrics in `exact`.

        Args:
            exact: The metrics' values over all images. The bins shift a metric a little; every replicate is
                moved back by the shift that they cause in the value over all images.
            limits: The false-positive rate limit of each PRO metric by name; a name that starts with
                `aupro_image` averages per image.
        """
        defective = np.asarray(self._defective, np.bool_)
        rng = np.random.default_rng(seed)
        whole = self._metrics(np.ones((1, defective.size)), limits)
        samples: dict[str, list[Doubles]] = {name: [] for name in exact}
        for count in _chunks(replicates, self._edges.size + 1):
            metrics = self._metrics(multiplicities(defective, count, rng), limits)
            for name, parts in samples.items():
                parts.append(np.clip(metrics[name] + (exact[name] - whole[name]), 0.0, 1.0))
        return {name: interval(np.concatenate(parts), confidence) for name, parts in samples.items()}

    def _metrics(self, drawn: Doubles, limits: Mapping[str, float]) -> dict[str, Doubles]:
        defective = np.asarray(self._defective, np.bool_)
        among_defective = drawn[:, defective]
        negatives = np.stack(self._negatives)
        negatives_defective = among_defective @ negatives[defective]
        negatives_all = negatives_defective + drawn[:, ~defective] @ negatives[~defective]
        positives = among_defective @ np.stack(self._positives)
        ranking = _binned(self._edges, positives, negatives_all)
        metrics = {
            "pixel_auroc": ranking.area(),
            "pixel_ap": ranking.average_precision(),
            "pixel_f1_max": ranking.f1().max(axis=-1),
        }
        if negatives_defective.any():
            metrics["anomaly_pixel_auroc"] = _binned(self._edges, positives, negatives_defective).area()
        rises = {
            False: among_defective @ np.stack(self._component),
            True: among_defective @ np.stack(self._image),
        }
        for name, limit in limits.items():
            metrics[name] = ranking.area(rises[name.startswith("aupro_image")], limit)
        return metrics
