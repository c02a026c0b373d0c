"""`ensemblead monitor`: a saved model, the images of a line, and whether they have changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import DRIFTED, Clock, print_json, reported_warnings
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import load_model
from ensemblead.cli.shared import FittedDevice, Json, MovedWeights, SkipUnreadable
from ensemblead.common.errors import EnsembleADError
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.monitoring import DriftMonitor, DriftState


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    state: Annotated[Path, typer.Option("--state", help="The folder of the monitor; it goes on from there.")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGES...",
            show_default=False,
            help="New images in the order in which they were made: folders, images, or patterns.",
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate",
            metavar="GOOD",
            help="Begin with these fresh images of good parts, 40 at least. Repeat it for more folders.",
        ),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Forget the images observed and the alarm; calibration stays.")
    ] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page of what was found.")] = None,
    streams: Annotated[
        list[str] | None,
        typer.Option("--stream", help="With --calibrate: score, embedding or regions; all if absent."),
    ] = None,
    regions: Annotated[
        int | None, typer.Option("--regions", help="With --calibrate: cells per side of the image; 4.")
    ] = None,
    false_alarm_probability: Annotated[
        float | None,
        typer.Option(help="With --calibrate: of ever raising an alarm without a change; 0.01."),
    ] = None,
    mean_run_length: Annotated[
        int | None,
        typer.Option(help="With --calibrate, instead: images from one false alarm to the next, on average."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="With --calibrate: settles ties; 0.")] = None,
    fail_on_alarm: Annotated[
        bool, typer.Option("--fail-on-alarm", help=f"End with exit code {DRIFTED} if there is an alarm.")
    ] = False,
    weights: MovedWeights = None,
    device: FittedDevice = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Say whether the images of a line have changed, in what, where, since when, and what to do.

    Give good images once, with --calibrate, and then new ones whenever there are some. Images that were
    observed before are left out, so that a folder that grows may be given again. The state is written after
    every batch. One process at a time may use it.
    """
    given = {
        "streams": streams or None,
        "regions": regions,
        "false_alarm_probability": false_alarm_probability,
        "mean_run_length": mean_run_length,
        "seed": seed,
    }
    with reported_warnings() as warned, Bars() as bars:
        options = {name: value for name, value in given.items() if value is not None}
        run = _Run(model, images or (), state, calibrate or (), reset, html, options, skip_unreadable)
        found, summary = run.execute(weights or (), device, bars)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        Console(highlight=False, soft_wrap=True, markup=False).print(valid_text(_text(found)))
    if fail_on_alarm and found.alarm:
        raise typer.Exit(DRIFTED)


