"""Options that stand for a `--set`: those that `fit` had before every parameter could be set.

Parameters of new methods get none: `--set NAME=VALUE` reaches them.
"""

from __future__ import annotations

import itertools
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
_SCALES = "--scales"  # takes all numbers that follow


class ShorthandCommand(Command):
    """A command that reads `--NAME VALUE` as `--set NAME=VALUE`, for the names above, and `--scales 1 .5` as
    `--set scales=[1,.5]`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, expanded(args))


def expanded(arguments: list[str]) -> list[str]:
    """A command line with its shorthands written out."""
    found: list[str] = []
    left = iter(_with_scales(arguments))
    for argument in left:
        option, separator, value = argument.partition("=")
        if argument == "--":
            return [*found, argument, *left]
        if argument in _FLAGS:
            found += ["--set", _FLAGS[argument]]
        elif option == _SCALES and separator:
            found += ["--set", f"scales=[{value}]"]
        elif option.startswith("--") and option[2:] in _WITH_VALUE:
            name = option[2:].replace("-", "_")
            given = value if separator else next(left, None)
            found += [argument] if given is None else ["--set", f"{name}={given}"]
        else:
            found.append(argument)
    return found


def _with_scales(arguments: list[str]) -> list[str]:
    """A command line in which `--scales` and the numbers after it are a `--set`."""
    if _SCALES not in arguments or "--" in arguments[: arguments.index(_SCALES)]:
        return arguments
    start = arguments.index(_SCALES)
    numbers = list(itertools.takewhile(_is_number, arguments[start + 1 :]))
    given = ["--set", f"scales=[{','.join(numbers)}]"]
    return [*arguments[:start], *given, *arguments[start + 1 + len(numbers) :]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
