"""`ensemblead calibrate`: the threshold of a saved model, by fresh good images and known defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json, reported_warnings
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.cli.update import Device, Model, Out, Update, Weights, show_update
from ensemblead.common.files import valid_text
from ensemblead.common.validation import finite_number, positive_number

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.evaluation import TradeOff, TradeOffPoint
    from ensemblead.images import ImageSource


def command(
    model: Model,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGES]...",
            help="Fresh images of good parts: folders, images, patterns such as 'a/*.png', or a .txt that "
            "lists them. Without them the statistics stay as they are.",
        ),
    ] = None,
    out: Out = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option("--false-alarm-rate", help="Of good images; 0.01 if absent.")
    ] = None,
    defects: Annotated[
        list[Path] | None,
        typer.Option(
            "--defects", help="Images of known defects: weigh misses against false alarms. Repeat it."
        ),
    ] = None,
    miss_cost: Annotated[
        float | None,
        typer.Option("--miss-cost", help="How often a miss counts, against a false alarm; 1 if absent."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Take this threshold, whatever the images say.")
    ] = None,
    take_proposal: Annotated[
        bool, typer.Option("--take-proposal", help="With --defects: take the threshold that is proposed.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="With --defects: a page of misses against false alarms.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="With --defects: the same at every threshold, as a table.")
    ] = None,
    weights: Weights = None,
    device: Device = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Take a model's threshold from fresh images of good parts, which it has not learned.

    A fresh good image then scores above the threshold with at most the given probability. 99 images guarantee
    0.01, and 9 images 0.1. With --defects a threshold is proposed, which has no guarantee: it has the least
    sum of the rates of false alarms and of misses, and is taken with --take-proposal alone. MODEL is replaced
    unless --out names another folder.
    """
    run = _Run(defects or (), false_alarm_rate, miss_cost, threshold, take_proposal, html, csv)
    run.check(images or (), out)
    update = Update(model, images or (), out, weights or (), device, skip_unreadable, run.apply)
    run.lists, run.model = update.lists, model
    with reported_warnings() as warned, Bars() as bars:
        summary = update.execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    console = show_update(summary)
    console.print(summary["guarantee"])
    if run.found is not None:
        _show(console, run.found, summary["trade_off"], html)


@dataclass
class _Run:
    """What one call does with the loaded model."""

    defects: Sequence[Path]
    false_alarm_rate: float | None
    miss_cost: float | None
    threshold: float | None
    take_proposal: bool
    html: Path | None
    csv: Path | None
    model: Path = Path()
    lists: Sequence[Any] = ()
    found: TradeOff | None = None

    def check(self, images: Sequence[Path], out: Path | None) -> None:
        """Refuse, before any work, options that do not go together."""
        if not (images or self.defects or self.threshold is not None):
            raise ValueError("images: give fresh images of good parts, --defects, or a --threshold")
        if self.false_alarm_rate is not None and not images:
            raise ValueError("false-alarm-rate goes with images of good parts")
        if self.threshold is not None:
            finite_number("threshold", self.threshold)
            if self.take_proposal:
                raise ValueError("threshold and take-proposal are two thresholds: give one of them")
        if self.miss_cost is not None:
            positive_number("miss_cost", self.miss_cost)
        for name in ("miss_cost", "take_proposal", "html", "csv"):
            if getattr(self, name) and not self.defects:
                raise ValueError(f"{name.replace('_', '-')} goes with --defects FOLDER")
        if out is not None and not (images or self.take_proposal or self.threshold is not None):
            raise ValueError("out: nothing is changed without images, --take-proposal or --threshold")

    def apply(
        self, detector: Detector, source: ImageSource | None, errors: Any, bars: Bars
    ) -> dict[str, Any]:
        from ensemblead.calibration import DEFAULT_RATE

        if any(one.is_marks for one in self.lists):
            raise ValueError(
                "images: false alarms are no fair sample of good parts, so that they give no threshold; "
                "`extend` learns them"
            )
        bad = self._opened_defects(source)
        if source is not None:
            rate = DEFAULT_RATE if self.false_alarm_rate is None else self.false_alarm_rate
            detector.calibrate(
                source, rate, errors=errors, progress=lambda _, done, total: bars("calibrating", done, total)
            )
        summary: dict[str, Any] = {"saved": source is not None, "trade_off": None}
        skipped = list(detector.skipped_) if source is not None else []
        if bad is not None:
            self.found = self._weigh(detector, bad, errors, bars)
            left_out = [{"path": image.path, "reason": image.reason} for image in detector.skipped_]
            summary["trade_off"] = {**_document(self.found, self.take_proposal), "skipped": left_out}
        detector.skipped_ = skipped
        chosen = self.found.proposal.threshold if self.take_proposal and self.found else self.threshold
        if chosen is not None:
            detector.threshold_ = chosen
            summary["saved"] = True
        return {**summary, "guarantee": _guarantee(detector)}

    def _opened_defects(self, source: ImageSource | None) -> ImageSource | None:
        from ensemblead.images import check_defect_folder, check_output_outside, equal_files

        if not self.defects:
            return None
        for path in self.defects:
            check_defect_folder(path)
        bad, _ = chosen_images(self.defects)
        for name, file in (("html", self.html), ("csv", self.csv)):
            if file is not None and (file.is_dir() or file.resolve().is_relative_to(self.model.resolve())):
                raise ValueError(f"{name} must be a file outside of the model {self.model}, got {file}")
            if file is not None:
                check_output_outside(file.parent, bad.folders)
        if source is not None:
            both = equal_files(source, bad)
            if both:
                raise ValueError(
                    f"defects: {len(both)} of them are among the images of good parts as well, as {both[0]}"
                )
        return bad

    def _weigh(self, detector: Detector, bad: ImageSource, errors: Any, bars: Bars) -> TradeOff:
        from ensemblead.evaluation import trade_off
        from ensemblead.report.trade_off_page import write_trade_off_csv, write_trade_off_page

        cost = 1.0 if self.miss_cost is None else self.miss_cost
        found = trade_off(detector, bad, miss_cost=cost, errors=errors, progress=bars)
        if self.csv is not None:
            write_trade_off_csv(found, self.csv)
        if self.html is not None:
            write_trade_off_page(found, self.html, note=f"Model {self.model}.")
        return found


