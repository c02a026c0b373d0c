"""`ensemblead predict`: a saved model and images in; scores, heat maps and raw maps out."""

from __future__ import annotations

import glob
import math
import os
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.division import PART_HELP, parse_part
from ensemblead.cli.models import load_model
from ensemblead.cli.scores import ScoresFile
from ensemblead.cli.shared import FittedDevice, Json, MovedWeights, SkipUnreadable
from ensemblead.common.errors import EnsembleADError
from ensemblead.common.extras import require
from ensemblead.common.files import NAME_BYTES, as_file_name, file_names, valid_text
from ensemblead.common.validation import finite_number, in_part
from ensemblead.common.warnings import warn

if TYPE_CHECKING:
    from ensemblead.detectors import Detector, Predictions
    from ensemblead.images import ImageSource, SkippedImage

_WRITERS = 2
_LARGE = 1 << 24  # pixels of an image that is drawn while no other large one is


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Folders, images, or patterns such as 'a/*.png'."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    heat_maps: Annotated[
        bool, typer.Option("--heat-maps/--no-heat-maps", help="Write heat maps over the images (PNG).")
    ] = True,
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Write raw maps (TIFF, float32, as large as the image).")
    ] = True,
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option("--scale", help="Map values of the first and last colour; from the model if absent."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Scores above it are anomalous; from the model if absent."),
    ] = None,
    weights: MovedWeights = None,
    device: FittedDevice = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="torch, openvino, auto; as in the model if absent.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="float32, bfloat16, float16, int8; as in the model if absent."),
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    part: Annotated[
        str | None, typer.Option("--part", metavar="K/N", help=f"{PART_HELP} merge puts the scores together.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score images and show where they are anomalous.

    Writes OUT/scores.csv (OUT/scores.partial.csv until all rows are there), OUT/heat_maps/*.png and
    OUT/maps/*.tiff, named as the images are. With --part K/N the scores of every N-th image, in
    OUT/scores.part-K-of-N.csv. Colours mean the same on all images: they run from the median
    of the model's normal pixels to six times as far above it as their 99.9th percentile. Outside the crop
    heat maps are grey and raw maps NaN.
    """
    with reported_warnings() as warned, Bars() as bars:
        chosen = parse_part(part)
        run = PredictRun(
            model, images, out, heat_maps, maps, scale, weights or (), device, skip_unreadable, chosen
        )
        run.engine, run.precision, run.threshold = engine, precision, threshold
        summary = run.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    by = ", set by the user" if summary["threshold_origin"] == "user" else ""
    console.print(
        f"{summary['images']} images in {summary['seconds']:.1f} s, {summary['anomalous']} anomalous "
        f"(threshold {summary['threshold']:.4g}{by})\n{valid_text(summary['scores'])}"
    )


@dataclass
class PredictRun:
    """One call of `predict`; `execute` does it and returns its summary."""

    model: Path
    images: Sequence[Path]
    out: Path
    heat_maps: bool = True
    maps: bool = True
    scale: tuple[float, float] | None = None
    weights: Sequence[str] = ()
    device: str | None = None
    skip_unreadable: bool = False
    part: tuple[int, int] | None = None
    engine: str | None = None
    precision: str | None = None
    threshold: float | None = None

    def execute(self, bars: Bars) -> dict[str, Any]:
        require("torch", "ensemblead predict")
        from ensemblead.evaluation.gallery import color_scale
        from ensemblead.images import check_output_outside

        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out must be a folder, got the file {self.out}")
        if self.out.resolve().is_relative_to(self.model.resolve()):
            raise ValueError(
                f"out {self.out} lies inside the model {self.model}; choose a folder outside of it"
            )
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale must rise, got {self.scale[0]:g} {self.scale[1]:g}")
        if self.threshold is not None:
            finite_number("threshold", self.threshold)
        clock = Clock()
        source, root = chosen_images(self.images)
        check_output_outside(self.out, source.folders)
        for kept in (self.out / "heat_maps", self.out / "maps"):
            count = 0 if self.part is not None else sum(path.is_file() for path in kept.rglob("*"))
            if count:
                warn(f"{kept} holds {count} files of before: those of images that are not given now stay")
        bars.step("loading the model")
        detector = load_model(self.model, self.weights, self.device, self.engine, self.precision)
        if self.threshold is not None:
            detector.threshold_ = self.threshold
        threshold = float(detector.threshold_)
        if math.isnan(threshold):
            raise ValueError(f"the threshold of {self.model} is NaN, so that no score is above or below it")
        colors = color_scale(detector) if self.scale is None else self.scale
        names = dict(zip(source.paths, picture_names(source, root), strict=True))
        verdicts: list[dict[str, Any]] = []
        writer = _PictureWriter(self, detector, colors)
        errors: Any = "skip" if self.skip_unreadable else "raise"
        own = own_part(source, self.part)
        with ScoresFile(self.out, self.part, source.paths) as scores, writer:
            for batch in self._batches(detector, own, errors, bars) if own else ():
                scores.add(batch, threshold)
                verdicts += _verdicts(batch)
                for path, anomaly_map in zip(batch.paths, batch.anomaly_map, strict=True):
                    writer.put(str(path), names[path], anomaly_map)
            bars.step("writing pictures")
        writer.raise_failures(scores.path)
        return {
            "scores": str(scores.path),
            "images": scores.images,
            "anomalous": scores.anomalous,
            "threshold": threshold,
            "threshold_origin": detector.calibration_.threshold_origin,
            "false_alarm_rate": detector.calibration_.false_alarm_rate,
            "heat_maps": str(self.out / "heat_maps") if self.heat_maps else None,
            "maps": str(self.out / "maps") if self.maps else None,
            "color_scale": list(colors),
            "ignored_files": source.ignored,
            "ignored": source.describe_ignored(),
            "skipped": [{"path": image.path, "reason": image.reason} for image in _skipped(detector)],
            "seconds": round(clock(), 3),
            "predictions": verdicts,
        }

    def _batches(
        self, detector: Detector, own: ImageSource, errors: Any, bars: Bars
    ) -> Iterator[Predictions]:
        """The results of images, batch by batch; none of a part in which no image can be read."""
        try:
            yield from detector.predict_batches(own, errors=errors, progress=bars)
        except ValueError:
            # Other parts have images that can be read, and merge needs all parts.
            if self.part is None or len(_skipped(detector)) < len(own):
                raise


def own_part(source: ImageSource, part: tuple[int, int] | None) -> ImageSource | None:
    """The images of a part; None of a part without images, as there may be with more parts than images."""
    from ensemblead.images import open_images

    if part is None:
        return source
    paths = [path for index, path in enumerate(source.paths) if in_part(index, part)]
    return open_images(paths) if paths else None


def _skipped(detector: Detector) -> Sequence[SkippedImage]:
    """Images that were left out; none before anything was scored."""
    return getattr(detector, "skipped_", ())


def _verdicts(batch: Predictions) -> list[dict[str, Any]]:
    """Scores and verdicts in JSON's types."""
    found = zip(batch.paths, batch.anomaly_score.tolist(), batch.is_anomalous.tolist(), strict=True)
    return [
        {"path": valid_text(str(path)), "anomaly_score": score, "is_anomalous": called}
        for path, score, called in found
    ]


def chosen_images(given: Sequence[Path]) -> tuple[ImageSource, Path]:
    """The images that paths and patterns name, and the folder that they are named below.

    Raises FileNotFoundError for a path that does not exist, and for a pattern without a match.
    """
    from ensemblead.images import open_images

    paths: list[Path] = []
    for path in given:
        found = [path] if path.exists() or not glob.has_magic(str(path)) else _matches(path)
        paths += found
    if len(paths) == 1:
        return open_images(paths[0]), paths[0]
    sources = [open_images(path) for path in paths]
    files = list(dict.fromkeys(str(file) for one in sources for file in one.paths))
    source = open_images(files)
    source.folders = frozenset().union(*(one.folders for one in sources))
    source.ignored_files = tuple(file for one in sources for file in one.ignored_files)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return source, Path(root)


def _matches(pattern: Path) -> list[Path]:
    found = sorted(glob.glob(str(pattern), recursive=True))
    if not found:
        raise FileNotFoundError(f"images: nothing matches {pattern}")
    return [Path(path) for path in found]


def picture_names(source: ImageSource, root: Path) -> list[Path]:
    """For every image its place below `root`, without the suffix; with it where two would collide.

    No two are the same, also where a name had to be cut or changed to be the name of a file.
    """
    base = root if root.is_dir() else root.parent
    whole = [Path(os.path.relpath(str(path), base)) for path in source.paths]
    places = [place.with_suffix("") for place in whole]
    while True:
        used = Counter(places)
        collide = [i for i, place in enumerate(places) if used[place] > 1 and place != whole[i]]
        if not collide:
            break
        for i in collide:
            places[i] = whole[i]
    by_folder: dict[Path, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        by_folder[Path(*map(as_file_name, place.parent.parts))].append(i)
    # A picture and a folder of others may not have one name.
    folders = {above.as_posix() for folder in by_folder for above in (folder, *folder.parents)}
    limit = NAME_BYTES - len(".tiff")
    for folder, own in by_folder.items():
        inside = [Path(one).name for one in folders if Path(one).parent == folder]
        taken = [name.removesuffix(suffix) for name in inside for suffix in (".png", ".tiff")]
        names = file_names([places[i].name for i in own], limit=limit, taken=taken)
        for i, name in zip(own, names, strict=True):
            places[i] = folder / name
    return places


class _PictureWriter:
    """Draws and writes pictures in the background; keeps at most a few images waiting.

    A picture that cannot be written does not stop the scoring: see `raise_failures`.
    """

    def __init__(self, run: PredictRun, detector: Detector, colors: tuple[float, float]) -> None:
        self._run = run
        self._geometry, self._bits = detector.geometry, detector.bits_
        self._colors = colors
        self._limit = 2 * detector.batch_size
        self._large = threading.Lock()
        self._failures: list[str] = []
        self._waiting: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="ensemblead-pictures")

    def __enter__(self) -> _PictureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, path: str, name: Path, anomaly_map: Any) -> None:
        """Have the pictures of one image written."""
        if self._run.heat_maps or self._run.maps:
            self._waiting.append(self._pool.submit(self._write, path, name, anomaly_map))
        while len(self._waiting) > self._limit:
            self._waiting.popleft().result()

    def raise_failures(self, scores: Path) -> None:
        """Raise OSError if a picture is missing."""
        if self._failures:
            raise OSError(
                f"the pictures of {len(self._failures)} image(s) could not be written, the first is "
                f"{self._failures[0]} (all scores are in {scores})"
            )

    def _write(self, path: str, name: Path, anomaly_map: Any) -> None:
        try:
            self._draw(path, name, anomaly_map)
        except (OSError, ValueError, EnsembleADError, MemoryError) as error:
            reason = "not enough memory" if isinstance(error, MemoryError) else str(error)
            self._failures.append(f"{path}: {reason}")

    def _draw(self, path: str, name: Path, anomaly_map: Any) -> None:
        from ensemblead.cli.pictures import PlacedMap, draw_heat_map, place_back, save_map, save_png
        from ensemblead.images import read_image, upright_size

        height, width = size = upright_size(path)
        out = self._run.out
        with self._large if height * width > _LARGE else nullcontext():
            if self._run.maps:
                placed = place_back(anomaly_map, self._geometry, size)
                save_map(out / "maps" / name.with_name(f"{name.name}.tiff"), placed)
                del placed
            if self._run.heat_maps:
                image = np.require(read_image(path, bits=self._bits), requirements="W")
                draw_heat_map(image, PlacedMap(anomaly_map, self._geometry, size), self._colors)
                save_png(out / "heat_maps" / name.with_name(f"{name.name}.png"), image)
