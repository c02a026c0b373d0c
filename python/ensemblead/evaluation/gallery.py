"""The anomaly maps that a report shows, kept small while predictions stream by, and their colours."""

from __future__ import annotations

import base64
import heapq
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ensemblead.common.objects import Frame, quiet_outside
from ensemblead.images import Geometry, Region

# The longer side of a kept map. Maps are smooth: they are made of patches of eight pixels and more.
MAP_SIDE = 160
# Colours end at so many times the spread of normal pixels above their median. An image's threshold then lies
# near the middle of the range (bottles .50, magnetic tiles .52, cookies .38).
_REACH = 3.0


@dataclass(frozen=True)
class Picture:
    """A kept anomaly map.

    Attributes:
        index: Which of the category's test images it belongs to.
        heat: The map as a PNG of 8-bit grey, its longer side at most `MAP_SIDE`; reduced by averaging.
        low: The map's value at grey 0.
        high: The map's value at grey 255.
    """

    index: int
    heat: bytes
    low: float
    high: float


@dataclass(frozen=True)
class Pictures:
    """The anomaly maps of one category that a report can show.

    Attributes:
        kept: In the order in which they matter: errors, the worst first; then, taking turns, normal images
            from the highest score down and every defect type from the lowest score up.
        frame: Where maps lie on their images; None if the detector's geometry does not know, then they are
            taken to cover them.
        scale: The map values of the first and the last colour, one pair for all images.
        bits: Used bits of 16-bit photographs, see `read_image`.
    """

    kept: tuple[Picture, ...]
    frame: Frame | None
    scale: tuple[float, float]
    bits: int | None = None

    def to_json(self) -> dict[str, Any] | None:
        """In JSON's types; None if the frame is not a `Geometry`, which alone can be written."""
        if not isinstance(self.frame, Geometry):
            return None
        kept = [[p.index, base64.b64encode(p.heat).decode(), p.low, p.high] for p in self.kept]
        frame: dict[str, Any] = {"resize": self.frame.resize, "crop": self.frame.crop}
        if self.frame.region is not None:
            frame["region"] = self.frame.region.plain()
        return {"kept": kept, "frame": frame, "scale": list(self.scale), "bits": self.bits}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Pictures:
        """The pictures that `to_json` wrote."""
        kept = [Picture(i, base64.b64decode(heat), low, high) for i, heat, low, high in document["kept"]]
        sizes: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in document["frame"].items()
        }
        sizes["region"] = Region.of(sizes.get("region"))
        low, high = document["scale"]
        return cls(tuple(kept), Geometry(**sizes), (low, high), document.get("bits"))


class PictureKeeper:
    """Keeps the maps that matter most, of scored images that are added one by one.

    Memory does not grow with the number of images: of every defect type at most `limit` errors and `limit`
    others are kept (about 6 KB each) until `pictures` leaves `limit` in all.
    """

    def __init__(self, detector: Any, limit: int) -> None:
        self._detector = detector
        self._limit = limit
        self._heaps: dict[tuple[bool, bool, str], list[tuple[float, int, Picture]]] = defaultdict(list)
        self._medians: list[float] = []
        self._largest = -np.inf

    def add(
        self, index: int, values: NDArray[Any], score: float, verdict: bool | None, label: bool, kind: str
    ) -> None:
        """Add the map [H, W] of the image at `index` of its category."""
        if self._limit == 0:
            return
        values = quiet_outside(values, self._detector.geometry)
        self._medians.append(float(np.median(values)))
        self._largest = max(self._largest, float(values.max()))
        heap = self._heaps[verdict is not None and verdict != label, label, kind]
        importance = -score if label else score
        if len(heap) >= self._limit and importance <= heap[0][0]:
            return
        # -index, so that of equal scores the first stays.
        entry = (importance, -index, reduced_map(index, values))
        if len(heap) < self._limit:
            heapq.heappush(heap, entry)
        else:
            heapq.heapreplace(heap, entry)

    def pictures(self) -> Pictures | None:
        """The most important maps of all; None if none were to be kept."""
        if not self._heaps:
            return None
        queues: dict[bool, list[list[Picture]]] = {True: [], False: []}
        for key in sorted(self._heaps, key=lambda key: (key[1], key[2])):
            best = sorted(self._heaps[key], key=lambda entry: (-entry[0], -entry[1]))
            queues[key[0]].append([picture for _, _, picture in best])
        kept = [*_taking_turns(queues[True]), *_taking_turns(queues[False])]
        geometry = self._detector.geometry
        frame = geometry if hasattr(geometry, "crop_box") else None
        return Pictures(
            tuple(kept[: self._limit]), frame, self._scale(), getattr(self._detector, "bits_", None)
        )

    def _scale(self) -> tuple[float, float]:
        fusion = getattr(self._detector, "fusion", None)
        if fusion in ("rank", "minmax"):
            return color_scale(self._detector)
        known = getattr(self._detector, "calibration_", None)
        if known is not None and getattr(known, "has_statistics", True):
            low, high = color_scale(self._detector)
            # Colours that no map reaches would be wasted.
            return low, min(high, self._largest) if self._largest > low else high
        low = float(np.median(self._medians))
        return low, self._largest if self._largest > low else low + 1.0


