"""Names: classes register under one, and are found by it without being imported by hand."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ensemblead.common.extras import EXTRAS, missing_extra
from ensemblead.common.other_names import parameter_hint
from ensemblead.common.validation import did_you_mean

# Modules of the library's own classes, imported when a name is asked for.
_MODULES = {
    "BackboneEnsemble": "ensemblead.ensembles.backbones",
    "FastFlow": "ensemblead.detectors.fastflow",
    "EfficientAD": "ensemblead.detectors.efficientad",
    "DRAEM": "ensemblead.detectors.draem",
    "PaDiM": "ensemblead.detectors.padim",
    "PatchCore": "ensemblead.detectors.patchcore",
    "ReverseDistillation": "ensemblead.detectors.reverse_distillation",
    "TiledEnsemble": "ensemblead.ensembles.tiles",
}
# Those that are no detectors.
_OTHERS = {
    "DriftMonitor": "ensemblead.monitoring.monitor",
    "Embedder": "ensemblead.retrieval.embedders",
    "EmbeddingEnsemble": "ensemblead.retrieval.ensemble",
}
_MODULES |= _OTHERS
# Other packages name their classes in an entry point of this group, so that no import is needed.
_ENTRY_POINTS = "ensemblead.detectors"


class UnknownNameError(LookupError, ValueError):
    """A name that no class is registered under."""


class UnregisteredClassError(LookupError, TypeError):
    """A class that has no name."""


_Class = TypeVar("_Class", bound=type)
_classes: dict[str, Any] = {}
_names: dict[type, str] = {}


def register(name: str) -> Callable[[_Class], _Class]:
    """Register a class under `name`: in descriptions, on the command line, and in its saved models.

    The class is known once its module is imported. A package makes it known without that by an entry point of
    the group `ensemblead.detectors`, of the same name.

    >>> import ensemblead as ead
    >>> @ead.register("MeanColour")
    ... class MeanColour:
    ...     def __init__(self, grid: int = 8) -> None:
    ...         self.grid = grid
    >>> ead.create({"type": "MeanColour", "grid": 4}).grid
    4

    An unknown keyword of its constructor raises a TypeError that names the near parameters.

    A class that is defined again at the same place, as by a notebook's cell that runs twice, takes its name.
    Raises ValueError for a name that another class has, and for a class that has a name.
    """

    def enter(cls: _Class) -> _Class:
        own = name in _MODULES and not cls.__module__.startswith("ensemblead.")
        known = _classes.get(name)
        if own or (known is not None and _place(known) != _place(cls)):
            other = " of ensemblead" if known is None else f": {known.__name__}"
            raise ValueError(f"a class is registered as {name!r} already{other}")
        if cls in _names:
            raise ValueError(f"{cls.__name__} is registered already, as {_names[cls]!r}")
        if "__init__" in vars(cls):
            explain_unknown_keywords(cls)
        _classes[name] = cls
        _names[cls] = name
        return cls

    return enter


def _place(cls: type) -> tuple[str, str]:
    """Where a class is defined: its module and its name there."""
    return cls.__module__, cls.__qualname__


def explain_unknown_keywords(cls: _Class) -> _Class:
    """Let a constructor answer a keyword that it does not take with what that is called here."""
    changed: Any = cls
    construct = changed.__init__
    known = inspect.signature(construct).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
        return cls
    keywords = [name for name, one in list(known.items())[1:] if one.kind is not one.POSITIONAL_ONLY]

    @functools.wraps(construct)
    def init(self: Any, /, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in keywords:
                hint = parameter_hint(name, keywords)
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}; {hint}")
        construct(self, *args, **given)

    changed.__init__ = init
    return cls


def registered_names() -> list[str]:
    """Every name that `registered_class` knows, sorted."""
    found = importlib.metadata.entry_points(group=_ENTRY_POINTS)
    return sorted({*_classes, *_MODULES, *(one.name for one in found)})


def detector_names() -> list[str]:
    """Every name but those of the library's classes that are no detectors, sorted."""
    return [name for name in registered_names() if name not in _OTHERS]


def registered_class(name: str) -> Any:
    """The class of a name; its module is imported if need be.

    Raises UnknownNameError for an unknown name (near matches named), MissingExtraError for a package that is
    not installed.
    """
    if name not in _classes:
        try:
            if name in _MODULES:
                importlib.import_module(_MODULES[name])
            else:
                for entry in importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name):
                    entry.load()
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise missing_extra(error.name, name) from error
    if name not in _classes:
        raise UnknownNameError(f"unknown type {name!r}; {did_you_mean(name, registered_names())}")
    return _classes[name]


def is_registered(cls: type) -> bool:
    """Whether a class has a name."""
    return cls in _names


def is_base(cls: type) -> bool:
    """Whether registered classes derive from a class, or are it."""
    return cls is not object and any(issubclass(one, cls) for one in _names)


def registered_name(cls: type) -> str:
    """The name of a class. Raises UnregisteredClassError for one that is not registered."""
    if cls not in _names:
        raise UnregisteredClassError(f"{cls.__name__} is not registered: decorate it with ead.register(NAME)")
    return _names[cls]
