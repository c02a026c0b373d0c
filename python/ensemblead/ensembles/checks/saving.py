"""Checks of saved models."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from ensemblead.common.errors import DamagedModelError
from ensemblead.detectors.method import Method
from ensemblead.ensembles.checks.subject import (
    BrokenPromiseError,
    NotApplicableError,
    Subject,
    methods,
    require_alike,
)


def saved_models_are_equal(subject: Subject) -> None:
    """Saved and loaded, once or twice, a detector has the same threshold and, but for rounding, scores."""
    detector = subject.shared
    for what in ("saved and loaded", "saved and loaded twice"):
        detector = subject.saved_and_loaded(detector)
        if type(detector) is not type(subject.shared):
            raise BrokenPromiseError(f"{what}, it is a {type(detector).__name__}")
        if detector.threshold_ != subject.shared.threshold_:
            raise BrokenPromiseError(
                f"{what}, the threshold is {detector.threshold_:.6g}, not {subject.shared.threshold_:.6g}"
            )
        require_alike(subject.shared, detector.predict(subject.test), subject.predictions, what)
        if not np.array_equal(detector._fingerprints, subject.shared._fingerprints):
            raise BrokenPromiseError(f"{what}, it does not know the images that it has learned")


def incomplete_states_are_refused(subject: Subject) -> None:
    """A state that lacks a field is not saved."""
    detector = subject.fitted()
    for method in _of_each_class(detector):
        state = method._state_to_save()
        if not is_dataclass(state):
            raise BrokenPromiseError(
                f"the state of a {type(method).__name__} is a {type(state).__name__}, no dataclass"
            )
        for field in fields(state):
            lacking = copy.copy(state)
            object.__delattr__(lacking, field.name)
            if hasattr(lacking, field.name):  # the default is there
                continue
            with _saving(method, lacking):
                try:
                    detector.save(subject.new_folder() / "model")
                except (TypeError, ValueError):
                    continue
            raise BrokenPromiseError(
                f"a {type(method).__name__} was saved without the field {field.name} of its state"
            )


def nan_is_refused(subject: Subject) -> None:
    """A state with NaN is refused, by DamagedModelError, when it is loaded, if not when it is saved."""
    detector, tried = subject.fitted(), 0
    for method in _of_each_class(detector):
        for name, spoiled in _with_nan(method._state_to_save(), "state"):
            tried += 1
            with _saving(method, spoiled):
                try:
                    subject.saved_and_loaded(detector)
                except (TypeError, ValueError, DamagedModelError):
                    continue
            raise BrokenPromiseError(f"a {type(method).__name__} was saved and loaded with NaN in {name}")
    if not tried:
        raise NotApplicableError("the state has no floating-point numbers")


def _of_each_class(detector: Any) -> list[Method]:
    """One method of each class in a detector."""
    return list({type(method): method for method in methods(detector)}.values())


@contextmanager
def _saving(method: Any, state: Any) -> Iterator[None]:
    """Let the method save another state than its own."""
    method._state_to_save = lambda: state
    try:
        yield
    finally:
        del method._state_to_save


def _with_nan(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Copies of a state, each with NaN in one place; and where."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
        spoiled = value.clone(memory_format=torch.contiguous_format)
        spoiled.view(-1)[0] = math.nan
        yield name, spoiled
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
        array = value.copy()
        array.flat[0] = math.nan
        yield name, array
    elif isinstance(value, float):
        yield name, math.nan
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            for place, spoiled in _with_nan(item, f"{name}[{i}]"):
                yield place, (*value[:i], spoiled, *value[i + 1 :])
    elif is_dataclass(value):
        for field in fields(value):
            for place, spoiled in _with_nan(getattr(value, field.name), f"{name}.{field.name}"):
                whole = copy.copy(value)
                object.__setattr__(whole, field.name, spoiled)
                yield place, whole
