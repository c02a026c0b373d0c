"""Configuration documents: YAML and JSON with the lines of their keys, and all problems in one error."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ensemblead.common.extras import require

# Where a value stands: keys of mappings and places in lists, from the outside in.
KeyPath: TypeAlias = tuple[str | int, ...]

_MOST_NODES = 100_000  # more than this is not written by hand, but by aliases of aliases


@dataclass(frozen=True)
class Source:
    """A configuration and the lines of its keys.

    Attributes:
        value: Mappings, lists and plain values.
        name: Its name in messages: the file.
        lines: Line numbers, from 1; empty for JSON files and for values that were no file.
        folder: The file's folder, which paths in it are relative to; None for values that were no file, whose
            paths are relative to the working directory.
    """

    value: Any
    name: str = "configuration"
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    folder: str | None = None

    def place(self, path: str) -> str:
        """A path of the configuration, joined to the configuration's folder.

        `..` means what it does to the operating system: of a linked folder, the parent of the real one.
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
    """Problems of one configuration, collected so that one error reports all of them."""

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

    Raises FileNotFoundError, and ValueError for what cannot be parsed, a key given twice, or endless
    aliases. MissingExtraError if PyYAML is missing.
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
            _record_lines(node, (), lines, yaml, name, ())
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


def read_text(text: str) -> Any:
    """One YAML value, as `--set` takes it: `3` is a number, `[a, b]` a list, `x` a string.

    Raises ValueError for what is not YAML.
    """
    yaml: Any = require("yaml", "--set")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{text!r} is not a YAML value: {getattr(error, 'problem', None) or error}"
        ) from error


def _record_lines(
    node: Any, path: KeyPath, lines: dict[KeyPath, int], yaml: Any, name: str, above: tuple[int, ...]
) -> None:
    """Record the line of every key; refuse keys given twice, which YAML's readers accept."""
    if id(node) in above or len(lines) > _MOST_NODES:
        raise ValueError(f"{name}, line {node.start_mark.line + 1}: aliases must not go round or multiply")
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            place = (*path, index)
            lines[place] = item.start_mark.line + 1
            _record_lines(item, place, lines, yaml, name, above)
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
            _record_lines(item, place, lines, yaml, name, above)