def _guarantee(detector: Any) -> str:
    """What is known of false alarms at the threshold, as the theorem allows to say it."""
    known = detector.calibration_
    count, rate = len(known.scores), known.false_alarm_rate
    if known.is_guaranteed:
        weighted = hasattr(detector, "members")
        more = ", up to terms of order 1/n: the weights of the members come from the same images"
        return (
            "guarantee: a fresh good image of the same source scores above the threshold with a probability "
            f"of at most {rate:.3g} (split conformal prediction, {count} images){more * weighted}"
        )
    if not known.has_statistics:
        return "no guarantee: the model has no statistics of good images; give fresh ones"
    return f"no guarantee: by {count} good images about {rate:.2g} of such images lie above the threshold"


def _document(found: TradeOff, is_taken: bool) -> dict[str, Any]:
    return {
        "normal": len(found.normal),
        "defective": len(found.defective),
        "miss_cost": found.miss_cost,
        "confidence": found.confidence,
        "rule": found.rule(),
        "proposal_taken": is_taken,
        "points": {name: asdict(point) for name, point in found.notable().items()},
    }


def _show(console: Console, found: TradeOff, document: dict[str, Any], html: Path | None) -> None:
    table = Table("", "threshold", "false alarms", "misses", box=None, pad_edge=False)
    for name, point in found.notable().items():
        table.add_row(name, f"{point.threshold:.4g}", *_cells(point, found))
    console.print()
    console.print(table)
    proposal = found.proposal.threshold
    taken = "it was taken" if document["proposal_taken"] else "not taken: --take-proposal takes it"
    console.print(
        f"{found.confidence:.0%} intervals. Proposed: {proposal:.6g}, {found.rule()}. It was chosen on these "
        f"images, so expect more errors on others; it has no guarantee; {taken}"
    )
    if html is not None:
        console.print(f"page: {valid_text(str(html))}")


def _cells(point: TradeOffPoint, found: TradeOff) -> tuple[str, str]:
    counted = (
        (point.false_alarms, len(found.normal), point.false_alarm_interval),
        (point.misses, len(found.defective), point.miss_interval),
    )
    first, second = (f"{k} of {n} ({low:.1%} to {high:.1%})" for k, n, (low, high) in counted)
    return first, second
