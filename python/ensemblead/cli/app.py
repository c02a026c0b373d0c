"""The typer application: options of all commands, and how errors reach the user."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ensemblead.cli import info
from ensemblead.errors import EnsembleADError
from ensemblead.kernels.build import __version__

app = typer.Typer(
    name="ensemblead",
    help="Visual anomaly detection with memory-bank ensembles.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("info")(info.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ensemblead {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Visual anomaly detection with memory-bank ensembles."""


def run() -> None:
    """Runs the application.

    What the user can put right is told in one line; ENSEMBLEAD_TRACEBACK=1 shows where it comes from.
    """
    try:
        app()
    except (EnsembleADError, OSError, ValueError) as error:
        if os.environ.get("ENSEMBLEAD_TRACEBACK") == "1":
            raise
        print(f"ensemblead: {error}", file=sys.stderr)
        raise SystemExit(1) from None
