"""The pictures of `predict`, drawn and written in the background."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ensemblead.common.errors import EnsembleADError
from ensemblead.common.objects import DetectedRegion, inspected_part, pixel_scale, regions_above

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from ensemblead.detectors import Detector
    from ensemblead.images import Geometry

_WRITERS = 2
_LARGE = 1 << 24  # pixels of an image that is drawn while no other large one is
Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """Which pictures are written, and how.

    Attributes:
        out: the folder they go to.
        heat_maps, masks, maps: whether these are written.
        colors: the map values of the first and the last colour.
        threshold, pixel_threshold: of scores, and of the map's values; None where there is none.
        min_area: of regions, in square pixels of the photograph.
    """

    out: Path
    heat_maps: bool
    masks: bool
    maps: bool
    colors: tuple[float, float]
    threshold: float
    pixel_threshold: float | None
    min_area: float

    @property
    def any(self) -> bool:
        return self.heat_maps or self.masks or self.maps


@dataclass(frozen=True)
class Scored:
    """An image, as it was scored: where it is, what its pictures are named, its map, verdict and regions."""

    path: str
    name: Path
    anomaly_map: Values
    score: float
    is_anomalous: bool | None
    regions: Sequence[DetectedRegion] | None


class PictureWriter:
    """Draws and writes pictures in the background; keeps at most a few images waiting.

    A picture that cannot be written does not stop the scoring: see `raise_failures`.
    """

    def __init__(self, chosen: Chosen, detector: Detector) -> None:
        self._chosen = chosen
        self._geometry, self._bits = detector.geometry, detector.bits_
        self._limit = 2 * detector.batch_size
        self._large = threading.Lock()
        self._failures: list[str] = []
        self._waiting: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="ensemblead-pictures")

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, scored: Scored) -> None:
        """Have the pictures of one image written."""
        if self._chosen.any:
            self._waiting.append(self._pool.submit(self._write, scored))
        while len(self._waiting) > self._limit:
            self._waiting.popleft().result()

    def raise_failures(self, scores: Path) -> None:
        """Raise OSError if a picture is missing."""
        if self._failures:
            raise OSError(
                f"the pictures of {len(self._failures)} image(s) could not be written, the first is "
                f"{self._failures[0]} (all scores are in {scores})"
            )

    def _write(self, scored: Scored) -> None:
        try:
            self._draw(scored)
        except (OSError, ValueError, EnsembleADError, MemoryError) as error:
            reason = "not enough memory" if isinstance(error, MemoryError) else str(error)
            self._failures.append(f"{scored.path}: {reason}")

    def _draw(self, scored: Scored) -> None:
        from ensemblead.cli.pictures import PlacedMap, place_back, placed_mask, save_map, save_mask, save_png
        from ensemblead.images import read_image, upright_size

        height, width = size = upright_size(scored.path)
        chosen = self._chosen
        with self._large if height * width > _LARGE else nullcontext():
            if chosen.maps:
                placed = place_back(scored.anomaly_map, self._geometry, size)
                save_map(self._place("maps", scored.name, ".tiff"), placed)
                del placed
            kept = None
            if chosen.pixel_threshold is not None:
                pixel = pixel_scale(self._geometry, size, scored.anomaly_map.shape).prod()
                kept = without_small(
                    scored.anomaly_map,
                    chosen.pixel_threshold,
                    chosen.min_area,
                    pixel,
                    inspected_part(self._geometry),
                )
                if chosen.masks:
                    mask = placed_mask(PlacedMap(kept, self._geometry, size), chosen.pixel_threshold)
                    save_mask(self._place("masks", scored.name, ".png"), mask)
                    del mask
            if chosen.heat_maps:
                image = np.require(read_image(scored.path, bits=self._bits), requirements="W")
                picture = captioned_heat_map(
                    scored,
                    image,
                    self._geometry,
                    chosen.colors,
                    chosen.threshold,
                    kept,
                    chosen.pixel_threshold,
                )
                save_png(self._place("heat_maps", scored.name, ".png"), picture)

    def _place(self, folder: str, name: Path, suffix: str) -> Path:
        return self._chosen.out / folder / name.with_name(f"{name.name}{suffix}")


def captioned_heat_map(
    scored: Scored,
    image: npt.NDArray[np.uint8],
    geometry: Geometry,
    colors: tuple[float, float],
    threshold: float,
    kept: Values | None = None,
    pixel_threshold: float | None = None,
) -> Picture:
    """A heat map over its photograph, which is drawn on, above a band with score, threshold and verdict.

    Where `kept` and `pixel_threshold` are given, the regions of `kept` above it are outlined, and boxes are
    drawn around those of `scored`.
    """
    from ensemblead.cli.drawing import (
        Caption,
        canvas_of,
        caption_words,
        draw_boxes,
        draw_outline,
        fine_mask,
        line_width,
    )
    from ensemblead.cli.pictures import PlacedMap, draw_heat_map

    height, width = size = (image.shape[0], image.shape[1])
    draw_heat_map(image, PlacedMap(scored.anomaly_map, geometry, size), colors)
    count = None if scored.regions is None else len(scored.regions)
    caption = Caption(
        size, caption_words(scored.score, threshold, scored.is_anomalous, count), scored.is_anomalous
    )
    canvas = canvas_of(image, caption.height, caption.width)
    del image
    if kept is not None and pixel_threshold is not None:
        top, left, bottom, right = box = geometry.crop_box(height, width)
        place = max(1, round(bottom - top)), max(1, round(right - left))
        wide = line_width(size)
        draw_outline(canvas, fine_mask(kept, pixel_threshold, place), box, width=wide)
        draw_boxes(canvas, [region.box for region in scored.regions or ()], width=wide)
    caption.draw(canvas)
    return canvas


def without_small(
    values: Values,
    threshold: float,
    min_area: float,
    pixel: float,
    inspected: npt.NDArray[np.bool_] | None = None,
) -> Values:
    """A map in which regions above the threshold that are smaller than `min_area` lie below it, and with them
    what is not inspected; `pixel`: the area of a pixel of the map.
    """
    if min_area <= pixel and inspected is None:
        return values
    changed: Values = values.copy()
    below = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    if inspected is not None:
        changed[~inspected] = np.minimum(changed[~inspected], below)
    for region in regions_above(changed, threshold) if min_area > pixel else ():
        if region.mask.sum() * pixel < min_area:
            changed[region.rows, region.columns][region.mask] = below
    return changed
