"""`ensemblead predict`: a saved model and images in; scores, regions, pictures and a page out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.division import PART_HELP, parse_part
from ensemblead.cli.given_images import chosen_images, picture_names
from ensemblead.cli.models import check_outside_model, load_model
from ensemblead.cli.objects import ObjectsFile
from ensemblead.cli.scores import ScoresFile
from ensemblead.cli.shared import Engine, FittedDevice, Json, MovedWeights, Precision, SkipUnreadable
from ensemblead.cli.writing import Chosen, PictureWriter, Scored
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text
from ensemblead.common.objects import DEFAULT_FALSE_REGIONS, checked_rate, detected_regions, quiet_outside
from ensemblead.common.validation import finite_number, in_part, whole_number
from ensemblead.common.warnings import warn

if TYPE_CHECKING:
    from ensemblead.detectors import Detector, Predictions
    from ensemblead.images import ImageSource, SkippedImage

PICTURES = 300  # images on the page: 20 to 40 KB each


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Folders, images, or patterns such as 'a/*.png'."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    heat_maps: Annotated[
        bool,
        typer.Option(
            "--heat-maps/--no-heat-maps", help="Write heat maps over the images, with verdicts (PNG)."
        ),
    ] = True,
    masks: Annotated[
        bool,
        typer.Option("--masks", help="Write masks of the regions (PNG, 0 and 255, as large as the image)."),
    ] = False,
    maps: Annotated[
        bool, typer.Option("--maps/--no-maps", help="Write raw maps (TIFF, float32, as large as the image).")
    ] = False,
    pictures: Annotated[
        int, typer.Option("--pictures", metavar="N", help="Images on the page report.html; 0: no page.")
    ] = PICTURES,
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option("--scale", help="Map values of the first and last colour; from the model if absent."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Scores above it are anomalous; from the model if absent."),
    ] = None,
    pixel_threshold: Annotated[
        float | None,
        typer.Option("--pixel-threshold", help="Map values above it are regions; from the model if absent."),
    ] = None,
    false_regions: Annotated[
        float,
        typer.Option(
            "--false-regions", help="Regions that a normal image may have on average; sets the former."
        ),
    ] = DEFAULT_FALSE_REGIONS,
    min_area: Annotated[
        float, typer.Option("--min-area", help="Leave out regions of fewer square pixels of the photograph.")
    ] = 0.0,
    weights: MovedWeights = None,
    device: FittedDevice = None,
    engine: Engine = None,
    precision: Precision = None,
    skip_unreadable: SkipUnreadable = False,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="K/N", help=f"{PART_HELP} merge puts scores and objects together."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score images and show where they are anomalous.

    Writes OUT/scores.csv (OUT/scores.partial.csv until all rows are there), OUT/objects.json (regions with
    boxes and outlines, in COCO's layout), OUT/heat_maps/*.png and OUT/report.html, a page to look at. On
    request OUT/masks/*.png and OUT/maps/*.tiff, named as the images are. With --part K/N the same of every
    N-th image, in OUT/scores.part-K-of-N.csv and so on. Colours mean the same on all images: they run from
    the median of the model's normal pixels to six times as far above it as their 99.9th percentile. Outside
    the crop heat maps are grey and raw maps NaN.
    """
    with reported_warnings() as warned, Bars() as bars:
        chosen = parse_part(part)
        run = PredictRun(
            model, images, out, heat_maps, maps, scale, weights or (), device, skip_unreadable, chosen
        )
        run.engine, run.precision, run.threshold = engine, precision, threshold
        run.masks, run.pictures, run.min_area = masks, pictures, min_area
        run.pixel_threshold, run.false_regions = pixel_threshold, false_regions
        summary = run.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    by = ", set by the user" if summary["threshold_origin"] == "user" else ""
    console.print(
        f"{summary['images']} images in {summary['seconds']:.1f} s, {summary['anomalous']} anomalous "
        f"(threshold {summary['threshold']:.4g}{by})\n{valid_text(summary['scores'])}"
        + "".join(f"\n{valid_text(summary[key])}" for key in ("objects", "report") if summary[key])
    )


