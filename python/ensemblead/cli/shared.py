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
Json = Annotated[bool, typer.Option("--json", help="Print a JSON summary.")]
