"""Options of a detector, from the command line and configuration files, and the detector they describe."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ensemblead.common.validation import did_you_mean, near_names
from ensemblead.config.documents import Problems, Source, read_source
from ensemblead.config.presets import MEMBER_DEFAULTS, preset_description
from ensemblead.config.settings import (
    Node,
    Setting,
    leaf_nodes,
    named_setting,
    typed_setting,
    with_settings,
)
from ensemblead.config.signatures import check_value, parameters

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

DEFAULT_METHOD = "PatchCore"
_INDEXED = re.compile(r"(\d+)\.(.+)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b|)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate("kmgt", start=1)
    for binary in ("", "i")
}
_NO_FILE = ("default", "none")  # instead of a path of weights
# Ensembles are made by other options than --method.
_INSTEAD_OF_ENSEMBLES = {
    "BackboneEnsemble": "use -b twice, or --config",
    "TiledEnsemble": "tile_size must be given, beside the method of the tiles",
}
_OWN_METHODS = "one of your own is known by ensemblead --import FILE.py, or by its package's entry point"
_FORMER_KEYS = {"shared_tiles": "tile_shared"}


@dataclass(frozen=True)
class DetectorOptions:
    """What the command line or a configuration file says of a detector; None is "not said".

    Attributes:
        preset, method: Names; those of methods as they are registered, in capitals or not.
        backbone: A network's name for each member.
        layers, weights: `NAME`, or `I.NAME` where there are several members.
        settings: Parameters of the method and of ensembles. A `tile_size` makes a `TiledEnsemble`.
        described: A checked description, where a configuration file holds one; instead of the names.
        source: Where all this was written, for messages.
    """

    preset: str | None = None
    method: str | None = None
    backbone: Sequence[str] | None = None
    layers: Sequence[str] | None = None
    weights: Sequence[str] | None = None
    settings: Sequence[Setting] = ()
    described: Mapping[str, Any] | None = None
    source: Source = field(default_factory=lambda: Source({}, "command line"))


# The keys of a configuration file that are no parameters.
_NAMES: Mapping[str, Any] = {
    "preset": str,
    "method": str,
    "backbone": str | list[str],
    "layers": str | list[str],
    "weights": str | list[str],
}


def byte_count(name: str, text: str) -> int:
    """Bytes, written as 2GB, 1.5 GiB, 500MB or a plain number; ValueError for anything else."""
    match = _BYTES.fullmatch(text.strip())
    count = 0 if match is None else int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if count < 1:
        raise ValueError(f"{name} must be a number of bytes, such as 2GB or 500MB, got {text!r}")
    return count


def typed_size(name: str, text: str) -> int | tuple[int, int]:
    """A size from `N` or `HxW`."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise ValueError(f"{name} must be N or HxW, got {text!r}")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def typed_options(values: Mapping[str, Any], sets: Sequence[str] = (), **names: Any) -> DetectorOptions:
    """Options of a command line: `values` by parameter, None where an option was not given, and `--set`s."""
    typed = [f"{name}={value}" for name, value in values.items() if value is not None]
    settings = [typed_setting(text) for text in (*typed, *sets)]
    given: dict[str, Any] = {name: value or None for name, value in names.items()}
    return DetectorOptions(settings=tuple(settings), **given)


def read_config(path: str | os.PathLike[str]) -> DetectorOptions:
    """Options from a YAML or JSON file: one mapping of preset, method, backbone, layers, weights and
    parameters; or, with a key `type`, a description. Paths of weights are relative to the file.

    Raises FileNotFoundError, and ValueError for what cannot be parsed and for values of the wrong kind: all
    of them, with their lines.
    """
    return options_of(read_source(path))


