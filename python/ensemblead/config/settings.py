"""Settings: parameters set in a description, wherever an object in it takes them.

`seed=3` reaches every member that takes a seed, `1.seed=3` member 1 alone. A name that no member takes
reaches the ensembles around them. In a `TiledEnsemble` an `image_size` is that of the ensemble, since its
members see tiles; so is a `region`. `tile_score=max` sets the ensemble's `score`, where members have one too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import isclass
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin

from ensemblead.common.other_names import parameter_hint
from ensemblead.config.documents import KeyPath, Problems, read_text
from ensemblead.config.names import detector_names, is_base, registered_class
from ensemblead.config.signatures import MismatchError, Parameter, fitted_to, parameters, shown

# A description; once it is checked every default is filled in. Nested ones are nodes again.
Node: TypeAlias = dict[str, Any]

_WRITTEN = re.compile(r"(?:(\d+)\.)?([A-Za-z_][\w-]*)=(.*)", re.DOTALL)
_INDEXED = re.compile(r"(\d+)\.([A-Za-z_]\w*)")
_SIZE = re.compile(r"(\d+)x(\d+)", re.IGNORECASE)

_TILED = "TiledEnsemble"
# Parameters of an ensemble that its members have too, without effect there; and those without effect at all.
_INSTEAD_OF_MEMBERS = {(_TILED, "image_size"), (_TILED, "region")}
_WITHOUT_EFFECT = {
    (_TILED, "resize"): "has no effect in tiles: image_size is the size of the image that is cut into tiles"
}
# Ensembles that options make.
_MADE_BY = {"BackboneEnsemble": "give several backbones", _TILED: "give tile_size too"}


@dataclass(frozen=True)
class Setting:
    """A parameter's name and value.

    Attributes:
        name: The parameter; `tile_NAME` for one of a `TiledEnsemble`.
        value: Its value, in plain types where it comes from a file.
        path: Its place in the document, for messages.
        member: The number of the only member that it is for, counting the ends of the tree; None for all.
        text: How it was typed, where it was.
    """

    name: str
    value: Any
    path: KeyPath = ()
    member: int | None = None
    text: str | None = None


def typed_setting(text: str) -> Setting:
    """`[I.]NAME=VALUE` with a YAML value. Raises ValueError for another form."""
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--set takes NAME=VALUE or I.NAME=VALUE, got {text!r}")
    member, name, value = match.groups()
    plain = name.replace("-", "_")
    place = plain if member is None else f"{member}.{plain}"
    return Setting(plain, read_text(value), (place,), None if member is None else int(member), value)


def named_setting(key: str, value: Any) -> Setting:
    """The setting of a key, `NAME` or `I.NAME`, in a configuration file."""
    match = _INDEXED.fullmatch(key)
    if match is None:
        return Setting(key, value, (key,))
    return Setting(match[2], value, (key,), int(match[1]))


def with_settings(description: Mapping[str, Any], settings: Iterable[Setting], problems: Problems) -> Node:
    """A copy of a description with parameters set; what cannot be set is added to `problems`.

    A value is checked against the signature of what takes it. With several members a list of one value per
    member is taken as well. Settings for one member come after those for all.
    """
    changed: Node = _copied(description)
    leaves = list(_leaves(changed, ()))
    for setting in sorted(settings, key=lambda one: one.member is not None):
        _set(setting, leaves, problems)
    return changed


def is_node(value: Any) -> bool:
    """Whether a value is a description of its own inside a description."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


def holds_registered(hint: Any) -> bool:
    """Whether a type hint is a base of registered classes: its values are descriptions."""
    return isclass(hint) and is_base(hint)


def differing_names(description: Mapping[str, Any]) -> set[str]:
    """Parameters that are given, but not alike, for the members of a description."""
    nodes = [node for node, _ in _leaves(_copied(description), ())]
    names = {name for node in nodes for name in node}
    return {name for name in names if any(node.get(name) != nodes[0].get(name) for node in nodes)}


def leaf_nodes(description: Node) -> list[Node]:
    """The members at the ends of a description, not copied; the description itself if it has no members."""
    return [node for node, _ in _leaves(description, ())]


# A leaf, and the ensembles around it from the outside in.
_Leaf: TypeAlias = tuple[Node, tuple[Node, ...]]


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping) and is_node(value):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and any(map(is_node, value)):
        return [_copied(item) for item in value]
    return value


def _leaves(node: Node, above: tuple[Node, ...]) -> Iterator[_Leaf]:
    lists = [value if isinstance(value, list) else [value] for value in node.values()]
    children = [item for items in lists for item in items if is_node(item)]
    if not children:
        yield node, above
    for child in children:
        yield from _leaves(child, (*above, node))


