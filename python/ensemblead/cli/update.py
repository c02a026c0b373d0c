"""`ensemblead calibrate`, `extend` and `quantize`: a saved model, good images, and the model anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.models import describe_model, load_model
from ensemblead.cli.predict import chosen_images
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.images import ImageSource

_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")]
_Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGES...", help="Folders, images, or patterns such as 'a/*.png'.")
]
_Out = Annotated[
    Path | None, typer.Option("--out", help="Write the model to this folder, and leave MODEL as it is.")
]
_Weights = Annotated[
    list[str] | None, typer.Option("--weights", help="[I.]PATH: where the networks' weights are from now on.")
]
_Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, from now on; as at the fit if absent.")
]


def calibrate(
    model: _Model,
    images: _Images,
    out: _Out = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option("--false-alarm-rate", help="Of good images; 0.01 if absent.")
    ] = None,
    weights: _Weights = None,
    device: _Device = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Take a model's threshold from fresh images of good parts, which it has not learned.

    A fresh good image then scores above the threshold with at most the given probability. 99 images guarantee
    0.01, and 9 images 0.1.
    """
    from ensemblead.calibration import DEFAULT_RATE

    rate = DEFAULT_RATE if false_alarm_rate is None else false_alarm_rate

    def update(detector: Detector, source: ImageSource, errors: Any, bars: Bars) -> None:
        detector.calibrate(source, rate, errors=errors, progress=bars)

    _run(_Update(model, images, out, weights or (), device, skip_unreadable, update), as_json)


def extend(
    model: _Model,
    images: _Images,
    out: _Out = None,
    max_rows: Annotated[
        int | None,
        typer.Option("--max-rows", help="Keep a memory bank at so many rows; it grows if absent."),
    ] = None,
    weights: _Weights = None,
    device: _Device = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Let a model learn more images of good parts, without starting over.

    What it has learned stays, unless --max-rows lets new rows take the place of others. Methods that are
    trained cannot be extended: they are fitted again.
    """

    def update(detector: Detector, source: ImageSource, errors: Any, bars: Bars) -> None:
        detector.extend(source, max_rows=max_rows, errors=errors, progress=bars)

    _run(_Update(model, images, out, weights or (), device, skip_unreadable, update), as_json)


def quantize(
    model: _Model,
    images: _Images,
    out: _Out = None,
    max_images: Annotated[
        int, typer.Option("--max-images", help="Read ranges of values from so many images.", min=1)
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of these images.", min=0)] = 0,
    weights: _Weights = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Run a model's networks in int8 from now on, by OpenVINO: several times as fast on a CPU.

    Give images of good parts, those of the fit or others. What was learned stays, and the threshold too;
    scores move by a few per cent. `calibrate` takes a threshold of int8 scores.
    """

    def update(detector: Detector, source: ImageSource, errors: Any, bars: Bars) -> None:
        detector.quantize(source, max_images=max_images, seed=seed, errors=errors, progress=bars)

    _run(_Update(model, images, out, weights or (), "cpu", skip_unreadable, update), as_json)


def _run(update: _Update, as_json: bool) -> None:
    with reported_warnings() as warned, Bars() as bars:
        summary = update.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    is_users = summary["threshold_origin"] == "user"
    by = "set by the user" if is_users else f"by {summary['threshold_images']} images"
    Console(highlight=False, soft_wrap=True, markup=False).print(
        f"{summary['images']} images in {summary['seconds']:.1f} s; threshold {summary['threshold']:.4g} "
        f"{by}, before {summary['threshold_before']:.4g}; false alarms "
        f"{summary['false_alarm_rate']:.2g} ({summary['false_alarm_rate_is']})\n"
        f"model: {valid_text(summary['model'])}"
    )


@dataclass
class _Update:
    """One call of either command; `execute` does it and returns its summary."""

    model: Path
    images: Sequence[Path]
    out: Path | None
    weights: Sequence[str]
    device: str | None
    skip_unreadable: bool
    update: Callable[[Detector, ImageSource, Any, Bars], None]

    def execute(self, bars: Bars) -> dict[str, Any]:
        require("torch", "ensemblead calibrate, extend and quantize")
        from ensemblead.images import check_normal_folder, check_output_outside
        from ensemblead.store import MANIFEST, check_target

        clock = Clock()
        target = self.model if self.out is None else self.out
        if self.out is not None:
            check_target(self.out)
            if (self.out / MANIFEST).exists():
                raise ValueError(f"out: there is a model in {self.out} already; give another folder")
        for path in self.images:
            if path.is_dir():
                check_normal_folder(path)
        source, _ = chosen_images(self.images)
        check_output_outside(target, source.folders)
        bars.step("loading the model")
        detector = load_model(self.model, self.weights, self.device)
        before = float(detector.threshold_)
        self.update(detector, source, "skip" if self.skip_unreadable else "raise", bars)
        skipped = list(detector.skipped_)
        bars.step("saving")
        detector.save(target)
        return {
            "model": str(target),
            "images": len(source) - len(skipped),
            "ignored_files": source.ignored,
            "ignored": source.describe_ignored(),
            "skipped": [{"path": image.path, "reason": image.reason} for image in skipped],
            "seconds": round(clock(), 3),
            "threshold_before": before,
            **describe_model(detector),
        }