@dataclass
class PredictRun:
    """One call of `predict`; `execute` does it and returns its summary."""

    model: Path
    images: Sequence[Path]
    out: Path
    heat_maps: bool = True
    maps: bool = False
    scale: tuple[float, float] | None = None
    weights: Sequence[str] = ()
    device: str | None = None
    skip_unreadable: bool = False
    part: tuple[int, int] | None = None
    engine: str | None = None
    precision: str | None = None
    threshold: float | None = None
    masks: bool = False
    pictures: int = PICTURES
    pixel_threshold: float | None = None
    false_regions: float = DEFAULT_FALSE_REGIONS
    min_area: float = 0.0

    def execute(self, bars: Bars) -> dict[str, Any]:
        require("torch", "ensemblead predict")
        from ensemblead.images import check_output_outside

        self._check()
        clock = Clock()
        source, root = chosen_images(self.images)
        check_output_outside(self.out, source.folders)
        if self.part is None:
            self._warn_of_pictures()
        bars.step("loading the model")
        detector = load_model(self.model, self.weights, self.device, self.engine, self.precision)
        if self.threshold is not None:
            detector.threshold_ = self.threshold
        chosen = self._chosen(detector)
        summary = self._predict(detector, chosen, source, root, bars)
        calibration = detector.calibration_
        return {
            **summary,
            "threshold": chosen.threshold,
            "threshold_origin": calibration.threshold_origin,
            "false_alarm_rate": calibration.false_alarm_rate,
            "pixel_threshold": chosen.pixel_threshold,
            "false_regions": self._stated_rate(detector),
            **{
                name: str(self.out / name) if getattr(chosen, name) else None
                for name in ("heat_maps", "masks", "maps")
            },
            "color_scale": list(chosen.colors),
            "ignored_files": source.ignored,
            "ignored": source.describe_ignored(),
            "skipped": [{"path": image.path, "reason": image.reason} for image in _skipped(detector)],
            "seconds": round(clock(), 3),
        }

    def _warn_of_pictures(self) -> None:
        for kept in (self.out / name for name in ("heat_maps", "masks", "maps")):
            if count := sum(path.is_file() for path in kept.rglob("*")):
                warn(f"{kept} holds {count} files of before: those of images that are not given now stay")

    def _check(self) -> None:
        """Refuse, before any work, what makes no sense."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out must be a folder, got the file {self.out}")
        check_outside_model(self.out, self.model)
        if self.scale is not None:
            low, high = (finite_number("scale", end) for end in self.scale)
            if not low < high:
                raise ValueError(f"scale must rise, got {low:g} {high:g}")
        if self.threshold is not None:
            finite_number("threshold", self.threshold)
        if self.pixel_threshold is not None:
            finite_number("pixel_threshold", self.pixel_threshold)
        if finite_number("min_area", self.min_area) < 0:
            raise ValueError(f"min_area must not be negative, got {self.min_area:g}")
        whole_number("pictures", self.pictures, 0)
        checked_rate(self.false_regions)

    def _chosen(self, detector: Detector) -> Chosen:
        """What is written, by which thresholds and colours."""
        from ensemblead.evaluation.gallery import color_scale

        threshold, calibration = float(detector.threshold_), detector.calibration_
        if math.isnan(threshold):
            raise ValueError(f"the threshold of {self.model} is NaN, so that no score is above or below it")
        pixels = self.pixel_threshold
        if pixels is None and calibration.knows_regions:
            pixels = calibration.pixel_threshold(self.false_regions)
        if pixels is None:
            warn(
                "no regions are found: the model has no statistics of the regions of normal images; "
                "calibrate it anew, or give --pixel-threshold"
            )
        return Chosen(
            self.out,
            heat_maps=self.heat_maps,
            masks=self.masks and pixels is not None,
            maps=self.maps,
            colors=color_scale(detector) if self.scale is None else self.scale,
            threshold=threshold,
            pixel_threshold=pixels,
            min_area=float(self.min_area),
        )

    def _stated_rate(self, detector: Detector) -> float | None:
        """False regions per normal image; None where that is not known."""
        calibration = detector.calibration_
        if self.pixel_threshold is not None or not calibration.knows_regions:
            return None
        return calibration.false_region_rate(self.false_regions)

    def _predict(
        self, detector: Detector, chosen: Chosen, source: ImageSource, root: Path, bars: Bars
    ) -> dict[str, Any]:
        """Score all images and write what was chosen."""
        from ensemblead.report.predictions_page import PredictionsPage

        names = dict(zip(source.paths, picture_names(source, root), strict=True))
        verdicts: list[dict[str, Any]] = []
        errors: Any = "skip" if self.skip_unreadable else "raise"
        own = own_part(source, self.part)
        rate = self._stated_rate(detector)
        info = {
            "description": "anomalous regions found by ensemblead predict",
            "threshold": chosen.threshold if math.isfinite(chosen.threshold) else None,
            "pixel_threshold": chosen.pixel_threshold,
            "false_regions_per_normal_image": rate,
            "min_area": chosen.min_area,
        }
        objects = None
        report = self.out / f"report{_part_name(self.part)}.html"
        if chosen.pixel_threshold is not None:
            objects = ObjectsFile(self.out, self.part, source.paths, info)
        else:
            _warn_if_stale(self.out / f"objects{_part_name(self.part)}.json")
        if not self.pictures:
            _warn_if_stale(report)
        page = PredictionsPage(detector, chosen.colors, chosen.pixel_threshold, rate, self.pictures)
        writer = PictureWriter(chosen, detector)
        with ScoresFile(self.out, self.part, source.paths) as scores, objects or nullcontext(), writer:
            for batch in self._batches(detector, own, errors, bars) if own else ():
                scores.add(batch, chosen.threshold)
                verdicts += _verdicts(batch)
                for one, size in _scored(batch, names, chosen):
                    writer.put(one)
                    page.add(one.path, one.anomaly_map, one.score, one.is_anomalous, one.regions)
                    if objects is not None:
                        objects.add(one.path, size, one.score, one.is_anomalous, one.regions or ())
            bars.step("writing pictures")
        if self.pictures:
            bars.step("writing the page")
            page.write(report)
        writer.raise_failures(scores.path)
        return {
            "scores": str(scores.path),
            "objects": None if objects is None else str(objects.path),
            "report": str(report) if self.pictures else None,
            "images": scores.images,
            "anomalous": scores.anomalous,
            "regions": None if objects is None else objects.count,
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


def _warn_if_stale(path: Path) -> None:
    """Warn of a file of a run before that is not written anew."""
    if path.exists():
        warn(f"{path} is of a run before, and stays as it is")


def _part_name(part: tuple[int, int] | None) -> str:
    """What names of a part's files have before their suffix."""
    return "" if part is None else f".part-{part[0]}-of-{part[1]}"


def _scored(
    batch: Predictions, names: Mapping[Any, Path], chosen: Chosen
) -> Iterator[tuple[Scored, tuple[int, int]]]:
    """Every image of a batch with its regions, and its size (H, W)."""
    assert batch.sizes is not None
    assert batch.geometry is not None
    for index, (path, size) in enumerate(zip(batch.paths, batch.sizes, strict=True)):
        values, regions = quiet_outside(batch.anomaly_map[index], batch.geometry), None
        if chosen.pixel_threshold is not None:
            regions = list(
                detected_regions(
                    values,
                    chosen.pixel_threshold,
                    batch.geometry,
                    size,
                    min_area=chosen.min_area,
                    path=path,
                )
            )
        called = bool(batch.is_anomalous[index]) if math.isfinite(chosen.threshold) else None
        score = float(batch.anomaly_score[index])
        yield Scored(str(path), names[path], values, score, called, regions), size


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