@dataclass
class _Run:
    """One call of the command."""

    model: Path
    images: Sequence[Path]
    state: Path
    calibrate: Sequence[Path]
    reset: bool
    html: Path | None
    options: dict[str, Any]
    skip_unreadable: bool
    # The state's manifest as this run knows it, see `_stamp`; None while there is none.
    _written: tuple[int, int] | None = None

    def execute(
        self, weights: Sequence[str], device: str | None, bars: Bars
    ) -> tuple[DriftState, dict[str, Any]]:
        require("torch", "ensemblead monitor")
        from ensemblead.images import check_output_outside
        from ensemblead.store import check_target

        clock = Clock()
        check_target(self.state)
        self._check_arguments()
        sources = [chosen_images(paths)[0] if paths else None for paths in (self.calibrate, self.images)]
        for source in sources:
            if source is not None:
                check_output_outside(self.state, source.folders)
        bars.step("loading the model")
        detector = load_model(self.model, weights, device)
        errors = "skip" if self.skip_unreadable else "raise"
        monitor = self._monitor(detector)
        good, new = sources
        if good is not None:
            monitor.calibrate(good, errors=errors, progress=bars)
            self._save(monitor)
        elif self.reset:
            self._save(monitor.reset())
        before = monitor.state_.images
        if new is not None:
            for _ in monitor.observe_batches(new, errors=errors, progress=bars):
                self._save(monitor)
        found = monitor.state_
        if self.html is not None:
            self._write_page(monitor, bars)
        summary = {
            "state": str(self.state),
            "new_images": found.images - before,
            "calibration_images": len(monitor.calibrated_.score),
            "html": None if self.html is None else str(self.html),
            "seconds": round(clock(), 3),
            **found.as_dict(),
        }
        return found, summary

    def _check_arguments(self) -> None:
        if not (self.images or self.calibrate or self.reset or self.html):
            raise ValueError("images: give new images, or --calibrate with good ones")
        if self.options and not self.calibrate:
            name = next(iter(self.options)).replace("_", "-")
            raise ValueError(f"{name} is settled by the calibration: give it with --calibrate")
        if self.calibrate and self.state.exists() and any(self.state.iterdir()):
            raise ValueError(
                f"state: {self.state} holds a monitor or model already: give another folder, or remove it"
            )
        if self.options.keys() >= {"false_alarm_probability", "mean_run_length"}:
            raise ValueError("mean_run_length stands in place of false_alarm_probability; give one of them")
        places = [("state", self.state, "model", self.model)]
        if self.html is not None:
            if self.html.is_dir():
                raise ValueError(f"html must be a file, got the folder {self.html}")
            places += [("html", self.html, "model", self.model), ("html", self.html, "state", self.state)]
        for name, path, what, folder in places:
            if path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name} {path} lies inside the {what} {folder}; choose one outside of it")

    def _monitor(self, detector: Detector) -> DriftMonitor:
        from ensemblead.ensembles.loading import load
        from ensemblead.monitoring import DriftMonitor

        if self.calibrate:
            return DriftMonitor(detector, **self.options)
        if not self.state.exists():
            raise FileNotFoundError(
                f"state: there is no monitor at {self.state}: give --calibrate with good images first"
            )
        self._written = _stamp(self.state)
        monitor: DriftMonitor = load(self.state, detector=detector)
        return monitor

    def _save(self, monitor: DriftMonitor) -> None:
        """Refuse to write over what another process has written since."""
        if _stamp(self.state) != self._written:
            raise EnsembleADError(
                f"state: another process has written {self.state} meanwhile; run again when it has ended"
            )
        monitor.save(self.state)
        self._written = _stamp(self.state)

    def _write_page(self, monitor: DriftMonitor, bars: Bars) -> None:
        from ensemblead.report.drift_page import write_drift_page

        assert self.html is not None
        bars.step("writing the page")
        write_drift_page(monitor, self.html, note=f"Model {self.model}, state {self.state}.")


def _stamp(state: Path) -> tuple[int, int] | None:
    """What changes with every save: a save writes a new manifest."""
    from ensemblead.store import MANIFEST

    try:
        found = (state / MANIFEST).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _text(state: DriftState) -> str:
    lines = [
        f"{'ALARM' if state.alarm else 'no alarm'}: {state.images} images observed, evidence "
        f"10^{state.total:.1f} (an alarm at 10^{state.level:.3g})",
        "evidence: " + ", ".join(f"{name} 10^{value:.1f}" for name, value in state.evidence.items()),
    ]
    if state.since is not None:
        lines.append(f"changed since about image {state.since} ({state.since_path or 'no file'})")
    for top, left, bottom, right in state.moved:
        lines.append(f"changed in rows {top:.0f} to {bottom:.0f}, columns {left:.0f} to {right:.0f}")
    rate = state.alarm_rate
    if rate.images:
        lines.append(
            f"anomalous: {rate.anomalous} of {rate.images} (95 % interval {rate.low:.3f} to "
            f"{rate.high:.3f}), " + ("no rate stated" if rate.stated is None else f"stated {rate.stated:.3g}")
        )
    if state.repeated:
        lines.append(f"{state.repeated} images left out: observed before, or learned by the model")
    return "\n".join([*lines, f"advice: {state.advice}. {state.advice_text}"])
