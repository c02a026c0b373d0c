"""What `fit` and `evaluate --config` are told about a detector, and the detector that it describes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ensemblead.common.validation import did_you_mean
from ensemblead.config.schema import Problems, Source, read_source

if TYPE_CHECKING:
    from ensemblead.detectors import Detector

_INDEXED = re.compile(r"(\d+)\.(.+)")
_NO_FILE = ("default", "none")  # instead of a path of weights


@dataclass(frozen=True)
class _Method:
    type: str
    backbone: str  # where none is named
    layers: tuple[str, ...]
    own: tuple[str, ...]  # the options that no other method has


_METHODS = {
    "patchcore": _Method(
        "PatchCore",
        "wide_resnet50_2",
        ("layer2", "layer3"),
        (
            "patch_size",
            "pretrain_dim",
            "target_dim",
            "aggregation",
            "coreset_fraction",
            "num_neighbors",
            "score",
            "reweight_neighbors",
            "index",
        ),
    ),
    "padim": _Method("PaDiM", "resnet18", ("layer1", "layer2", "layer3"), ("num_dimensions",)),
}


@dataclass
class DetectorOptions:
    """A detector as the command line or a configuration file describes it; None is "not said".

    The fields are the keys of a configuration file. `layers` and `weights` are written `I.NAME` where there
    are several backbones. `resize` and `image_size` are pixels, `HxW` or "none"; `tile_size`, which makes a
    `TiledEnsemble` with that `image_size`, and `stride` are pixels or `HxW`.
    """

    preset: str | None = None
    method: str | None = None
    backbone: list[str] | None = None
    layers: list[str] | None = None
    weights: list[str] | None = None
    resize: str | None = None
    image_size: str | None = None
    patch_size: int | None = None
    pretrain_dim: str | None = None
    num_dimensions: int | None = None
    target_dim: int | None = None
    aggregation: str | None = None
    coreset_fraction: float | None = None
    num_neighbors: int | None = None
    score: str | None = None
    reweight_neighbors: int | None = None
    index: str | None = None
    fusion: str | None = None
    device: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    seed: int | None = None
    compile: bool | None = None
    tile_size: str | None = None
    stride: str | None = None
    shared_tiles: bool | None = None
    tile_score: str | None = None
    tile_normalization: str | None = None
    # A detector by its type, where a configuration file describes one so; `resolve` has checked it.
    node: Mapping[str, Any] | None = None

    def over(self, below: DetectorOptions) -> DetectorOptions:
        """These, and where they say nothing, those below."""
        merged = DetectorOptions()
        for one in fields(self):
            said = getattr(self, one.name)
            setattr(merged, one.name, getattr(below, one.name) if said is None else said)
        return merged


def read_config(path: str | os.PathLike[str]) -> DetectorOptions:
    """Options from a YAML or JSON file: one mapping, whose keys are the fields of `DetectorOptions`; or, with
    a key `type`, a detector as `ensembles.description` has it. Paths of weights are relative to the file.

    Raises FileNotFoundError, and ValueError for what cannot be parsed, unknown keys (near matches are named)
    and values of the wrong kind: all of them, with their lines.
    """
    return options_of(read_source(path))


def options_of(source: Source) -> DetectorOptions:
    """As `read_config`, for a file that has been read."""
    document = source.value
    if not isinstance(document, dict):
        raise ValueError(f"{source.name} must hold one mapping, got {type(document).__name__}")
    problems = Problems(source)
    options = DetectorOptions()
    if "type" in document:
        from ensemblead.ensembles.description import resolve

        options.node = resolve(document, (), problems)
    else:
        for key, value in document.items():
            if key not in _READERS:
                problems.add((key,), f"is an unknown key; {did_you_mean(key, _READERS)}")
                continue
            try:
                setattr(options, key, _READERS[key](value))
            except ValueError as error:
                problems.add((key,), f"must be {error}, got {json.dumps(value, default=str)}")
    problems.raise_any()
    if options.weights is not None:
        options.weights = [_placed_weights(text, source) for text in options.weights]
    return options


def _placed_weights(text: str, source: Source) -> str:
    """`[I.]PATH` of a configuration file, with the path as the program can use it."""
    match = _INDEXED.fullmatch(text)
    if match is None or os.path.exists(source.place(text)):
        number, path = "", text
    else:
        number, path = f"{match[1]}.", match[2]
    return text if path in _NO_FILE else number + source.place(path)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError("a string or a list of strings")
    return value


def _size(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list) and len(value) == 2:
        return "x".join(str(_size_side(side)) for side in value)
    return value if isinstance(value, str) else str(_size_side(value))


def _size_side(value: Any) -> int:
    try:
        return _integer(value)
    except ValueError:
        raise ValueError("a number of pixels, a pair [H, W] or null") from None


def _auto_or_integer(value: Any) -> str:
    if value == "auto":
        return "auto"
    try:
        return str(_integer(value))
    except ValueError:
        raise ValueError('a whole number or "auto"') from None


_READERS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("backbone", "layers", "weights"), _texts),
    **dict.fromkeys(("resize", "image_size", "tile_size", "stride"), _size),
    **dict.fromkeys(
        (
            "patch_size",
            "num_dimensions",
            "target_dim",
            "num_neighbors",
            "reweight_neighbors",
            "batch_size",
            "seed",
        ),
        _integer,
    ),
    **dict.fromkeys(
        ("preset", "method", "aggregation", "score", "index", "fusion", "device", "precision"), _text
    ),
    **dict.fromkeys(("tile_score", "tile_normalization"), _text),
    "shared_tiles": _flag,
    "coreset_fraction": _number,
    "compile": _flag,
    "pretrain_dim": _auto_or_integer,
}


# From options to a detector


def build_detector(options: DetectorOptions) -> Detector:
    """An unfitted `PatchCore`, a `BackboneEnsemble` of several, or what `node` describes. Networks are not
    loaded yet.
    """
    from ensemblead.ensembles.description import build, changed, construct

    if options.node is None:
        return build(describe(options))
    said = [one.name for one in fields(options) if getattr(options, one.name) is not None]
    beside = [name for name in said if name not in ("node", "device", "seed")]
    if beside:
        raise ValueError(f"a configuration with a type describes all of the detector: leave out {beside[0]}")
    changes: dict[str, Any] = {name: getattr(options, name) for name in ("device", "seed") if name in said}
    return construct(changed(options.node, changes))


def describe(options: DetectorOptions) -> dict[str, Any]:
    """What the options say, as a description that `ensembles.description` builds."""
    if options.tile_size is not None:
        return _describe_tiled(options)
    lost = [name for name in _TILE_OPTIONS if getattr(options, name) is not None]
    if lost:
        raise ValueError(f"{lost[0]} is for tiles: give tile_size too")
    from ensemblead.ensembles.presets import ENSEMBLE_TARGET_DIM

    method = _method(options)
    backbones, layers, common = _network_options(options, method)
    several = len(backbones) > 1
    if several and "target_dim" in method.own:
        common.setdefault("target_dim", ENSEMBLE_TARGET_DIM)
    if not several and options.fusion is not None:
        raise ValueError(f"fusion is for several backbones, got {options.fusion!r} with one")
    weights = weights_per_member(options.weights or [], len(backbones))
    members = [
        {"type": method.type, "backbone": backbone, "layers": list(names)}
        | {"weights": weights.get(i, "default"), **common}
        for i, (backbone, names) in enumerate(zip(backbones, layers, strict=True))
    ]
    if not several:
        return members[0]
    return {"type": "BackboneEnsemble", "members": members, "fusion": options.fusion or "calibrated"}


# Options of a `TiledEnsemble`, and its arguments.
_TILE_OPTIONS = {
    "stride": "stride",
    "shared_tiles": "shared",
    "tile_score": "score",
    "tile_normalization": "normalization",
}


def _describe_tiled(options: DetectorOptions) -> dict[str, Any]:
    if options.resize is not None:
        raise ValueError(
            f"resize has no place with tile_size, got {options.resize!r}: image_size alone gives the size of "
            "the image that is cut into tiles"
        )
    given = {to: getattr(options, name) for name, to in _TILE_OPTIONS.items()}
    given |= {"tile_size": options.tile_size, "image_size": options.image_size}
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("tile_size", "stride", "image_size"):
        if name in given:
            size = parse_size(name, given[name])
            given[name] = list(size) if isinstance(size, tuple) else size
    for name in ("tile_size", "stride"):
        if name in given and given[name] is None:
            raise ValueError(f"{name} must be pixels or HxW, got none")
    # Half a tile, where nothing is said: TiledEnsemble's own default is that of tiles of 256.
    size = given["tile_size"]
    half = max(1, size // 2) if isinstance(size, int) else [max(1, side // 2) for side in size]
    given.setdefault("stride", half)
    nothing = dict.fromkeys(("tile_size", "image_size", *_TILE_OPTIONS))
    return {"type": "TiledEnsemble", "member": describe(replace(options, **nothing))} | given


def _method(options: DetectorOptions) -> _Method:
    """The method, if all options given are options of it."""
    name = "patchcore" if options.method is None else options.method
    if name not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {name!r}")
    if options.preset is not None and name != "patchcore":
        raise ValueError(f"the preset {options.preset!r} is of patchcore, got method {name!r}")
    for other, method in _METHODS.items():
        wrong = [option for option in method.own if getattr(options, option) is not None]
        if wrong and other != name:
            raise ValueError(f"{wrong[0]} is an option of {other}, not of {name}")
    return _METHODS[name]


def _network_options(
    options: DetectorOptions, method: _Method
) -> tuple[Sequence[str], Sequence[Sequence[str]], dict[str, Any]]:
    """Backbones, the layers of each, and the method's other arguments."""
    common = _common(options)
    if options.preset is None:
        backbones = options.backbone or [method.backbone]
        return backbones, layers_per_member(options.layers, backbones, method.layers), common
    from ensemblead.ensembles.presets import PRESETS

    if options.preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {options.preset!r}")
    if options.backbone is not None or options.layers is not None:
        raise ValueError(f"the preset {options.preset!r} brings its backbones and layers; give no others")
    preset = PRESETS[options.preset]
    return preset.backbones, preset.layers, {**preset.common, **common}


