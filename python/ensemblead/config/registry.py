"""Registry: classes by name, objects from descriptions, and descriptions of objects.

A description is a mapping of plain values, as configuration files hold them:

    {type: PatchCore, backbone: resnet18, layers: [layer2, layer3]}
    {type: BackboneEnsemble, members: [{type: PatchCore, ...}, {type: PatchCore, ...}]}
    {preset: patchcore-large, device: cuda}

`type` is the name that a class registers under, for its saved models too. The other keys are the parameters
of its constructor. So a new class needs no schema: `create`, `describe`, suites, `--set` and saved folders
read its signature. Paths of weights are relative to the file that a description was read from, if it was.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from ensemblead.common.validation import did_you_mean
from ensemblead.config.documents import KeyPath, Problems, Source, key_text
from ensemblead.config.names import (
    detector_names,
    is_registered,
    register,
    registered_class,
    registered_name,
    registered_names,
)
from ensemblead.config.presets import preset_description
from ensemblead.config.settings import (
    Node,
    Setting,
    differing_names,
    holds_registered,
    is_node,
    with_settings,
)
from ensemblead.config.signatures import Parameter, check_keys, check_value, parameters

__all__ = [
    "Node",
    "construct",
    "create",
    "describe",
    "register",
    "registered_class",
    "registered_name",
    "registered_names",
    "resolve",
    "resolve_detector",
]

# Objects from descriptions


def create(description: Mapping[str, Any], **defaults: Any) -> Any:
    """An unfitted detector or ensemble from its description.

    >>> import ensemblead as ead
    >>> detector = ead.create({"type": "PatchCore", "backbone": "gabor", "coreset_fraction": 0.1})
    >>> detector.coreset_fraction
    0.1

    Args:
        description: `type`, a registered name, and parameters of that class; or `preset`, a preset's name,
            and parameters to set in it. Members of ensembles are descriptions themselves.
        **defaults: parameters, such as `seed` or `device`, for every detector in the tree that takes them and
            does not give them.

    Raises ValueError that lists every problem: unknown keys and types (near matches named), missing keys,
    values of the wrong kind, and values that a constructor refuses.
    """
    problems = Problems(Source(description, "detector"))
    node = resolve(description, (), problems, defaults)
    problems.raise_any()
    return construct(node)


def construct(node: Node) -> Any:
    """A new object; `node` is what `resolve` returned, without a problem."""
    arguments = {name: _constructed(value) for name, value in node.items() if name != "type"}
    return registered_class(node["type"])(**arguments)


def _constructed(value: Any) -> Any:
    if is_node(value):
        return construct(value)
    if isinstance(value, list) and any(map(is_node, value)):
        return [construct(item) for item in value]
    return value


def resolve(given: Any, path: KeyPath, problems: Problems, defaults: Mapping[str, Any] | None = None) -> Node:
    """Check a whole description and fill in defaults; problems are added to `problems`.

    Constructors check values, so each object is constructed once and dropped. Networks are not loaded.
    """
    if not isinstance(given, Mapping):
        problems.add(path, f"must be a mapping with type or preset, got {type(given).__name__}")
        return {}
    if "preset" in given:
        given = _expanded_preset(given, path, problems)
        if not given:
            return {}
    name = given.get("type")
    try:
        cls = registered_class(name) if isinstance(name, str) else None
    except LookupError:
        cls = None
    if cls is None:
        message = "has no type" if name is None else f"has the unknown type {name!r}"
        near = did_you_mean(name, registered_names())
        problems.add(path if name is None else (*path, "type"), f"{message}; {near}")
        return {}
    before = len(problems)
    node = {"type": name, **_resolve_arguments(given, parameters(cls), path, problems, defaults or {})}
    if len(problems) == before:
        try:
            construct(node)
        except (ValueError, TypeError) as error:
            problems.add(path, f"({name}): {error}" if path else str(error))
    return node


def _resolve_arguments(
    given: Mapping[str, Any],
    known: Mapping[str, Parameter],
    path: KeyPath,
    problems: Problems,
    defaults: Mapping[str, Any],
) -> Node:
    check_keys(given, known, path, problems, also=("type",))
    node: Node = {}
    for name, one in known.items():
        if name in given:
            node[name] = _resolve_value(given[name], one, (*path, name), problems, defaults)
        elif name in defaults:
            node[name] = defaults[name]
        elif not one.required:
            node[name] = list(one.default) if isinstance(one.default, tuple) else one.default
    return node


def _resolve_value(
    value: Any, one: Parameter, path: KeyPath, problems: Problems, defaults: Mapping[str, Any]
) -> Any:
    hint = one.hint
    if holds_registered(hint):
        return _resolve_nested(value, hint, path, problems, defaults)
    items = [kind for kind in get_args(hint) if holds_registered(kind)]
    if items:
        if get_origin(hint) is not None and isinstance(value, list):
            return [
                _resolve_nested(item, items[0], (*path, i), problems, defaults)
                for i, item in enumerate(value)
            ]
        kind = items[0].__name__.lower()
        problems.add(path, f"must be a list of {kind}s, got {type(value).__name__}")
        return value
    return one.with_paths(check_value(value, hint, path, problems), problems.source.place)


def _resolve_nested(
    value: Any, hint: type, path: KeyPath, problems: Problems, defaults: Mapping[str, Any]
) -> Node:
    node = resolve(value, path, problems, defaults)
    if node and not issubclass(registered_class(node["type"]), hint):
        problems.add(path, f"must be a {hint.__name__.lower()}, got a {node['type']}")
    return node


def resolve_detector(
    given: Any, path: KeyPath, problems: Problems, defaults: Mapping[str, Any] | None = None
) -> Node:
    """`resolve`, with a problem for the description of what is no detector."""
    node = resolve(given, path, problems, defaults)
    if node and node["type"] not in detector_names():
        problems.add((*path, "type"), f"must be a detector, got {node['type']!r}")
        return {}
    return node


def _expanded_preset(given: Mapping[str, Any], path: KeyPath, problems: Problems) -> Node:
    """The description that a preset stands for, with the other keys set in it."""
    try:
        description = preset_description(given["preset"])
    except ValueError as error:
        problems.add((*path, "preset"), str(error).removeprefix("preset "))
        return {}
    before, changes = len(problems), []
    for name, value in given.items():
        if name in differing_names(description):
            problems.add((*path, name), f"is set by the preset {given['preset']!r}, for each member its own")
        elif name != "preset":
            changes.append(Setting(name, value, (*path, name)))
    changed = with_settings(description, changes, problems)
    return changed if len(problems) == before else {}


# Descriptions of objects


def describe(obj: Any) -> dict[str, Any]:
    """The description of an object: `create(describe(obj))` makes one that behaves alike.

    For every parameter of its class's signature it has the attribute of that name, or, where attributes
    mean something else, a method `constructor_arguments` that returns the values by name.

    >>> import ensemblead as ead
    >>> description = describe(ead.PaDiM("gabor", num_dimensions=20))
    >>> description["type"], description["num_dimensions"], description["layers"]
    ('PaDiM', 20, ['layer1', 'layer2', 'layer3'])

    Raises TypeError for an object of an unregistered class or without an attribute for a parameter, and
    ValueError for a parameter that has no plain form: a module as backbone, a state dict as weights.
    """
    return _described(obj, ())


def _described(obj: Any, path: KeyPath) -> dict[str, Any]:
    cls = type(obj)
    description = {"type": registered_name(cls)}
    own: dict[str, Any] = getattr(obj, "constructor_arguments", dict)()
    for name in parameters(cls):
        place = (*path, name)
        if name not in own and not hasattr(obj, name):
            raise TypeError(
                f"{key_text(place)} is a parameter of {cls.__name__} without an attribute of its name"
            )
        value = own[name] if name in own else getattr(obj, name)
        description[name] = _plain(value, place, cls.__name__)
    return description


def _plain(value: Any, path: KeyPath, owner: str) -> Any:
    """A value in JSON's types."""
    if is_registered(type(value)):
        return _described(value, path)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(plain := getattr(value, "plain", None)):  # as that of a region
        return plain()
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, i), owner) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, path, owner) for key, item in value.items()}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.device):
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise ValueError(
        f"{key_text(path)} of a {owner} cannot be described: a {type(value).__name__} has no plain form"
    )
