"""`ensemblead watch`: a saved model and a folder in which images appear."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.models import check_outside_model, load_identified
from ensemblead.cli.shared import FittedDevice, Json, MovedWeights
from ensemblead.common.extras import require
from ensemblead.common.files import NAME_BYTES, as_file_name, valid_text

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.service.scoring import Scored
    from ensemblead.service.watching import Draw

_SECONDS_BETWEEN_LINES = 30.0


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder in which images appear.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to, on a local disk.")],
    once: Annotated[
        bool, typer.Option("--once", help="End when all images that are there have a result.")
    ] = False,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Pass over images that are there when the first watch begins.")
    ] = False,
    heat_maps: Annotated[
        bool, typer.Option("--heat-maps", help="Write heat maps over the images (PNG).")
    ] = False,
    settle: Annotated[
        float, typer.Option("--settle", help="Seconds for which a file must stay as it is before it is read.")
    ] = 0.5,
    give_up: Annotated[
        float,
        typer.Option("--give-up", help="Seconds after which a file that cannot be read counts as failed."),
    ] = 10.0,
    poll: Annotated[
        float | None,
        typer.Option(
            "--poll",
            metavar="SECONDS",
            help="Look at the folder so often, for network shares that send no events.",
        ),
    ] = None,
    weights: MovedWeights = None,
    device: FittedDevice = None,
    as_json: Json = False,
) -> None:
    """Score every image that appears in a folder, once, and keep the results.

    Results go to OUT/results.sqlite, and the same as JSON lines to OUT/results.jsonl, for programs that
    follow. A file that is written anew, renamed or moved counts as a new image. The same command goes on
    where it was stopped. Ctrl-C and SIGTERM finish the batch under way.
    """
    clock, stop = Clock(), threading.Event()
    with reported_warnings(), Bars() as bars:
        require("torch", "ensemblead watch")
        from ensemblead.images import BitDepthWarning, check_output_outside
        from ensemblead.images.folders import scan_folder
        from ensemblead.service.results import Results
        from ensemblead.service.scoring import check_servable
        from ensemblead.service.watching import Watch, WatchSettings

        settings = WatchSettings(settle=settle, give_up=give_up, poll=poll, new_only=new_only, once=once)
        if not folder.is_dir():
            raise FileNotFoundError(f"folder: there is no folder {folder}")
        folder = folder.resolve()
        check_output_outside(out, scan_folder(folder).folders)
        check_outside_model(out, model)
        if not once and poll is None:
            require("watchfiles", "watching a folder")
        bars.step("loading the model")
        detector, digest = load_identified(model, weights or (), device)
        check_servable(detector)
        draw = _heat_maps(detector, out) if heat_maps else None
        warnings.simplefilter("ignore", BitDepthWarning)  # it would be one for every image
        with Results(out, str(folder)) as results, _ended_by_signals(stop):
            before = results.counts()
            watch = Watch(
                detector, folder, results, settings, model=digest, draw=draw, report=_Line(bars, folder)
            )
            watch.run(stop)
    counts = {name: watch.counts[name] - before[name] for name in before}
    if as_json:
        print_json({"results": str(out / "results.sqlite"), **counts, "seconds": round(clock(), 3)})
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(valid_text(f"{_text(counts)} in {clock():.1f} s\n{out / 'results.jsonl'}"))


def _text(counts: dict[str, int]) -> str:
    return f"{counts['images']} images, {counts['anomalous']} anomalous, {counts['failed']} failed"


class _Line:
    """The counts in the line of `bars`; where stderr is no terminal, a line every half minute."""

    def __init__(self, bars: Bars, folder: Path) -> None:
        self._bars, self._folder = bars, valid_text(str(folder))
        self._said, self._at = "", 0.0

    def __call__(self, counts: dict[str, int]) -> None:
        text = f"{_text(counts)}, {counts['waiting']} waiting"
        if text == self._said:
            return
        self._bars.step(f"watching {self._folder}: {text}")
        if not sys.stderr.isatty():
            if time.monotonic() - self._at < _SECONDS_BETWEEN_LINES and self._at:
                return
            print(f"ensemblead: watching {self._folder}: {text}", file=sys.stderr, flush=True)
            self._at = time.monotonic()
        self._said = text


@contextmanager
def _ended_by_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; a second one ends the process as usual."""
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        for one, handler in before.items():
            signal.signal(one, handler)
        stop.set()  # last: a second signal in the middle of it must not come here and wait for its lock

    if threading.current_thread() is threading.main_thread():
        before |= {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
        for one in before:
            signal.signal(one, end)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _heat_maps(detector: Detector, out: Path) -> Draw:
    """Writes heat maps named as the images, `OUT/heat_maps/FOLDER/NAME.png.png`; the names are relative to
    OUT.
    """
    from ensemblead.cli.pictures import save_png
    from ensemblead.cli.writing import Scored as Drawn
    from ensemblead.cli.writing import captioned_heat_map
    from ensemblead.evaluation.gallery import color_scale
    from ensemblead.images import read_image

    colors = color_scale(detector)

    def draw(path: str, place: str, scored: Scored) -> str:
        *above, name = Path(place).parts
        folder = os.path.join("heat_maps", *map(as_file_name, above))
        picture = os.path.join(folder, f"{as_file_name(name, limit=NAME_BYTES - len('.png'))}.png")
        image = np.require(read_image(path, bits=detector.bits_), requirements="W")
        if image.shape[:2] == scored.size:  # else it has been written anew meanwhile, and is scored again
            drawn = Drawn(path, Path(place), scored.anomaly_map, scored.score, scored.is_anomalous, None)
            canvas = captioned_heat_map(drawn, image, detector.geometry, colors, detector.threshold_)
            save_png(out / picture, canvas)
        return picture

    return draw
