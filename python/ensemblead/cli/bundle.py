"""`ensemblead bundle`: a model and all that runs it in one folder, for machines without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ensemblead.cli.bars import Bars
from ensemblead.cli.console import Clock, print_json, reported_warnings
from ensemblead.cli.models import load_model
from ensemblead.cli.shared import Json, MovedWeights
from ensemblead.common.extras import require
from ensemblead.common.files import valid_text


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder that fit wrote.")],
    wheels: Annotated[
        Path,
        typer.Option("--wheels", metavar="DIR", help="Wheels of ensemblead and of all that it needs."),
    ],
    image: Annotated[
        Path,
        typer.Option("--image", help="A photograph, best of a defect: its score proves the installation."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write, which must not exist.")],
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform",
            help="Of the machines, as wheels name it: manylinux_2_28_x86_64, win_amd64; this one if absent.",
        ),
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="Of the machines: 3.12; this one if absent.")
    ] = None,
    extras: Annotated[
        list[str] | None,
        typer.Option("--extra", help="Of ensemblead, to be installed there beside predict. Repeat it."),
    ] = None,
    weights: MovedWeights = None,
    as_json: Json = False,
) -> None:
    """Put a model, the wheels that run it, and scripts that install and check it into one folder.

    Copy the folder to a machine without a network and run install.sh (install.bat) there. Wheels that DIR
    lacks are named, with the pip commands that fetch them.
    """
    clock = Clock()
    with reported_warnings() as warned, Bars() as bars:
        require("torch", "ensemblead bundle")
        from ensemblead.deploy.bundle import write_bundle
        from ensemblead.deploy.checking import called
        from ensemblead.deploy.wheels import MissingWheelsError, Target

        target = _target(Target.here(), python, platform)
        bars.step("loading the model")
        detector = load_model(model, weights or (), device="cpu")
        try:
            written = write_bundle(
                detector,
                wheels,
                out,
                image=image,
                target=target,
                extras=extras or (),
                progress=bars,
            )
        except MissingWheelsError as error:
            print("\n".join(error.commands), file=sys.stderr)
            raise
    files = [path for path in out.rglob("*") if path.is_file()]
    summary: dict[str, Any] = {
        "bundle": str(out),
        "bytes": sum(path.stat().st_size for path in files),
        "wheels": len(list((out / "wheels").iterdir())),
        **{name: written[name] for name in ("python", "platform", "score", "is_anomalous", "tolerance")},
        "seconds": round(clock(), 3),
        "warnings": warned,
    }
    if as_json:
        print_json(summary)
        return
    Console(highlight=False, soft_wrap=True, markup=False).print(
        valid_text(
            f"bundle: {out}, {summary['bytes'] / 1e6:,.0f} MB, {summary['wheels']} wheels for Python "
            f"{summary['python']} on {summary['platform']}\n{image.name} has the score "
            f"{summary['score']:.6g} ({called(summary['is_anomalous'])})\n"
            f"On the other machine: sh {out.name}/install.sh"
        )
    )


def _target(here: Any, python: str | None, platform: str | None) -> Any:
    """The machine that the options name, the rest as `here`."""
    version = here.python
    if python is not None:
        numbers = python.split(".")
        if len(numbers) != 2 or not all(one.isdecimal() for one in numbers):
            raise ValueError(f"python must be as 3.12, got {python!r}")
        version = (int(numbers[0]), int(numbers[1]))
    return type(here)(version, platform or here.platform)
