"""Defects as objects: connected regions of an anomaly map, in the pixels of its photograph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ensemblead.common.regions import label_regions, outlines, signed_area
from ensemblead.common.validation import finite_number

Polygon = npt.NDArray[np.float64]

# False regions per normal image at the pixel threshold of a detector, unless another rate is asked for. At
# rates above the largest one every second image has a region, so that it says nothing.
DEFAULT_FALSE_REGIONS, _MOST_FALSE_REGIONS = 0.05, 0.5


def checked_rate(false_regions: float) -> float:
    """False regions per image, in (0, 0.5]. Raises TypeError or ValueError for anything else."""
    rate = finite_number("false_regions", false_regions)
    if not 0 < rate <= _MOST_FALSE_REGIONS:
        raise ValueError(f"false_regions must be above 0 and at most {_MOST_FALSE_REGIONS}, got {rate:g}")
    return rate


class Frame(Protocol):
    """Which part of an image its map covers, as `ensemblead.images.Geometry.crop_box`."""

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]: ...


def inspected_part(frame: object) -> npt.NDArray[np.bool_] | None:
    """Which pixels of maps a detector inspects, by its geometry: bool `[h, w]`; None: all of them, or the
    geometry knows no regions.
    """
    inside = getattr(frame, "inside", None)
    return None if inside is None else inside()


@dataclass(frozen=True)
class DetectedRegion:
    """A connected region of an anomaly map above the pixel threshold; two pixels that touch at a corner are
    connected.

    All places are in the pixels of the photograph, with the corner of its upper left pixel at (0, 0). They
    are floats, since a pixel of the map covers a fraction of a pixel of the photograph, or several.

    Attributes:
        index, path: of its image among the predictions; None for an image without a file.
        box: (x, y, width, height), as COCO has it; the region's pixels reach its sides.
        area: in square pixels of the photograph, holes left out.
        maximum, mean: of the map in the region.
        contour: float64 `[n, 2]`, the corners (x, y) of its outer outline, along the map's pixels, clockwise
            as seen on a screen. The first corner is not repeated at the end.
        holes: as `contour`, the outline of each hole, the other way round.
    """

    index: int
    path: str | None
    box: tuple[float, float, float, float]
    area: float
    maximum: float
    mean: float
    contour: Polygon
    holes: tuple[Polygon, ...] = ()

    def __repr__(self) -> str:
        place = f"image {self.index}" if self.path is None else f"{self.path!r}"
        box = ", ".join(f"{one:.4g}" for one in self.box)
        return f"DetectedRegion({place}, box ({box}), area {self.area:.4g}, maximum {self.maximum:.4g})"


@dataclass(frozen=True)
class MapRegion:
    """A connected region of a map `[h, w]`, in the map's pixels: where it lies, and what is in it.

    Attributes:
        rows, columns: the slices that it fills.
        mask: bool, which pixels of these are its own.
        maximum, mean: of its values.
    """

    rows: slice
    columns: slice
    mask: npt.NDArray[np.bool_]
    maximum: float
    mean: float


def quiet_outside(anomaly_map: npt.NDArray[Any], frame: Frame | None) -> npt.NDArray[Any]:
    """A map to look at: what is not inspected has the lowest of the values that are.

    Maps are zero there, which of some methods, as `FastFlow`, is higher than all other values.
    """
    inside = inspected_part(frame)
    return anomaly_map if inside is None else np.where(inside, anomaly_map, anomaly_map[inside].min())


def regions_above(
    anomaly_map: npt.NDArray[np.floating], threshold: float, inside: npt.NDArray[np.bool_] | None = None
) -> list[MapRegion]:
    """The 8-connected regions of a map `[h, w]` whose values lie above a threshold, the highest maximum
    first. `inside`: the pixels that count; None: all.

    Raises ValueError for a map with NaN or infinity.
    """
    if not np.isfinite(anomaly_map).all():
        raise ValueError("anomaly_map must be finite, got NaN or infinity")
    above = anomaly_map > np.float64(threshold)
    if inside is not None:
        above &= inside
    if not above.any():
        return []
    labels, _ = label_regions(above)
    from scipy import ndimage

    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[rows, columns] == number
        values = anomaly_map[rows, columns][mask].astype(np.float64)
        found.append(MapRegion(rows, columns, mask, float(values.max()), float(values.mean())))
    return sorted(found, key=lambda one: -one.maximum)


def pixel_scale(frame: Frame, size: tuple[int, int], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Width and height of a pixel of a map of that shape, in pixels of its photograph of that size (H, W)."""
    top, left, bottom, right = frame.crop_box(*size)
    return np.array([(right - left) / shape[1], (bottom - top) / shape[0]])


def detected_regions(
    anomaly_map: npt.NDArray[np.floating],
    threshold: float,
    frame: Frame,
    size: tuple[int, int],
    *,
    min_area: float = 0.0,
    index: int = 0,
    path: str | None = None,
) -> Iterator[DetectedRegion]:
    """The regions of one map, as `Predictions.objects` gives them.

    Args:
        frame, size: where the map lies on its photograph, and the photograph's (H, W).
        min_area: smaller regions are left out, in square pixels of the photograph.
        index, path: of the image.
    """
    top, left, _, _ = frame.crop_box(*size)
    scale = pixel_scale(frame, size, anomaly_map.shape)
    for one in regions_above(anomaly_map, threshold, inspected_part(frame)):
        area = float(one.mask.sum() * scale.prod())
        if area < min_area:
            continue
        corner = np.array([one.columns.start, one.rows.start])
        rings = [(ring + corner) * scale + (left, top) for ring in outlines(one.mask)]
        # An 8-connected region has one outer ring.
        (outer,) = (ring for ring in rings if signed_area(ring) > 0)
        x, y = outer.min(axis=0).tolist()
        box_width, box_height = np.ptp(outer, axis=0).tolist()
        holes = tuple(ring for ring in rings if ring is not outer)
        yield DetectedRegion(
            index, path, (x, y, box_width, box_height), area, one.maximum, one.mean, outer, holes
        )
