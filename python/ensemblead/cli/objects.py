"""`objects.json`: detected regions in COCO's layout, written as they come, and put together from parts."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ensemblead.common.files import valid_text, write_atomically
from ensemblead.common.objects import DetectedRegion, Polygon

CATEGORIES = [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}]
_PART = re.compile(r"objects\.part-(\d+)-of-(\d+)\.json")
_DIGITS = 2  # hundredths of a pixel


class ObjectsFile:
    """`objects.json`, or that of a part. What has come waits in temporary files without names, so that memory
    does not grow with the number of images; the file appears when all is there.

    Images have the id of their place among all images, those of other parts included, from 1 on. Regions are
    numbered as they come.

    Args:
        folder: where it lies.
        part: `(k, n)`, or None for all images.
        paths: of all images.
        info: what the file says of itself, in JSON's types.
    """

    def __init__(
        self,
        folder: Path,
        part: tuple[int, int] | None,
        paths: Sequence[str | None],
        info: Mapping[str, Any],
    ) -> None:
        name = "" if part is None else f".part-{part[0]}-of-{part[1]}"
        self.path = folder / f"objects{name}.json"
        self.count = 0
        self._info = info
        self._ids = {str(path): place for place, path in enumerate(paths, start=1)}

    def __enter__(self) -> ObjectsFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._images = tempfile.TemporaryFile("w+", dir=self.path.parent, encoding="utf-8")
        self._regions = tempfile.TemporaryFile("w+", dir=self.path.parent, encoding="utf-8")
        return self

    def add(
        self,
        path: str,
        size: tuple[int, int],
        score: float,
        anomalous: bool | None,
        regions: Iterable[DetectedRegion],
    ) -> None:
        """An image (H, W), and its regions."""
        number = self._ids[path]
        image = {
            "id": number,
            "file_name": valid_text(path),
            "width": size[1],
            "height": size[0],
            "anomaly_score": score,
            "is_anomalous": anomalous,
        }
        self._images.write(_line(image, first=self._images.tell() == 0))
        for region in regions:
            self.count += 1
            self._regions.write(_line(annotation(region, self.count, number), first=self.count == 1))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._images, self._regions:
            if kind is None:
                write_atomically(self.path, self._write)

    def _write(self, file: BinaryIO) -> None:
        for waiting in (self._images, self._regions):
            waiting.seek(0)
        _write_document(file, self._info, self._images, self._regions)


def _write_document(
    file: BinaryIO, info: Mapping[str, Any], images: Iterable[str], regions: Iterable[str]
) -> None:
    """The document, of the lines of its images and regions."""
    head = _text({"info": info, "licenses": [], "categories": CATEGORIES})
    file.write(f'{head[:-1]},\n"images":['.encode())
    file.writelines(line.encode() for line in images)
    file.write(b'],\n"annotations":[')
    file.writelines(line.encode() for line in regions)
    file.write(b"]}\n")


def annotation(region: DetectedRegion, number: int, image: int) -> dict[str, Any]:
    """A region as an annotation of COCO; lengths are in pixels of the photograph.

    COCO's polygons know no holes: `segmentation` has the outer outline, and `area` is without the holes.
    `score` is the region's maximum.
    """
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [round(side, _DIGITS) for side in region.box],
        "area": round(region.area, _DIGITS),
        "segmentation": [_flat(region.contour)],
        "iscrowd": 0,
        "score": region.maximum,
        "mean": region.mean,
    }


def _flat(polygon: Polygon) -> list[float]:
    """x, y, x, y, ..."""
    flat: list[float] = np.round(polygon, _DIGITS).ravel().tolist()
    return flat


def _line(value: Mapping[str, Any], *, first: bool) -> str:
    """A line of an array, after the comma that it needs."""
    return ("\n" if first else ",\n") + _text(value)


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def merge_objects(folder: Path, parts: int) -> tuple[Path, int] | None:
    """Write `objects.json` from those of all parts, in the order of the images: its path, and how many
    regions there are; None where the parts have none. Files of parts stay.

    Args:
        parts: how many there are.

    Raises FileNotFoundError where only some parts have one, ValueError for parts that do not belong together.
    """
    found = {int(match[1]): path for path in folder.iterdir() if (match := _part(path, parts))}
    if not found:
        return None
    absent = [number for number in range(1, parts + 1) if number not in found]
    if absent:
        raise FileNotFoundError(f"objects.part-{absent[0]}-of-{parts}.json is not in {folder}")
    documents = [_document(found[number]) for number in sorted(found)]
    infos = [document["info"] for document in documents]
    images = sorted((one for document in documents for one in document["images"]), key=lambda one: one["id"])
    same = len({one["id"] for one in images}) == len(images)
    if any(info != infos[0] for info in infos) or not same:
        raise ValueError(f"the objects in {folder} are of several models or sets of images: predict anew")
    regions = [one for document in documents for one in document["annotations"]]
    regions.sort(key=lambda one: (one["image_id"], one["id"]))
    numbered = ({**one, "id": number} for number, one in enumerate(regions, start=1))
    lines = [[_line(one, first=i == 0) for i, one in enumerate(every)] for every in (images, numbered)]
    path = write_atomically(folder / "objects.json", lambda file: _write_document(file, infos[0], *lines))
    return path, len(regions)


def _part(path: Path, parts: int) -> re.Match[str] | None:
    match = _PART.fullmatch(path.name)
    return match if match and int(match[2]) == parts else None


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        fits = isinstance(document, dict) and {"info", "images", "annotations"} <= document.keys()
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{path} is not what predict --part writes")
    found: dict[str, Any] = document
    return found
