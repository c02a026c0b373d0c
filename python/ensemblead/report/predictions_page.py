"""The page of `predict`: images with scores, verdicts and regions in one file that loads nothing. No labels
are known, so it cannot say who is right; its reader can, and marks what is wrong.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.common.files import StrPath, valid_text, write_atomically
from ensemblead.common.objects import DetectedRegion
from ensemblead.common.validation import whole_number
from ensemblead.common.warnings import warn
from ensemblead.evaluation.gallery import Picture, describe_threshold, reduced_map
from ensemblead.report.pictures import COLORS, common_folder, describe_photo
from ensemblead.report.template import filled, json_in_html, stamp, write_pieces

_SCRIPTS = ("dom.js", "overlay.js", "predictions.js", "gallery.js")
# Boxes that are drawn on an image of the page, the highest maxima.
_BOXES = 50
# Of the images on the page, the share that is kept for those called normal.
_NORMAL_SHARE = 0.25
_Entry = tuple[float, int, dict[str, Any]]


class PredictionsPage:
    """Gathers scored images one by one, and writes the page. Memory does not grow with their number: up to
    `limit` images of each verdict are kept with a small copy of their map, 6 KB each.

    On the page are the `limit` images with the highest scores, of which a quarter is kept for images that are
    called normal, where misses are to be looked for. A photograph is reduced to 448 pixels, so that an image
    takes 20 to 60 KB.

    Args:
        detector: whose geometry, threshold and used bits the page needs.
        scale: the map values of the first and the last colour.
        pixel_threshold: the map's value of the contours; None: there are none.
        false_regions: per normal image at the pixel threshold; None: not known.
        limit: how many images; 0 keeps none.
    """

    def __init__(
        self,
        detector: Any,
        scale: tuple[float, float],
        pixel_threshold: float | None,
        false_regions: float | None,
        limit: int,
    ) -> None:
        self._detector, self._scale = detector, scale
        self._pixel_threshold, self._false_regions = pixel_threshold, false_regions
        self._limit = whole_number("limit", limit, 0)
        self._heaps: dict[bool | None, list[_Entry]] = {}
        self._counts: dict[bool | None, int] = {}
        self._total = self._regions = self._with_regions = 0
        self._folder: str | None = None

    def add(
        self,
        path: str,
        anomaly_map: npt.NDArray[np.float32],
        score: float,
        is_anomalous: bool | None,
        regions: Sequence[DetectedRegion] | None,
    ) -> None:
        """An image: its file, map `[h, w]`, score, verdict and regions; None for those that are not known."""
        self._total += 1
        self._counts[is_anomalous] = self._counts.get(is_anomalous, 0) + 1
        self._regions += len(regions or ())
        self._with_regions += bool(regions)
        own = os.path.dirname(os.path.abspath(path))
        self._folder = own if self._folder is None else os.path.commonpath([self._folder, own])
        heap = self._heaps.setdefault(is_anomalous, [])
        if self._limit == 0 or (len(heap) == self._limit and score <= heap[0][0]):
            return
        kept = {
            "path": path,
            "score": score,
            "verdict": is_anomalous,
            "picture": reduced_map(self._total, anomaly_map),
            "regions": None if regions is None else len(regions),
            "boxes": [[round(side, 1) for side in region.box] for region in (regions or ())[:_BOXES]],
        }
        entry = (score, -self._total, kept)  # of equal scores the first stays
        (heapq.heappushpop if len(heap) == self._limit else heapq.heappush)(heap, entry)

    def write(self, path: StrPath) -> Path:
        """Write the page. Photographs are read again, one at a time; a warning counts those that are gone."""
        chosen, missing = self._chosen(), list[str]()
        parts = {
            "title": escape(self._title()),
            "lead": escape(self._lead()),
            "tiles": self._tiles(),
            "selection": escape(self._selection(len(chosen))),
            "footer": escape(stamp()),
            "data": self._data(chosen, missing),
        }
        pieces = filled("predictions.html", parts, styles=("page.css", "predictions.css"), scripts=_SCRIPTS)
        target = write_atomically(path, lambda file: write_pieces(pieces, file))
        if missing:
            warn(f"{len(missing)} image(s) could not be read for {target.name}, the first is {missing[0]}")
        return target

    def _chosen(self) -> list[dict[str, Any]]:
        """The images on the page, the highest scores first."""
        normal = sorted(self._heaps.get(False, ()), key=_rank)
        others = sorted(
            (one for key, heap in self._heaps.items() if key is not False for one in heap), key=_rank
        )
        room = min(len(normal), max(round(self._limit * _NORMAL_SHARE), self._limit - len(others)))
        found = [*others[: self._limit - room], *normal[:room]]
        return [kept for _, _, kept in sorted(found, key=_rank)]

    def _data(self, chosen: Sequence[dict[str, Any]], missing: list[str]) -> Iterator[str]:
        """The JSON that the script reads, piece by piece."""
        threshold = float(self._detector.threshold_)
        category = {
            "name": "",
            "scale": list(self._scale),
            "contour": self._pixel_threshold,
            "threshold": threshold if math.isfinite(threshold) else None,
        }
        yield f'{{"categories":[{json_in_html(category)}],"colors":{json_in_html(COLORS)},"items":['
        base = common_folder(one["path"] for one in chosen) if chosen else ""
        bits = getattr(self._detector, "bits_", None)
        for position, kept in enumerate(chosen):
            picture: Picture = kept["picture"]
            own = {name: kept[name] for name in ("score", "verdict", "regions", "boxes")}
            item = {
                "category": 0,
                "name": valid_text(Path(os.path.relpath(kept["path"], base)).as_posix()),
                "path": valid_text(os.path.abspath(kept["path"])),
                **own,
                **describe_photo(kept["path"], picture, self._detector.geometry, bits, missing),
            }
            yield ("," if position else "") + json_in_html(item)
        yield "]}"

    def _title(self) -> str:
        folder = Path(self._folder or ".").name
        return f"{_counted(self._total, 'image')} of {valid_text(folder)}" if folder else "Images"

    def _lead(self) -> str:
        if not math.isfinite(self._detector.threshold_):
            return "The detector has no threshold."
        source = describe_threshold(self._detector)
        return f"Threshold {source}."

    def _tiles(self) -> str:
        anomalous, threshold = self._counts.get(True, 0), float(self._detector.threshold_)
        share = f"{anomalous / self._total:.1%} of all" if self._total else ""
        facts = [
            ("Images", f"{self._total:,}", ""),
            ("Called anomalous", f"{anomalous:,}", share),
            ("Threshold", f"{threshold:.4g}" if math.isfinite(threshold) else "none", "of the image's score"),
        ]
        if self._pixel_threshold is not None:
            rate = self._false_regions
            stated = "" if rate is None else f"; {rate:.2g} false regions per normal image"
            facts += [
                ("Regions", f"{self._regions:,}", f"in {_counted(self._with_regions, 'image')}"),
                ("Pixel threshold", f"{self._pixel_threshold:.4g}", f"of the map{stated}"),
            ]
        return "".join(
            f'<div class="tile"><dt>{name}</dt><dd><span class="value">{value}</span> '
            f'<span class="muted">{note}</span></dd></div>'
            for name, value, note in facts
        )

    def _selection(self, count: int) -> str:
        if count == self._total:
            return f"All {self._total:,}, the highest scores first." if count != 1 else "One image."
        return (
            f"{count:,} of {self._total:,} images, to keep this file small: those with the highest scores, "
            "of which a quarter is kept for images called normal. All are in scores.csv. More: --pictures N."
        )


def _rank(entry: _Entry) -> tuple[float, int]:
    return -entry[0], -entry[1]


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"
