"""Signatures as schemas: what a constructor takes is what a file may say.

The keywords of a constructor are the keys that a mapping may have, their type hints say what a value may be,
and a default makes a key optional. So a new class needs no schema beside it.
"""

from __future__ import annotations

import inspect
import json
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from ensemblead.common.other_names import parameter_hint
from ensemblead.config.documents import KeyPath, Problems


@dataclass(frozen=True)
class Parameter:
    """A keyword of a callable: what its values may be, and its default, or `NONE` if it must be given.

    `takes_paths`: whether its texts, alone or in a list, are paths.
    """

    NONE: ClassVar[Any] = inspect.Parameter.empty
    hint: Any
    default: Any
    takes_paths: bool = False

    @property
    def required(self) -> bool:
        return self.default is self.NONE

    def with_paths(self, value: Any, change: Callable[[str], Any]) -> Any:
        """The value with `change` of each path in place of it, alone or in a list, if this parameter takes
        paths.
        """
        if self.takes_paths and isinstance(value, (list, tuple)):
            return [self.with_paths(item, change) for item in value]
        is_path = self.takes_paths and isinstance(value, str) and value not in (self.default, "default")
        return change(value) if is_path else value


# Parameters of these names take paths, whatever their type hints say.
_FILES = ("weights", "region")


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The keywords of a function or a class, in order."""
    target = getattr(function, "__init__") if inspect.isclass(function) else function  # noqa: B009
    try:
        hints = get_type_hints(target)
    except NameError:  # a name that only type checkers see: the callable alone checks its values
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.items()
    return {
        name: Parameter(hint, one.default, name in _FILES or _has_paths(hint))
        for name, one in found
        if one.kind in kinds
        for hint in (hints.get(name, Any),)
    }


def _has_paths(hint: Any) -> bool:
    return any((get_origin(one) or one) is os.PathLike for one in get_args(hint))


def check_keys(
    given: Mapping[str, Any],
    known: Mapping[str, Parameter],
    path: KeyPath,
    problems: Problems,
    *,
    also: Sequence[str] = (),
) -> bool:
    """Add a problem for every key that is not known (near matches named) and every one that is missing."""
    before = len(problems)
    for key in given:
        if key not in known and key not in also:
            hint = parameter_hint(key, [*also, *known])
            problems.add((*path, key), f"is an unknown key; {hint}")
    for name, one in known.items():
        if one.required and name not in given:
            problems.add(path, f"has no {name!r}, which must be given")
    return len(problems) == before


class MismatchError(ValueError):
    """A value that a type hint does not allow; its text is what would be allowed."""


def fitted_to(value: Any, hint: Any) -> Any:
    """A value as a type hint wants it: whole numbers become floats, lists tuples.

    Objects that no file can hold (modules, paths) match their own class.

    Raises MismatchError, whose text names the values that a file may hold.
    """
    if hint is Any:
        return value
    if hint in _PLAIN:
        kinds, text = _PLAIN[hint]
        if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
            raise MismatchError(text)
        return float(value) if isinstance(value, int) and hint is float else value
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _fitted_to_one_of(value, options)
    if origin is Literal:
        if not any(type(value) is type(option) and value == option for option in options):
            raise MismatchError(" or ".join(json.dumps(option) for option in options))
        return value
    if origin is tuple and Ellipsis not in options:
        if not isinstance(value, (list, tuple)) or len(value) != len(options):
            raise MismatchError(f"a list of {len(options)}")
        return tuple(fitted_to(item, option) for item, option in zip(value, options, strict=True))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return _fitted_items(value, options)
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return _fitted_mapping(value, options)
    kind = hint if origin is None else origin
    if inspect.isclass(kind) and isinstance(value, kind):
        return value
    raise MismatchError("")


_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    type(None): ((type(None),), "null"),
}


def _fitted_to_one_of(value: Any, options: Sequence[Any]) -> Any:
    wanted: list[str] = []
    for option in options:
        try:
            return fitted_to(value, option)
        except MismatchError as mismatch:
            wanted.append(str(mismatch))
    # null comes last; kinds that no file can hold have no text.
    *others, last = sorted(filter(None, dict.fromkeys(wanted)), key=lambda text: text == "null") or [""]
    raise MismatchError(f"{', '.join(others)} or {last}" if others else last)


def _fitted_items(value: Any, options: Sequence[Any]) -> list[Any]:
    kind = options[0] if options else Any
    try:
        if isinstance(value, (list, tuple)):
            return [fitted_to(item, kind) for item in value]
        fitted_to(object(), kind)
    except MismatchError as mismatch:
        what = str(mismatch).replace("a whole number", "whole numbers").replace("a number", "numbers")
        raise MismatchError(f"a list of {what.replace('a string', 'strings')}") from None
    raise MismatchError("a list")


def _fitted_mapping(value: Any, options: Sequence[Any]) -> dict[Any, Any]:
    key, item = options or (Any, Any)
    if not isinstance(value, Mapping):
        raise MismatchError("")
    return {fitted_to(name, key): fitted_to(one, item) for name, one in value.items()}


def check_value(value: Any, hint: Any, path: KeyPath, problems: Problems) -> Any:
    """`fitted_to`, with a problem added where that fails; the value is then returned as it is."""
    try:
        return fitted_to(value, hint)
    except MismatchError as mismatch:
        said = f"must be {mismatch}" if str(mismatch) else "cannot be given in a configuration"
        problems.add(path, f"{said}, got {shown(value)}{_yaml_number(value, str(mismatch))}")
        return value


def shown(value: Any) -> str:
    """A value as messages show it: in JSON."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _yaml_number(value: Any, wanted: str) -> str:
    """A hint for numbers that are text: YAML 1.1 wants a point, as in 1.0e-3."""
    if not isinstance(value, str) or "a number" not in wanted:
        return ""
    try:
        return f" (YAML reads {value} as text; write {float(value)})"
    except ValueError:
        return ""
