"""Options that stand for a `--set`: those that `fit` had before every parameter could be set.

Parameters of new methods get none: `--set NAME=VALUE` reaches them.
"""

from __future__ import annotations

from typing import Any

from ensemblead.cli.unknown import Command

_WITH_VALUE = (
    "num-dimensions",
    "aggregation",
    "score",
    "index",
    "fusion",
    "precision",
    "batch-size",
    "tile-score",
    "tile-normalization",
)
_FLAGS = {
    "--compile": "compile=true",
    "--no-compile": "compile=false",
    "--shared-tiles": "tile_shared=true",
}


class ShorthandCommand(Command):
    """A command that reads `--NAME VALUE` as `--set NAME=VALUE`, for the names above."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, expanded(args))


def expanded(arguments: list[str]) -> list[str]:
    """A command line with its shorthands written out."""
    found: list[str] = []
    left = iter(arguments)
    for argument in left:
        option, separator, value = argument.partition("=")
        if argument == "--":
            return [*found, argument, *left]
        if argument in _FLAGS:
            found += ["--set", _FLAGS[argument]]
        elif option.startswith("--") and option[2:] in _WITH_VALUE:
            name = option[2:].replace("-", "_")
            given = value if separator else next(left, None)
            found += [argument] if given is None else ["--set", f"{name}={given}"]
        else:
            found.append(argument)
    return found
