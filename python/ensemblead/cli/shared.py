"""Options that several commands take, with the same words."""

from __future__ import annotations

from typing import Annotated

import typer

MovedWeights = Annotated[
    list[str] | None, typer.Option("--weights", help="[I.]PATH: where the networks' weights are now.")
]
FittedDevice = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda; as at the fit if absent.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
]
Engine = Annotated[
    str | None, typer.Option("--engine", help="torch, openvino, cuda-graph, auto; as in the model if absent.")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="float32, bfloat16, float16, int8; as in the model if absent."),
]
MissingMasks = Annotated[
    str, typer.Option("--missing-masks", help="raise, or exclude such images from the pixel metrics.")
]
Bootstrap = Annotated[
    int, typer.Option("--bootstrap", help="Replicates for the confidence intervals; 0 for none.")
]
BootstrapSeed = Annotated[int, typer.Option("--seed", help="Of the bootstrap.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON summary.")]
