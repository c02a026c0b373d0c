"""The typer application: the commands, and the options that all share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ensemblead.cli.benchmark import command as benchmark
from ensemblead.cli.bundle import command as bundle
from ensemblead.cli.calibrate import command as calibrate
from ensemblead.cli.compare import command as compare
from ensemblead.cli.console import guarded, report_error, show_tracebacks
from ensemblead.cli.convert import app as convert
from ensemblead.cli.demo import command as demo
from ensemblead.cli.duplicates import command as duplicates
from ensemblead.cli.evaluate import command as evaluate
from ensemblead.cli.export import export, verify
from ensemblead.cli.extend import command as extend
from ensemblead.cli.fit import command as fit
from ensemblead.cli.fuse import command as fuse
from ensemblead.cli.imports import load_modules
from ensemblead.cli.index import command as index
from ensemblead.cli.info import command as info
from ensemblead.cli.layers import command as layers
from ensemblead.cli.merge import command as merge
from ensemblead.cli.monitor import command as monitor
from ensemblead.cli.predict import command as predict
from ensemblead.cli.quantize import command as quantize
from ensemblead.cli.search import command as search
from ensemblead.cli.serve import command as serve
from ensemblead.cli.shorthands import ShorthandCommand
from ensemblead.cli.unknown import Command, Group
from ensemblead.cli.watch import command as watch
from ensemblead.cli.weights import command as weights
from ensemblead.common.errors import EnsembleADError
from ensemblead.kernels.build import __version__

_EPILOG = (
    "Exit codes: 0 done; 2 bad input (options, files, images); 1 anything else that went wrong "
    "(weights that cannot be had, a damaged model, a full disk); 3 an alarm of monitor "
    "--fail-on-alarm, or a changed verdict of compare --fail-on-change; "
    "130 interrupted."
)
_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="ensemblead",
    cls=Group,
    help="Visual anomaly detection and image search with ensembles.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
)
for _name, _command in (
    ("predict", predict),
    ("merge", merge),
    ("evaluate", evaluate),
    ("calibrate", calibrate),
    ("extend", extend),
    ("compare", compare),
    ("quantize", quantize),
    ("benchmark", benchmark),
    ("export", export),
    ("verify", verify),
    ("bundle", bundle),
    ("monitor", monitor),
    ("watch", watch),
    ("serve", serve),
    ("demo", demo),
    ("info", info),
    ("layers", layers),
    ("index", index),
    ("search", search),
    ("duplicates", duplicates),
    ("weights", weights),
    ("fuse", fuse),
):
    app.command(_name, context_settings=_SETTINGS, cls=Command)(guarded(_command))
app.command("fit", context_settings=_SETTINGS, cls=ShorthandCommand)(guarded(fit))
app.add_typer(convert, name="convert", context_settings=_SETTINGS)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ensemblead {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors, as ENSEMBLEAD_TRACEBACK=1 does.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE.py|MODULE",
            help="Before the command: load a file or a module that registers methods of your own. Repeat it.",
        ),
    ] = None,
) -> None:
    """Visual anomaly detection and image search with ensembles."""
    show_tracebacks(debug)
    load_modules(modules or ())


app.callback()(guarded(options))


def run() -> None:
    """Run the application."""
    try:
        app()
    except (KeyboardInterrupt, EnsembleADError, OSError, ValueError, TypeError) as error:
        raise SystemExit(report_error(error)) from None