def options_of(source: Source) -> DetectorOptions:
    """As `read_config`, for a file that has been read."""
    document: Any = source.value
    if not isinstance(document, dict):
        raise ValueError(f"{source.name} must hold one mapping, got {type(document).__name__}")
    problems = Problems(source)
    if "type" in document:
        from ensemblead.config.registry import resolve_detector

        described = resolve_detector(document, (), problems)
        problems.raise_any()
        return DetectorOptions(described=described, source=source)
    names: dict[str, Any] = {}
    settings = []
    for key, value in document.items():
        if key in _NAMES:
            names[key] = check_value(value, _NAMES[key], (key,), problems)
        else:
            settings.append(named_setting(_FORMER_KEYS.get(key, str(key)), value))
    problems.raise_any()
    for key in ("backbone", "layers", "weights"):
        if isinstance(names.get(key), str):
            names[key] = [names[key]]
    if "weights" in names:
        names["weights"] = [_placed_weights(text, source) for text in names["weights"]]
    return DetectorOptions(**names, settings=tuple(settings), source=source)


def _placed_weights(text: str, source: Source) -> str:
    """`[I.]PATH` of a configuration file, its path joined to the file's folder."""
    match = _INDEXED.fullmatch(text)
    if match is None or os.path.exists(source.place(text)):
        number, path = "", text
    else:
        number, path = f"{match[1]}.", match[2]
    return text if path in _NO_FILE else number + source.place(path)


# From options to a detector


def build_detector(options: DetectorOptions, config: DetectorOptions | None = None) -> Detector:
    """An unfitted detector, of `options` before those of a file. Networks are not loaded."""
    from ensemblead.config.registry import create

    detector: Detector = create(description_of(options, config))
    return detector


