"""Temporary."""

from __future__ import annotations

import importlib
from typing import Any

_classes: dict[str, Any] = {}
_names: dict[type, str] = {}
_PLACES = {
    "PatchCore": "ensemblead.detectors.patchcore",
    "PaDiM": "ensemblead.detectors.padim",
    "BackboneEnsemble": "ensemblead.ensembles.backbones",
    "TiledEnsemble": "ensemblead.ensembles.tiles",
}


def register(name: str) -> Any:
    def enter(cls: Any) -> Any:
        if name in _classes:
            raise ValueError(f"a class is registered as {name!r} already: {_classes[name].__name__}")
        _classes[name] = cls
        _names[cls] = name
        return cls

    return enter


def registered_class(name: str) -> Any:
    if name not in _classes and name in _PLACES:
        importlib.import_module(_PLACES[name])
    return _classes[name]


def registered_name(cls: type) -> str:
    return _names[cls]


def registered() -> dict[str, Any]:
    return dict(_classes)


def describe(obj: Any) -> dict[str, Any]:
    return {}
