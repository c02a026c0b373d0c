"""`ensemblead predict`: a saved model and images in; scores, heat maps and raw maps out."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.console import Bars, Clock, print_json, told_warnings
from ensemblead.cli.models import load_model
from ensemblead.common.extras import require
from ensemblead.common.files import write_atomically

if TYPE_CHECKING:
    from ensemblead.detectors.base import Detector, Predictions
    from ensemblead.images import ImageSource

_WRITERS = 2
COLUMNS = ("path", "anomaly_score", "is_anomalous", "threshold")


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of images, or one image.")],
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
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="[I.]PATH: where the networks' weights are now."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda; as at the fit if absent.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON summary.")] = False,
) -> None:
    """Score images and show where they are anomalous.

    Writes OUT/scores.csv, OUT/heat_maps/*.png and OUT/maps/*.tiff, named as the images are. Colours mean the
    same on all images: they run from the median of the model's normal pixels to six times as far above it
    as their 99.9th percentile. What lies outside the crop is grey in heat maps and NaN in raw maps.
    """
    with told_warnings() as warned:
        run = PredictRun(model, images, out, heat_maps, maps, scale, weights or (), device, skip_unreadable)
        summary = run.execute()
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{summary['images']} images in {summary['seconds']:.1f} s, {summary['anomalous']} anomalous "
        f"(threshold {summary['threshold']:.4g})\n{summary['scores']}"
    )


@dataclass
class PredictRun:
    """One call of `predict`; `execute` does it and returns its summary."""

    model: Path
    images: Path
    out: Path
    heat_maps: bool = True
    maps: bool = True
    scale: tuple[float, float] | None = None
    weights: Sequence[str] = ()
    device: str | None = None
    skip_unreadable: bool = False

    def execute(self) -> dict[str, Any]:
        require("torch", "ensemblead predict")
        from ensemblead.evaluation.gallery import color_scale
        from ensemblead.images import check_output_outside, open_images

        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out must be a folder, got the file {self.out}")
        if self.out.resolve().is_relative_to(self.model.resolve()):
            raise ValueError(
                f"out {self.out} lies inside the model {self.model}; choose a folder outside of it"
            )
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale must rise, got {self.scale[0]:g} {self.scale[1]:g}")
        clock = Clock()
        source = open_images(self.images)
        check_output_outside(self.out, source.folders)
        detector = load_model(self.model, self.weights, self.device)
        colors = color_scale(detector) if self.scale is None else self.scale
        names = dict(zip(source.paths, picture_names(source, self.images), strict=True))
        rows: list[tuple[str, str, bool, str]] = []
        with Bars() as bars, _PictureWriter(self, detector, colors) as writer:
            errors: Any = "skip" if self.skip_unreadable else "raise"
            for batch in detector.predict_batches(source, errors=errors, progress=bars):
                rows += self._rows(batch, detector.threshold_)
                for path, anomaly_map in zip(batch.paths, batch.anomaly_map, strict=True):
                    writer.put(str(path), names[path], anomaly_map)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
        scores = self.out / "scores.csv"
        write_atomically(scores, text.getvalue())
        return {
            "scores": str(scores),
            "images": len(rows),
            "anomalous": sum(anomalous for _, _, anomalous, _ in rows),
            "threshold": detector.threshold_,
            "false_alarm_rate": detector.calibration_.false_alarm_rate,
            "heat_maps": str(self.out / "heat_maps") if self.heat_maps else None,
            "maps": str(self.out / "maps") if self.maps else None,
            "color_scale": list(colors),
            "ignored_files": source.ignored,
            "skipped": [{"path": image.path, "reason": image.reason} for image in detector.skipped_],
            "seconds": round(clock(), 3),
        }

    def _rows(self, batch: Predictions, threshold: float) -> list[tuple[str, str, bool, str]]:
        rows = zip(batch.paths, batch.anomaly_score, batch.is_anomalous, strict=True)
        # Nine digits are a float32 to the last bit: whoever compares again comes to the same verdict.
        return [(str(p), f"{score:.9g}", bool(called), f"{threshold:.17g}") for p, score, called in rows]


def picture_names(source: ImageSource, root: Path) -> list[Path]:
    """For every image its place below `root`, without the suffix; with it where two would collide."""
    base = root if root.is_dir() else root.parent
    places = [Path(os.path.relpath(str(path), base)) for path in source.paths]
    used = Counter(place.with_suffix("") for place in places)
    return [place if used[place.with_suffix("")] > 1 else place.with_suffix("") for place in places]


class _PictureWriter:
    """Draws and writes pictures in the background; keeps at most a few images waiting."""

    def __init__(self, run: PredictRun, detector: Detector, colors: tuple[float, float]) -> None:
        self._run = run
        self._geometry = detector.geometry
        self._colors = colors
        self._limit = 2 * detector.batch_size
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
        if self._run.heat_maps or self._run.maps:
            self._waiting.append(self._pool.submit(self._write, path, name, anomaly_map))
        while len(self._waiting) > self._limit:
            self._waiting.popleft().result()

    def _write(self, path: str, name: Path, anomaly_map: Any) -> None:
        from ensemblead.cli.pictures import overlay, place_back, save_map, save_png
        from ensemblead.images import read_image

        image = read_image(path)
        placed = place_back(anomaly_map, self._geometry, (image.shape[0], image.shape[1]))
        out = self._run.out
        if self._run.maps:
            save_map(out / "maps" / name.with_name(f"{name.name}.tiff"), placed)
        if self._run.heat_maps:
            drawn = overlay(image, placed, self._colors)
            save_png(out / "heat_maps" / name.with_name(f"{name.name}.png"), drawn)
