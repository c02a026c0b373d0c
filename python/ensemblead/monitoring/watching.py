"""From predictions to the values that are watched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemblead.common.objects import inspected_part
from ensemblead.detectors import Predictions

Floats = npt.NDArray[np.float32]
_NAMED = 3


@dataclass(frozen=True)
class Watched:
    """Values of N images: scores `[N]`, features `[N, D]` or None, regions `[N, cells]` or None."""

    score: Floats
    features: Floats | None
    regions: Floats | None

    @classmethod
    def of(cls, predictions: Predictions, streams: Collection[str], regions: int) -> Watched:
        """Raises ValueError for what is not there, and for NaN or infinity, naming the image."""
        score = np.asarray(predictions.anomaly_score, np.float32)
        features = predictions.features if "embedding" in streams else None
        if features is None and "embedding" in streams:
            raise ValueError(
                'images: these predictions carry no features, which the stream "embedding" watches: predict '
                'with features=True, or give the monitor streams=("score", "regions")'
            )
        cells = None
        if "regions" in streams:
            inspected = inspected_part(predictions.geometry)
            cells = largest_by_cell(predictions.anomaly_map, regions, inspected)
        known = (("anomaly_score", score), ("features", features), ("anomaly_map", cells))
        for name, values in known:
            if values is None:
                continue
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                place = int(np.argmin(finite))
                which = predictions.paths[place] or f"image {place}"
                raise ValueError(f"images: {name} of {which} has NaN or infinity, which nothing is known of")
        return cls(score, features, cells)


def cell_edges(side: int, count: int) -> list[int]:
    """Where `count` cells begin on a side of so many pixels, and where the last one ends."""
    return [place * side // count for place in range(count + 1)]


def largest_by_cell(maps: Floats, count: int, inspected: npt.NDArray[np.bool_] | None = None) -> Floats:
    """The largest value in each of `count` x `count` cells of maps `[N, H, W]`: `[N, count * count]`.

    `inspected` bool `[H, W]`: the pixels that count; a cell without any has 0. None: all count.
    """
    images, height, width = maps.shape
    if min(height, width) < count:
        raise ValueError(f"regions must be at most {min(height, width)}, the side of the maps, got {count}")
    tops, lefts = cell_edges(height, count)[:-1], cell_edges(width, count)[:-1]
    if inspected is not None:  # maps are 0 outside, which is more than the usual value of standardised ones
        maps = np.where(inspected, maps, np.float32(-np.inf))
    rows = np.maximum.reduceat(maps, tops, axis=1)
    found: Floats = np.maximum.reduceat(rows, lefts, axis=2)
    if inspected is not None:
        inside = np.logical_or.reduceat(np.logical_or.reduceat(inspected, tops, axis=0), lefts, axis=1)
        found[:, ~inside] = 0.0
    return found.reshape(images, count * count).astype(np.float32, copy=False)


def new_places(
    fingerprints: npt.NDArray[np.uint64] | None, count: int, known: set[int]
) -> tuple[list[int], npt.NDArray[np.int64]]:
    """Places of the images that are not in `known` and equal none before them, and their fingerprints; images
    without fingerprints are all new.
    """
    if fingerprints is None:
        return list(range(count)), np.zeros(0, np.int64)
    taken, places = set[int](), []
    for place, look in enumerate(fingerprints.tolist()):
        if look not in known and look not in taken:
            taken.add(look)
            places.append(place)
    return places, fingerprints[places].view(np.int64)


def named(paths: Sequence[str | None], places: Sequence[int]) -> str:
    """A few of the images."""
    some = ", ".join(paths[place] or f"image {place}" for place in places[:_NAMED])
    return some + (", ..." if len(places) > _NAMED else "")
