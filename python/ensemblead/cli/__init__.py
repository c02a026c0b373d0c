"""The command line, `ensemblead`: `app.py` holds it together, every command has a file of its own."""

from __future__ import annotations

import sys

from ensemblead.common.errors import MissingExtraError
from ensemblead.common.extras import require
from ensemblead.common.threads import set_thread_defaults

__all__ = ["main"]


def main() -> None:
    """Entry point of the `ensemblead` script. What is missing is named, with what installs it."""
    set_thread_defaults()
    try:
        for module in ("typer", "rich"):
            require(module, "the command line")
    except MissingExtraError as error:
        print(f"ensemblead: {error}", file=sys.stderr)
        raise SystemExit(1) from None

    from ensemblead.cli.app import run

    run()
