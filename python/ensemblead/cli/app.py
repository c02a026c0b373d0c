"""The typer application: the commands, and what is common to all."""

from __future__ import annotations

from typing import Annotated

import typer

from ensemblead.cli import demo, evaluate, fit, info, predict
from ensemblead.cli.console import guarded, report_error, show_tracebacks
from ensemblead.common.errors import EnsembleADError
from ensemblead.kernels.build import __version__

_EPILOG = (
    "Exit codes: 0 done; 2 bad input (options, files, images); 1 anything else that went wrong "
    "(weights that cannot be had, a damaged model, a full disk); 130 interrupted."
)

app = typer.Typer(
    name="ensemblead",
    help="Visual anomaly detection with memory-bank ensembles.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _command in (
    ("fit", fit.command),
    ("predict", predict.command),
    ("evaluate", evaluate.command),
    ("demo", demo.command),
    ("info", info.command),
):
    app.command(_name)(guarded(_command))


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
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors, as ENSEMBLEAD_TRACEBACK=1 does.")
    ] = False,
) -> None:
    """Visual anomaly detection with memory-bank ensembles."""
    show_tracebacks(debug)


def run() -> None:
    """Runs the application."""
    try:
        app()
    except (KeyboardInterrupt, EnsembleADError, OSError, ValueError, TypeError) as error:
        raise SystemExit(report_error(error)) from None
