"""`ensemblead export` and `ensemblead verify`: a model as one graph for other programs, proven on images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import load_model
from ensemblead.cli.shared import Json, MovedWeights
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text
from ensemblead.common.validation import pair

if TYPE_CHECKING:
    from ensemblead.detectors.exporting import ExportReport

_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")]
_Tolerance = Annotated[
    float | None,
    typer.Option("--tolerance", help="How far scores and maps may move, relative to themselves."),
]
_Changes = Annotated[
    int, typer.Option("--allow-flag-changes", help="How many of the images may be called otherwise.", min=0)
]


def export(
    model: _Model,
    out: Annotated[Path, typer.Option("--out", help="Write the graph to this folder, which must not exist.")],
    images: Annotated[
        list[Path],
        typer.Option("--verify", metavar="IMAGES", help="10 images at least, good and defective. Repeat it."),
    ],
    format: Annotated[str, typer.Option("--format", help="openvino or onnx.")] = "openvino",
    precision: Annotated[
        str, typer.Option("--precision", help="float32, or for openvino bfloat16 or int8.")
    ] = "float32",
    input: Annotated[
        str, typer.Option("--input", help="image: the graph resizes images; resized: its caller does.")
    ] = "image",
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="N or HxW of the images; that of --verify if absent.")
    ] = None,
    tolerance: _Tolerance = None,
    allow_flag_changes: _Changes = 0,
    weights: MovedWeights = None,
    as_json: Json = False,
) -> None:
    """Write a model as one graph, from images to scores, maps and verdicts, for programs without torch.

    The graph is run on the images first and compared with the model. If a score, a map or a verdict moves too
    far, nothing is written, and the worst image is named.
    """
    from ensemblead.cli.options import typed_size

    clock = Clock()
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead export")
        size = None if image_size is None else pair("image_size", typed_size("image_size", image_size))
        source, _ = chosen_images(images)
        bars.step("loading the model")
        detector = load_model(model, weights or (), device="cpu")
        bars.step("converting")
        report = detector.export(
            out,
            verify=source,
            format=format,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            input=input,  # type: ignore[arg-type]
            image_size=size,
            tolerance=tolerance,
            allow_flag_changes=allow_flag_changes,
            progress=bars,
        )
    _say(report, {"export": str(out), "seconds": round(clock(), 3), "warnings": warned}, as_json)


def verify(
    exported: Annotated[Path, typer.Argument(metavar="EXPORT", help="A folder that export wrote.")],
    model: Annotated[Path, typer.Option("--model", help="The model that it was made of.")],
    images: Annotated[
        list[Path], typer.Option("--images", metavar="IMAGES", help="10 images at least. Repeat it.")
    ],
    tolerance: _Tolerance = None,
    allow_flag_changes: _Changes = 0,
    weights: MovedWeights = None,
    as_json: Json = False,
) -> None:
    """Compare an exported graph with its model, image by image; fails as export does."""
    clock = Clock()
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead verify")
        from ensemblead.deploy.runtime import load_exported
        from ensemblead.deploy.verify import verify as compare

        source, _ = chosen_images(images)
        graph = load_exported(exported)
        bars.step("loading the model")
        detector = load_model(model, weights or (), device="cpu")
        report = compare(
            graph,
            detector,
            source,
            tolerance=tolerance,
            allow_flag_changes=allow_flag_changes,
            progress=bars,
        )
    _say(report, {"export": str(exported), "seconds": round(clock(), 3), "warnings": warned}, as_json)


def _say(report: ExportReport, known: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({**known, **report.summary()})
        return
    Console(highlight=False, soft_wrap=True, markup=False).print(
        f"{valid_text(str(report))}\n{len(report.images)} images in {known['seconds']:.1f} s: scores move by "
        f"up to {report.largest_score_change:.2g}, maps by up to {report.largest_map_change:.2g}, verdicts: "
        f"{report.changed_verdicts} change\nexport: {valid_text(known['export'])}"
    )
