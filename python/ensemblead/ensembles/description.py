"""Detectors from descriptions: mappings of plain values, as configuration files hold them.

    {type: PatchCore, backbone: resnet18, layers: [layer2, layer3]}
    {type: BackboneEnsemble, members: [{type: PatchCore, ...}, {type: PatchCore, ...}]}
    {preset: mission, device: cuda}

`type` is the name that a class registers under for its saved models, and its constructor's keywords are the
other keys. So a detector that can be saved can be described, and there is no list of classes to keep here.
Paths of weights are relative to the file that the description was read from, if it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import isclass
from typing import Any, TypeAlias, get_args, get_origin

from ensemblead.common.validation import did_you_mean
from ensemblead.config import registry as store
from ensemblead.config.schema import (
    KeyPath,
    Parameter,
    Problems,
    Source,
    check_keys,
    check_value,
    parameters,
)
from ensemblead.detectors import Detector
from ensemblead.ensembles import loading  # which makes all detectors known to the store
from ensemblead.ensembles.presets import PRESETS

__all__ = ["Node", "build", "changed", "construct", "detector_types", "resolve"]

# A checked description with every default filled in; members are nodes again.
Node: TypeAlias = dict[str, Any]


def detector_types() -> dict[str, type[Detector]]:
    """Every detector class by the name that `type` takes."""
    assert loading is not None
    classes = store.registered().items()
    return {name: cls for name, cls in classes if isclass(cls) and issubclass(cls, Detector)}


def build(description: Mapping[str, Any], **defaults: Any) -> Detector:
    """An unfitted detector from its description.

    Args:
        description: see the module.
        **defaults: values of keywords, such as `seed` or `device`, for every detector in the tree that takes
            them and does not give them.

    Raises ValueError that lists all that is wrong: unknown keys and types (near matches named), missing keys,
    values of the wrong kind, and what the constructors refuse.
    """
    problems = Problems(Source(description, "detector"))
    node = resolve(description, (), problems, defaults)
    problems.raise_any()
    return construct(node)


def construct(node: Node) -> Detector:
    """A new detector; `node` is what `resolve` returned, without a problem."""
    classes = detector_types()
    arguments = {name: _constructed(value) for name, value in node.items() if name != "type"}
    return classes[node["type"]](**arguments)


def changed(node: Mapping[str, Any], changes: Mapping[str, Any]) -> Node:
    """The same description with some keywords set wherever a detector in it takes them."""
    other: Node = {}
    for name, value in node.items():
        if _is_node(value):
            other[name] = changed(value, changes)
        elif isinstance(value, list) and any(map(_is_node, value)):
            other[name] = [changed(item, changes) for item in value]
        else:
            other[name] = changes.get(name, value)
    return other


def _constructed(value: Any) -> Any:
    if _is_node(value):
        return construct(value)
    if isinstance(value, list) and any(map(_is_node, value)):
        return [construct(item) for item in value]
    return value


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "type" in value


def resolve(given: Any, path: KeyPath, problems: Problems, defaults: Mapping[str, Any] | None = None) -> Node:
    """Check a description whole, and fill in defaults; what is wrong is added to `problems`.

    Constructors check values, so a detector is constructed and let go. Networks are not loaded.
    """
    if not isinstance(given, Mapping):
        problems.add(path, f"must be a mapping with type or preset, got {type(given).__name__}")
        return {}
    if "preset" in given:
        return _resolve_preset(given, path, problems, defaults or {})
    classes = detector_types()
    name = given.get("type")
    if not isinstance(name, str) or name not in classes:
        what = "has no type" if name is None else f"has the unknown type {name!r}"
        problems.add(path if name is None else (*path, "type"), f"{what}; {did_you_mean(name, classes)}")
        return {}
    before = len(problems)
    node = _resolve_arguments(given, parameters(classes[name]), path, problems, defaults or {})
    node = {"type": name, **node}
    if len(problems) == before:
        try:
            construct(node)
        except (ValueError, TypeError) as error:
            problems.add(path, f"({name}): {error}")
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
            node[name] = _resolve_value(given[name], one.hint, (*path, name), problems, defaults)
        elif name in defaults:
            node[name] = defaults[name]
        elif not one.required:
            node[name] = list(one.default) if isinstance(one.default, tuple) else one.default
    return node


def _resolve_value(
    value: Any, hint: Any, path: KeyPath, problems: Problems, defaults: Mapping[str, Any]
) -> Any:
    if _names_detector(hint):
        return resolve(value, path, problems, defaults)
    if any(map(_names_detector, get_args(hint))):
        if get_origin(hint) is not None and isinstance(value, list):
            return [resolve(item, (*path, i), problems, defaults) for i, item in enumerate(value)]
        problems.add(path, f"must be a list of detectors, got {type(value).__name__}")
        return value
    found = check_value(value, hint, path, problems)
    is_file = path[-1] == "weights" and isinstance(found, str) and found != "default"
    return problems.source.place(found) if is_file else found


def _names_detector(hint: Any) -> bool:
    return isclass(hint) and issubclass(hint, Detector)


def _resolve_preset(
    given: Mapping[str, Any], path: KeyPath, problems: Problems, defaults: Mapping[str, Any]
) -> Node:
    """A preset is an ensemble of PatchCores: its keys are those of PatchCore, for all members, with `fusion`
    and one of `weights` per member.
    """
    name = given["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        problems.add((*path, "preset"), f"must be one of {', '.join(PRESETS)}, got {name!r}")
        return {}
    preset, classes = PRESETS[name], detector_types()
    own = parameters(classes["PatchCore"])
    ensemble = parameters(classes["BackboneEnsemble"])
    known = {key: replace(one, default=None) for key, one in own.items() if key not in ("backbone", "layers")}
    known |= {"fusion": ensemble["fusion"], "weights": Parameter(Sequence[str | None], None)}
    check_keys(given, known, path, problems, also=("preset",))
    weights = given.get("weights") or ["default"] * len(preset.backbones)
    if not isinstance(weights, list) or len(weights) != len(preset.backbones):
        problems.add((*path, "weights"), f"must be a list of {len(preset.backbones)}, got {weights!r}")
        return {}
    common = {key: value for key, value in given.items() if key not in ("preset", "fusion", "weights")}
    members = [
        {"type": "PatchCore", "backbone": backbone, "layers": list(layers), "weights": source}
        | {**preset.common, **common}
        for backbone, layers, source in zip(preset.backbones, preset.layers, weights, strict=True)
    ]
    if any(key not in known for key in common):
        return {}
    whole = {"type": "BackboneEnsemble", "members": members}
    if "fusion" in given:
        whole["fusion"] = given["fusion"]
    return resolve(whole, path, problems, defaults)