def description_of(options: DetectorOptions, config: DetectorOptions | None = None) -> Node:
    """The description of a detector by its options."""
    given = [one for one in (config, options) if one is not None]  # the later one goes first
    description = _named_description(given)
    for one in given:
        problems = Problems(one.source)
        description = with_settings(description, one.settings, problems)
        problems.raise_any()
    if description["type"] == "TiledEnsemble" and "stride" not in description:
        # Half a tile: the class's own default is that of tiles of 256.
        size = description["tile_size"]
        half = [max(1, side // 2) for side in size] if isinstance(size, (list, tuple)) else max(1, size // 2)
        description["stride"] = half
    return description


def _named_description(given: Sequence[DetectorOptions]) -> Node:
    """The description without settings: what a file describes, or one of the named method and networks."""
    described = next((one.described for one in given if one.described is not None), None)
    names: dict[str, Any] = dict.fromkeys(_NAMES)
    for one in given:
        names |= {name: getattr(one, name) for name in names if getattr(one, name) is not None}
    if described is not None:
        beside = [name for name in names if name != "weights" and names[name] is not None]
        if beside:
            raise ValueError(
                f"a configuration with a type describes all of the detector: leave out {beside[0]}"
            )
        description = with_settings(described, (), Problems(Source({})))
    elif names["preset"] is not None:
        description = _preset(names)
    else:
        description = _method(names)
    leaves = leaf_nodes(description)
    for number, weights in weights_per_member(names["weights"] or [], len(leaves)).items():
        leaves[number]["weights"] = weights
    if described is None and any(setting.name == "tile_size" for one in given for setting in one.settings):
        description = {"type": "TiledEnsemble", "member": description}
    return description


def _preset(names: Mapping[str, Any]) -> Node:
    description = preset_description(names["preset"])
    if names["backbone"] is not None or names["layers"] is not None:
        raise ValueError(f"the preset {names['preset']!r} brings its backbones and layers; give no others")
    types = {leaf["type"] for leaf in leaf_nodes(description)}
    if names["method"] is not None and types != {_method_name(names["method"])}:
        raise ValueError(
            f"the preset {names['preset']!r} is of {' and '.join(sorted(types))}, "
            f"got method {names['method']!r}"
        )
    return description


def _method(names: Mapping[str, Any]) -> Node:
    from ensemblead.config.registry import registered_class

    kind = DEFAULT_METHOD if names["method"] is None else _method_name(names["method"])
    known = parameters(registered_class(kind))
    for name in ("backbone", "layers", "weights"):
        if names[name] is not None and name not in known:
            raise ValueError(f"{name} is no parameter of {kind}, got {', '.join(names[name])}")
    backbones = names["backbone"] or [known["backbone"].default if "backbone" in known else None]
    several = len(backbones) > 1
    shared = {name: value for name, value in MEMBER_DEFAULTS.items() if several and name in known}
    members: list[Node] = []
    for backbone, layers in zip(backbones, layers_per_member(names["layers"], backbones), strict=True):
        own = {"backbone": backbone, "layers": layers}
        members.append({"type": kind, **shared, **{key: one for key, one in own.items() if one is not None}})
    return {"type": "BackboneEnsemble", "members": members} if several else members[0]


def _method_name(text: str) -> str:
    """The registered name of a method, whose capitals and hyphens may be left out."""
    from ensemblead.config.names import detector_names

    known = {name.lower(): name for name in detector_names()}
    plain = text.lower()
    found = known.get(plain, known.get(plain.replace("-", "").replace("_", "")))
    if found in _INSTEAD_OF_ENSEMBLES:
        raise ValueError(f"method must be a method, got the ensemble {found}: {_INSTEAD_OF_ENSEMBLES[found]}")
    if found is None:
        methods = [name for name, cased in known.items() if cased not in _INSTEAD_OF_ENSEMBLES]
        own = "" if near_names(plain, methods) else f"; {_OWN_METHODS}"
        raise ValueError(f"method must be a method's name, got {text!r}; {did_you_mean(plain, methods)}{own}")
    return found


def layers_per_member(layers: Sequence[str] | None, backbones: Sequence[str]) -> list[list[str] | None]:
    """Every backbone's layers, from names written `I.LAYER` (the index may be left out with one backbone);
    None for its defaults: for all where none is given, and for "auto".

    Raises ValueError where an index is missing, too large, or never given.
    """
    count = len(backbones)
    if not layers:
        return [None] * count
    found: list[list[str]] = [[] for _ in range(count)]
    for layer in layers:
        match = _INDEXED.fullmatch(layer)
        if match is None and count > 1:
            choices = " or ".join(f"{i}.{layer} ({name})" for i, name in enumerate(backbones))
            raise ValueError(
                f"layer {layer!r} does not say which of the {count} backbones it belongs to: write {choices}"
            )
        index, name = (int(match[1]), match[2]) if match else (0, layer)
        if index >= count:
            raise ValueError(f"layer {layer!r}: the backbones are numbered 0 to {count - 1}")
        found[index].append(name)
    for i, names in enumerate(found):
        if not names:
            raise ValueError(f"backbone {i} ({backbones[i]}) has no layer: give -le {i}.LAYER or {i}.auto")
    return [None if names == ["auto"] else names for names in found]


def weights_per_member(given: Sequence[str], count: int) -> dict[int, str | None]:
    """Member number -> path, "default" or None ("none": random), from `[I.]PATH`.

    With one member a path is taken as it is where there is such a file.
    """
    found: dict[int, str | None] = {}
    for text in given:
        match = _INDEXED.fullmatch(text)
        if count == 1 and (match is None or os.path.exists(text)):
            index, source = 0, text
        elif match is None:
            raise ValueError(f"weights {text!r} do not say which of the {count} members they are for: I.PATH")
        else:
            index, source = int(match[1]), match[2]
        if index >= count:
            raise ValueError(f"weights {text!r}: the members are numbered 0 to {count - 1}")
        if index in found:
            raise ValueError(f"weights are given twice for member {index}")
        if source not in _NO_FILE and not os.path.isfile(source):
            raise FileNotFoundError(f"no such weights file: {source}")
        found[index] = None if source == "none" else source
    return found
