"""Checks of constructors and descriptions."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from ensemblead.config.registry import create
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.saving import arguments
from ensemblead.ensembles.checks.subject import (
    BrokenPromiseError,
    NotApplicableError,
    Subject,
    children,
    methods,
    random_states,
)


def parameters_are_kept(subject: Subject) -> None:
    """Every parameter of the constructor is an attribute of its name, and makes the same detector again."""
    for detector in _tree(subject.unfitted()):
        cls = type(detector)
        missing = [name for name in inspect.signature(cls).parameters if not hasattr(detector, name)]
        if missing:
            raise BrokenPromiseError(f"a {cls.__name__} has no attribute {missing[0]}")
    for method in methods(subject.unfitted()):
        given = arguments(method)
        if "device" not in given:
            raise BrokenPromiseError(f"the constructor of {type(method).__name__} does not take device")
        kept = arguments(type(method)(**given))
        for name, value in given.items():
            if not _same(kept[name], value):
                raise BrokenPromiseError(
                    f"{type(method).__name__}({name}={value!r}) has {name} {kept[name]!r}"
                )


def construction_is_light(subject: Subject) -> None:
    """A constructor draws no random numbers from a global state, and loads no network."""
    for method in methods(subject.unfitted()):
        before = random_states()
        twin = type(method)(**arguments(method))
        if random_states() != before:
            raise BrokenPromiseError(f"constructing a {type(method).__name__} changed a global random state")
        if any(network.is_loaded for network in twin._networks()):
            raise BrokenPromiseError(f"constructing a {type(method).__name__} loaded its network")


def description_is_inverse(subject: Subject) -> None:
    """`ead.create(detector.describe())` makes a detector of the same class and the same parameters."""
    detector = subject.unfitted()
    try:
        description = detector.describe()
    except ValueError as error:  # a module as backbone, a state dict as weights
        raise NotApplicableError(str(error)) from error
    created = create(description)
    again = created.describe()
    if type(created) is not type(detector):
        raise BrokenPromiseError(
            f"a {type(created).__name__} was made from the description of a {subject.name}"
        )
    differing = [name for name in {**description, **again} if description.get(name) != again.get(name)]
    differing += _differing(detector, created)
    if differing:
        raise BrokenPromiseError(f"the detector made has another {differing[0]}")


def _differing(one: Detector, other: Detector) -> list[str]:
    """The parameters in which two trees of detectors differ."""
    pairs = zip(_tree(one), _tree(other), strict=True)
    return [
        name
        for first, second in pairs
        for name in inspect.signature(type(first)).parameters
        if not _same(getattr(second, name), getattr(first, name))
    ]


def _tree(detector: Detector) -> list[Detector]:
    return [detector, *(below for child in children(detector) for below in _tree(child))]


def _same(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, Detector):
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is not type(other):
        return False
    return bool(np.all(one == other))
