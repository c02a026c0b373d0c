"""`ensemblead quantize`: a saved model, good images, and the model in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import print_json, reported_warnings
from ensemblead.cli.shared import Json, SkipUnreadable
from ensemblead.cli.update import Images, Model, Out, Update, Weights, show_update

if TYPE_CHECKING:
    from ensemblead.detectors import Detector
    from ensemblead.images import ImageSource


def command(
    model: Model,
    images: Images,
    out: Out = None,
    max_images: Annotated[
        int, typer.Option("--max-images", help="Read ranges of values from so many images.", min=1)
    ] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of these images.", min=0)] = 0,
    weights: Weights = None,
    skip_unreadable: SkipUnreadable = False,
    as_json: Json = False,
) -> None:
    """Run a model's networks in int8 from now on, by OpenVINO: several times as fast on a CPU.

    Give images of good parts, those of the fit or others. What was learned stays, and the threshold too;
    scores move by a few per cent. `calibrate` takes a threshold of int8 scores.
    """

    def update(detector: Detector, source: ImageSource | None, errors: Any, bars: Bars) -> None:
        detector.quantize(source, max_images=max_images, seed=seed, errors=errors, progress=bars)

    with reported_warnings() as warned, Bars() as bars:
        summary = Update(model, images, out, weights or (), "cpu", skip_unreadable, update).execute(bars)
    if as_json:
        print_json({**summary, "warnings": warned})
    else:
        show_update(summary)
