"""`ensemblead convert`: models of other tools become models of this one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, guarded, print_json, reported_warnings
from ensemblead.cli.given_images import chosen_images
from ensemblead.cli.models import describe_learned, describe_model, moved_weights
from ensemblead.cli.options import typed_size
from ensemblead.cli.shared import Json
from ensemblead.cli.unknown import Command, Group
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Make models of those that patchcore-inspection and anomalib 2 have fitted.",
)

_STAGES = {"verify": "comparing scores", "calibrate": "calibrating"}
_Out = Annotated[Path, typer.Option("--out", help="The folder to write the model to.")]
_Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        metavar="GOOD",
        help="Images of good parts that it was not fitted on, at least one, or folders of them: scores are "
        "compared on them, and the threshold comes from them where the files have none. Repeat it.",
    ),
]
_Rate = Annotated[float | None, typer.Option("--false-alarm-rate", help="Of that threshold; 0.01 if absent.")]
_Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda.")]


@app.command("patchcore-inspection", cls=Command)
@guarded
def patchcore_inspection(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="With patchcore_params.pkl, or Ensemble-1-3_patchcore_params.pkl."
        ),
    ],
    out: _Out,
    images: _Images = None,
    false_alarm_rate: _Rate = None,
    resize: Annotated[
        str | None, typer.Option("--resize", help="Shorter side before the crop, or HxW; 256 for 224 pixels.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="[I.]PATH: weights of the networks; the published ones if absent."),
    ] = None,
    fusion: Annotated[
        str, typer.Option("--fusion", help="Of an ensemble: minmax, mean, calibrated, max or rank.")
    ] = "minmax",
    include_backbone: Annotated[
        bool, typer.Option("--include-backbone", help="Store the networks' weights with the model.")
    ] = False,
    device: _Device = "auto",
    as_json: Json = False,
) -> None:
    """Convert a model folder of the reference implementation of PatchCore, or an ensemble of them.

    Its pickled parameters are read without running anything. The default fusion, minmax, is that tool's: it
    scales over the set that evaluate is given. Single images need another one, and --images.
    """
    values: dict[str, Any] = {"weights": moved_weights(weights or ()) or "default", "fusion": fusion}
    values |= {"include_backbone": include_backbone, "resize": resize, "device": device}
    _run("patchcore-inspection", folder, out, images, false_alarm_rate, values, as_json)


@app.command("anomalib", cls=Command)
@guarded
def anomalib(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .ckpt of Lightning, or a saved state dict.")
    ],
    out: _Out,
    images: _Images = None,
    false_alarm_rate: _Rate = None,
    backbone: Annotated[str | None, typer.Option("-b", "--backbone", help="Of a bare state dict.")] = None,
    layers: Annotated[
        list[str] | None, typer.Option("-le", "--layers", help="Of a bare state dict. Repeat it.")
    ] = None,
    num_neighbors: Annotated[
        int | None, typer.Option("--num-neighbors", help="Of a bare state dict of PatchCore; 9 if absent.")
    ] = None,
    resize: Annotated[
        str | None, typer.Option("--resize", help="N or HxW where the file has none; 256x256 if absent.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option("--image-size", help="Centre crop, N or HxW, where the file states none.")
    ] = None,
    device: _Device = "auto",
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of anomalib 2: PatchCore or PaDiM.

    It is read without running anything. Its network's weights and its threshold come along.
    """
    values: dict[str, Any] = {"backbone": backbone, "layers": layers, "num_neighbors": num_neighbors}
    values |= {"resize": resize, "image_size": image_size, "device": device}
    _run("anomalib", checkpoint, out, images, false_alarm_rate, values, as_json)


def _run(
    tool: str,
    source: Path,
    out: Path,
    images: list[Path] | None,
    rate: float | None,
    values: Mapping[str, Any],
    as_json: bool,
) -> None:
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead convert")
        from ensemblead.calibration import DEFAULT_RATE
        from ensemblead.conversion import convert
        from ensemblead.images import check_normal_folder

        clock, given = Clock(), dict(values)
        if rate is not None and images is None:
            raise ValueError("--false-alarm-rate is of the threshold that --images gives")
        for name in ("resize", "image_size"):
            if given.get(name) is not None:
                given[name] = typed_size(name, given[name])
        for path in images or ():
            if path.is_dir():
                check_normal_folder(path)
        given["images"] = None if images is None else chosen_images(images)[0]
        given["false_alarm_rate"] = DEFAULT_RATE if rate is None else rate
        made = convert(
            tool,
            source,
            out,
            progress=lambda stage, done, total: bars(_STAGES.get(stage, stage), done, total),
            **given,
        )
        summary = {
            "model": str(out),
            "seconds": round(clock(), 3),
            "verified_images": made.verified_images,
            "largest_difference": made.largest_difference,
            "notes": list(made.notes),
            **describe_model(made.detector),
        }
    if as_json:
        print_json({**summary, "warnings": warned})
        return
    lines = [
        f"{one['method']} {one['backbone']} ({', '.join(one['layers'])}): {describe_learned(one)}"
        for one in summary["members"]
    ]
    lines.append(
        f"verified on {made.verified_images} images: scores and maps are those of {tool}'s definition within "
        f"{made.largest_difference:.1g}"
    )
    lines += [f"note: {note}" for note in made.notes]
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print("\n".join([*lines, f"model: {valid_text(str(out))}"]))
