"""Unknown options and commands, answered with what they are called here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ensemblead.common.other_names import command_hint, option_hint

if TYPE_CHECKING:
    _Base = TyperCommand
else:
    _Base = object

# Typer has its own copy of click in some versions, and in others imports it.
_USAGE_ERROR: Any = typer.BadParameter.__base__


def _parameter(option: str) -> str:
    return option.lstrip("-").partition("=")[0].rpartition(".")[2].replace("-", "_")


class _Answers(_Base):
    """Beside a class of typer: errors of unknown options say what they are here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _USAGE_ERROR as error:
            # Other errors than that of an unknown option have an option's name as well.
            unknown = getattr(error, "option_name", None) if hasattr(error, "possibilities") else None
            options = [name for one in self.get_params(ctx) for name in one.opts]
            hint = None if unknown is None else option_hint(unknown, options)
            if hint is None and unknown is not None and "--set" in options and not error.possibilities:
                hint = f"a parameter of the method is given by --set {_parameter(unknown)}=VALUE"
            if hint is not None:
                error.message, error.possibilities = f"{error.message}; {hint}", None
            raise


class Command(_Answers, TyperCommand):
    """A command of the library."""


class Group(_Answers, TyperGroup):
    """A group of commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except _USAGE_ERROR as error:
            if (hint := command_hint(args[0])) is not None:
                error.message = f"{error.message.rstrip('.')}; {hint}"
            raise
