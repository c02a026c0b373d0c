"""A saved model, images, and the model anew: what `calibrate`, `extend` and `quantize` have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import check_outside_model, describe_model, load_model
from ensemblead.common.errors import EnsembleADError
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.images import ImageList, ImageSource

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")]
Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGES...", help="Folders, images, or patterns such as 'a/*.png'.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Write the model to this folder, and leave MODEL as it is.")
]
Weights = Annotated[
    list[str] | None, typer.Option("--weights", help="[I.]PATH: where the networks' weights are from now on.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, from now on; as at the fit if absent.")
]


@dataclass
class Update:
    """One call of a command; `execute` does it and returns its summary.

    Attributes:
        update: does the work on the loaded detector, given the images (None where there are none), how to
            take errors, and progress. What it returns goes into the summary; with "saved": False the model
            is not written.
        takes_missed: whether marks may have missed defects alone.
        lists: filled with the lists among the images.
    """

    model: Path
    images: Sequence[Path]
    out: Path | None
    weights: Sequence[str]
    device: str | None
    skip_unreadable: bool
    update: Callable[[Detector, ImageSource | None, Any, Bars], dict[str, Any] | None]
    takes_missed: bool = False
    lists: list[ImageList] = field(default_factory=list)

    def execute(self, bars: Bars) -> dict[str, Any]:
        require("torch", "ensemblead calibrate, extend and quantize")
        from ensemblead.images import check_output_outside

        clock = Clock()
        target = self._target()
        source = self._opened()
        if source is not None:
            check_output_outside(target, source.folders)
        bars.step("loading the model")
        detector = load_model(self.model, self.weights, self.device)
        before, was = float(detector.threshold_), describe_model(detector)
        loaded = detector._loaded
        errors = "skip" if self.skip_unreadable else "raise"
        found = {"saved": True, **(self.update(detector, source, errors, bars) or {})}
        if found["saved"]:
            bars.step("saving")
            if self.out is None:
                self._check_unchanged(loaded)
            detector.save(target)
        skipped = list(detector.skipped_) if source is not None else []
        return {
            "model": str(target),
            "images": 0 if source is None else len(source) - len(skipped),
            "ignored_files": 0 if source is None else source.ignored,
            "ignored": "" if source is None else source.describe_ignored(),
            "skipped": [{"path": image.path, "reason": image.reason} for image in skipped],
            "seconds": round(clock(), 3),
            "threshold_before": before,
            "threshold_before_is": was["false_alarm_rate_is"],
            **found,
            **describe_model(detector),
        }

    def _target(self) -> Path:
        from ensemblead.store import MANIFEST, check_target

        if self.out is None:
            return self.model
        check_target(self.out)
        if (self.out / MANIFEST).exists():
            raise ValueError(f"out: there is a model in {self.out} already; give another folder")
        check_outside_model(self.out, self.model)
        return self.out

    def _opened(self) -> ImageSource | None:
        """The images; None where none are given. Lists stand for the images that they name."""
        from ensemblead.images import LIST_SUFFIXES, check_normal_folder, listed_images, read_list

        chosen: list[Path] = []
        for path in self.images:
            if path.is_dir():
                check_normal_folder(path)
            if path.suffix.lower() not in LIST_SUFFIXES or path.is_dir():
                chosen.append(path)
                continue
            listed = read_list(path)
            if not listed.entries and not (self.takes_missed and listed.missed):
                marked = f": {len(listed.missed)} missed defects, no false alarm" if listed.missed else ""
                raise ValueError(f"{path} names no images of good parts{marked}")
            self.lists.append(listed)
            chosen += map(Path, listed_images(listed))
        return chosen_images(chosen)[0] if chosen else None

    def _check_unchanged(self, loaded: str | None) -> None:
        """Refuse to write over what another process has written since."""
        from ensemblead.store import read_folder

        there = read_folder(self.model)
        if there is None or there.checksum != loaded:
            raise EnsembleADError(
                f"another process has replaced {self.model} meanwhile; it was left alone, and nothing is "
                "written: run again"
            )


def show_update(summary: dict[str, Any]) -> Console:
    """Print what happened in a line or two; the console, for more."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    is_users = summary["threshold_origin"] == "user"
    by = "set by the user" if is_users else f"by {summary['threshold_images']} images"
    images = f"{summary['images']} images in {summary['seconds']:.1f} s; " if summary["images"] else ""
    console.print(
        f"{images}threshold {summary['threshold']:.4g} {by}, before {summary['threshold_before']:.4g}; false "
        f"alarms {summary['false_alarm_rate']:.2g} ({summary['false_alarm_rate_is']})\n"
        + (f"model: {valid_text(summary['model'])}" if summary["saved"] else "the model was left as it is")
    )
    return console