def _set(setting: Setting, leaves: Sequence[_Leaf], problems: Problems) -> None:
    chosen = leaves
    if setting.member is not None:
        chosen = leaves[setting.member : setting.member + 1]
        if not chosen:
            problems.add(setting.path, f"is for member {setting.member}, but there are {len(leaves)}, from 0")
            return
    for (kind, name), reason in _WITHOUT_EFFECT.items():
        if setting.name == name and any(node["type"] == kind for _, above in chosen for node in above):
            problems.add(setting.path, f"{reason}, got {shown(setting.value)}")
            return
    groups, name = _takers(setting, chosen)
    if not groups:
        problems.add(setting.path, _unknown(setting.name, chosen))
        return
    wanted: list[str] = []
    for group in groups:
        try:
            values = _fitted_to_all(setting, [_parameter(node, name) for node in group])
        except MismatchError as mismatch:
            wanted.append(str(mismatch))
            continue
        for node, value in zip(group, values, strict=True):
            node[name] = _parameter(node, name).with_paths(value, problems.source.place)
        return
    text = wanted[0] if setting.text is None else _as_typed(wanted[0])
    problems.add(setting.path, f"must be {text or 'given in Python'}, got {shown(setting.value)}")


def _takers(setting: Setting, chosen: Sequence[_Leaf]) -> tuple[list[list[Node]], str]:
    """Groups of nodes that take a setting, to be tried in order, and the parameter's name there."""
    name = setting.name
    around = _distinct(node for _, above in chosen for node in above) if setting.member is None else []
    inner = _distinct(_owner(leaf, name) for leaf in chosen)
    groups = [[node for node in nodes if _takes(node, name)] for nodes in (inner, around)]
    own = name.removeprefix("tile_")
    if own != name and not any(groups):
        tiled = [node for node in around if node["type"] == _TILED and _takes(node, own)]
        groups, name = [tiled], own if tiled else name
    return [group for group in groups if group], name


def _owner(leaf: _Leaf, name: str) -> Node:
    """The leaf, or the ensemble around it whose parameter of that name counts instead."""
    node, above = leaf
    return next((one for one in above if (one["type"], name) in _INSTEAD_OF_MEMBERS), node)


def _distinct(nodes: Iterable[Node]) -> list[Node]:
    return list({id(node): node for node in nodes}.values())


def _takes(node: Node, name: str) -> bool:
    return name in parameters(registered_class(node["type"]))


def _parameter(node: Node, name: str) -> Parameter:
    return parameters(registered_class(node["type"]))[name]


def _fitted_to_all(setting: Setting, taking: Sequence[Parameter]) -> list[Any]:
    """A value for each, all the same, or one each from a list."""
    try:
        return [_fitted(setting.value, setting.text, one.hint) for one in taking]
    except MismatchError as mismatch:
        if len(taking) == 1:
            raise
        value = setting.value
        if isinstance(value, list) and len(value) == len(taking):
            return [_fitted(item, None, one.hint) for item, one in zip(value, taking, strict=True)]
        raise MismatchError(f"{mismatch}, or a list with one for each of {len(taking)} members") from None


def _fitted(value: Any, text: str | None, hint: Any) -> Any:
    """`fitted_to`, or of another reading: HxW, none, 1e-3, a name for a list of one, digits as text."""
    if holds_registered(hint):
        return value
    readings = [value, *_other_readings(value, text, hint)]
    for reading in readings[:-1]:
        try:
            return fitted_to(reading, hint)
        except MismatchError:
            continue
    try:
        return fitted_to(readings[-1], hint)
    except MismatchError:
        return fitted_to(value, hint)  # which says what the value itself should be


def _other_readings(value: Any, text: str | None, hint: Any) -> Iterator[Any]:
    if isinstance(value, str):
        if (size := _SIZE.fullmatch(value)) is not None:
            yield [int(size[1]), int(size[2])]
        if value.lower() == "none":
            yield None
        with contextlib.suppress(ValueError):
            yield float(value)  # YAML 1.1 reads 1e-3 as text
    if text is not None and not isinstance(value, (list, dict)):
        yield text.strip()
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        origins = [get_origin(option) for option in options]
        if any(isclass(origin) and issubclass(origin, Sequence) for origin in origins):
            yield [text.strip()]


def _as_typed(wanted: str) -> str:
    """The kinds of values that a message names, as they are typed on a command line."""
    return wanted.replace("a list of 2", "HxW").replace("null", "none")


def _unknown(name: str, chosen: Sequence[_Leaf]) -> str:
    types = list(dict.fromkeys(node["type"] for node, _ in chosen))
    text = f"is no parameter of {' or '.join(types)}"
    owners = [other for other in detector_names() if name in parameters(registered_class(other))]
    own = name.removeprefix("tile_")
    if own != name and own in parameters(registered_class(_TILED)):
        owners.append(_TILED)
    if owners:
        how = [_MADE_BY[owner] for owner in owners if owner in _MADE_BY]
        return f"{text}, but of {' and '.join(owners)}{': ' if how else ''}{' or '.join(how)}"
    around = _distinct(node for leaf, above in chosen for node in (leaf, *above))
    known = {name for node in around for name in parameters(registered_class(node["type"]))}
    return f"{text}; {parameter_hint(name, sorted(known))}"