def color_scale(detector: Any) -> tuple[float, float]:
    """The map values of the first and the last colour: one range for all images, known before the first.

    It comes from the model's own normal images: from the median of their pixels, to three times as far above
    it as their 99.9th percentile lies. Larger values have the last colour.
    """
    if getattr(detector, "fusion", None) == "rank":
        return 0.5, 1.0  # ranks among normal pixels: from the median to beyond them all
    if getattr(detector, "fusion", None) == "minmax":
        return 0.0, 1.0  # its maps are scaled to that over the set
    if not detector.calibration_.has_statistics:
        known = detector.threshold_
        such = f", such as --scale 0 {known:.4g}, up to the threshold" if 0 < known < np.inf else ""
        raise ValueError(
            "the model has no statistics of normal images, which the colours of heat maps come from: call "
            f"calibrate, or give a scale (--scale LOW HIGH{such})"
        )
    low, high = np.quantile(detector.calibration_.pixels, (0.5, 0.999))
    reach = _REACH * float(high - low)
    return float(low), float(low) + (reach if reach > 0 else 1.0)


_ORIGINS = {"leave_one_out": "leave-one-out", "held_out": "held out"}


def describe_threshold(detector: Any) -> str:
    """Where the detector's threshold comes from, in a sentence; "" if it has none."""
    threshold = getattr(detector, "threshold_", None)
    if getattr(detector, "fusion", None) == "minmax" or threshold is None or np.isnan(threshold):
        return ""
    calibration = getattr(detector, "calibration_", None)
    if calibration is None:
        return "set by the detector"
    if not calibration.has_statistics:
        return "given, not taken from normal images" if threshold < np.inf else ""
    images, rate = len(calibration.scores), f"{calibration.false_alarm_rate:.2g}"
    if calibration.threshold_origin == "user":
        return f"set by the user: false alarms about {rate} (estimated from {images} normal images)"
    if calibration.is_guaranteed:
        return f"from {images} fresh normal images: false alarms at most {rate} (split conformal)"
    if calibration.origin == "trained_on":
        return f"from {images} images that were trained on, too low: false alarms more than {rate}"
    how = _ORIGINS[calibration.origin]
    return f"from {images} training images, {how}: false alarms about {rate} (estimated)"


def reduced_map(index: int, values: NDArray[Any]) -> Picture:
    """A small copy of a map `[H, W]`: see `Picture`."""
    pixels = np.ascontiguousarray(values, np.float32)
    height, width = pixels.shape
    shrink = min(1.0, MAP_SIDE / max(height, width))
    if shrink < 1.0:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    low, high = float(pixels.min()), float(pixels.max())
    # In float64, which the difference of two large float32 fits into.
    levels = (pixels.astype(np.float64) - low) * (255.0 / (high - low) if high > low else 0.0)
    file = io.BytesIO()
    Image.fromarray(levels.round().astype(np.uint8)).save(file, format="PNG", optimize=True)
    return Picture(index, file.getvalue(), low, high)


def _taking_turns(queues: Sequence[Sequence[Picture]]) -> Iterator[Picture]:
    for round_ in zip_longest(*queues):
        yield from (picture for picture in round_ if picture is not None)