# What the command line writes in a way of its own.
_WRITTEN = ("resize", "image_size", "pretrain_dim")


def _common(options: DetectorOptions) -> dict[str, Any]:
    own = (
        "preset",
        "method",
        "backbone",
        "layers",
        "weights",
        "fusion",
        "resize",
        "image_size",
        "pretrain_dim",
        "node",
    )
    names = [one.name for one in fields(options) if one.name not in own]
    common = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    for name in _WRITTEN[:2]:
        if getattr(options, name) is not None:
            common[name] = parse_size(name, getattr(options, name))
    if options.pretrain_dim is not None:
        common["pretrain_dim"] = _parse_pretrain_dim(options.pretrain_dim)
    return common


def parse_size(name: str, text: str) -> int | tuple[int, int] | None:
    """ "256" -> 256, "256x320" -> (256, 320), "none" -> None."""
    if text.lower() == "none":
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{name} must be pixels, HxW or none, got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _parse_pretrain_dim(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"pretrain_dim must be a positive whole number or auto, got {text!r}")
    return int(text)


def layers_per_member(
    layers: Sequence[str] | None,
    backbones: Sequence[str],
    default: tuple[str, ...] = _METHODS["patchcore"].layers,
) -> list[tuple[str, ...]]:
    """Every backbone's layers, from names written `I.LAYER` (the index may be left out with one backbone), or
    the default ones.

    Raises ValueError where an index is missing, too large, or never given.
    """
    count = len(backbones)
    if not layers:
        return [default] * count
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
            raise ValueError(f"backbone {i} ({backbones[i]}) has no layer: give -le {i}.LAYER")
    return [tuple(names) for names in found]


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
