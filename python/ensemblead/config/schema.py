"""Configuration files: read with the lines of their keys, checked against the signatures of what they call.

A signature is the schema: the keywords of a constructor are the keys that a mapping may have, their type
hints say what a value may be, and a default makes a key optional. So a new class needs no schema beside it.
"""

from __future__ import annotations

import inspect
import json
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from ensemblead.common.extras import require
from ensemblead.common.validation import did_you_mean

# Where a value stands: keys of mappings and places in lists, from the outside in.
KeyPath: TypeAlias = tuple[str | int, ...]

_MOST_NODES = 100_000  # more than this is not written by hand, but by aliases of aliases


@dataclass(frozen=True)
class Source:
    """A configuration, and where its keys stand.

    Attributes:
        value: What was read: mappings, lists and plain values.
        name: The file, or what else to call it in messages.
        lines: Line numbers, from 1; empty for JSON files and for values that were no file.
        folder: Where the file lies, which the paths in it are relative to; None for values that were no file:
            their paths are relative to the working directory.
    """

    value: Any
    name: str = "configuration"
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    folder: str | None = None

    def place(self, path: str) -> str:
        """A path that the configuration holds, as the program can use it.

        Without `..`, whose parent is that of the folder itself where a link to it is gone through, as it is
        for whatever opens files.
        """
        if self.folder is None:
            return path
        joined = os.path.join(self.folder, path)
        plain, real = os.path.normpath(joined), os.path.realpath(joined)
        return plain if os.path.realpath(plain) == real else real

    def where(self, path: KeyPath) -> str:
        """The place of a key for a message: `file, line 3: detectors[0].seed`."""
        written = key_text(path)
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), None)
        place = self.name if line is None else f"{self.name}, line {line}"
        return f"{place}: {written}" if written else place


def key_text(path: KeyPath) -> str:
    """`("detectors", 0, "seed")` -> `detectors[0].seed`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


class Problems:
    """All that is wrong with a configuration, so that it is told at once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.lines: list[str] = []

    def add(self, path: KeyPath, message: str) -> None:
        self.lines.append(f"{self.source.where(path)}{' ' if path else ': '}{message}")

    def __len__(self) -> int:
        return len(self.lines)

    def raise_any(self) -> None:
        """Raise ValueError with everything that was added; do nothing if that is nothing."""
        if len(self.lines) == 1:
            raise ValueError(self.lines[0])
        if self.lines:
            own = (line.removeprefix(self.source.name).lstrip(",: ") for line in self.lines)
            listed = "\n".join(f"{number}) {line}" for number, line in enumerate(own, 1))
            raise ValueError(f"{self.source.name} has {len(self.lines)} problems:\n{listed}")


# Reading


def read_source(path: str | os.PathLike[str]) -> Source:
    """A YAML file, or a JSON file by its suffix. Nothing in it can run code. Paths in it are relative to it.

    Raises FileNotFoundError, and ValueError for what cannot be parsed, a key given twice, or aliases without
    end. MissingExtraError if PyYAML is missing.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such configuration file: {file}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    folder = str(file.absolute().parent)
    if file.suffix.lower() == ".json":
        try:
            return Source(json.loads(text), str(file), folder=folder)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
    return _read_yaml(text, str(file), folder)


def _read_yaml(text: str, name: str, folder: str) -> Source:
    yaml: Any = require("yaml", "a YAML configuration")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _note_lines(node, (), lines, yaml, name, ())
        return Source(None if node is None else _yaml_value(loader, node, name), name, lines, folder)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"{name}{place} is not YAML: {getattr(error, 'problem', None) or error}") from error


def _yaml_value(loader: Any, node: Any, name: str) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, TypeError, AttributeError) as error:  # a date that is none, a tag that does not fit
        raise ValueError(f"{name} holds a value that is not what it looks like: {error}") from error


def _note_lines(
    node: Any, path: KeyPath, lines: dict[KeyPath, int], yaml: Any, name: str, above: tuple[int, ...]
) -> None:
    """Fill in the line of every key, and refuse keys given twice, which YAML's readers let pass."""
    if id(node) in above or len(lines) > _MOST_NODES:
        raise ValueError(f"{name}, line {node.start_mark.line + 1}: aliases must not go round or multiply")
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            place = (*path, index)
            lines[place] = item.start_mark.line + 1
            _note_lines(item, place, lines, yaml, name, above)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{name}, line {line}: keys must be names, got a list or a mapping")
            if key.value in seen and key.value != "<<":
                raise ValueError(f"{name}, line {line}: the key {key.value!r} is given twice")
            seen.add(key.value)
            place = (*path, key.value)
            lines[place] = line
            _note_lines(item, place, lines, yaml, name, above)


# Checking against signatures


@dataclass(frozen=True)
class Parameter:
    """A keyword of a callable: what its values may be, and its default, or `NONE` if it must be given."""

    NONE: ClassVar[Any] = inspect.Parameter.empty
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is self.NONE


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The keywords of a function or a class, in order."""
    target = getattr(function, "__init__") if inspect.isclass(function) else function  # noqa: B009
    try:
        hints = get_type_hints(target)
    except NameError:  # a name that only type checkers see: then the callable alone checks its values
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.items()
    return {name: Parameter(hints.get(name, Any), one.default) for name, one in found if one.kind in kinds}


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
            hint = did_you_mean(key, [*also, *known])
            problems.add((*path, key), f"is an unknown key; {hint}")
    for name, one in known.items():
        if one.required and name not in given:
            problems.add(path, f"has no {name!r}, which must be given")
    return len(problems) == before


class MismatchError(ValueError):
    """A value that a type hint does not allow; its text is what would be allowed."""


def fitted_to(value: Any, hint: Any) -> Any:
    """A value out of a file as a type hint wants it: whole numbers become floats, lists tuples.

    Raises MismatchError, whose text names what may be written. What no file can hold (modules, arrays) does
    not match and is not named.
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
    # null comes last, what no file can hold not at all.
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


def check_value(value: Any, hint: Any, path: KeyPath, problems: Problems) -> Any:
    """`fitted_to`, with a problem added where that fails; the value is then returned as it is."""
    try:
        return fitted_to(value, hint)
    except MismatchError as mismatch:
        said = f"must be {mismatch}" if str(mismatch) else "cannot be given in a configuration"
        problems.add(path, f"{said}, got {_shown(value)}{_yaml_number(value, str(mismatch))}")
        return value


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _yaml_number(value: Any, wanted: str) -> str:
    """A hint for numbers that are text: YAML 1.1 wants a point, as in 1.0e-3."""
    if not isinstance(value, str) or "a number" not in wanted:
        return ""
    try:
        return f" (YAML reads {value} as text; write {float(value)})"
    except ValueError:
        return ""
