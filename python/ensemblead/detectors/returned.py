"""Values that a method of one's own returns, checked where they are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from ensemblead.calibration import NormalSample
from ensemblead.detectors.parts import Fitted, Scores, Seen


def check_state_class(cls: type) -> None:
    """Raise TypeError for a method without `State`, or with one that is no dataclass."""
    state = getattr(cls, "State", None)
    if not (isinstance(state, type) and is_dataclass(state)):
        seen = "nothing" if state is None else repr(state)
        raise TypeError(f"{cls.__name__}.State must be a dataclass of what the method learns, got {seen}")


def check_trained(method: Any, state: Any) -> None:
    """Raise TypeError for what `train` returned if it is no `State`."""
    cls = type(method)
    if not isinstance(state, cls.State):
        raise TypeError(
            f"{cls.__name__}.train must return a {cls.State.__name__}, got {type(state).__name__}; "
            "the sample and the warnings are given"
        )


def check_fitted(part: Any, fitted: Any) -> Fitted:
    """What a part has learned. Raises TypeError for something else, and for what cannot be used."""
    name = type(part).__name__
    if not isinstance(fitted, Fitted):
        raise TypeError(
            f"{name}.start must return an object whose finish returns a Fitted(state, sample), got "
            f"{type(fitted).__name__}"
        )
    if not isinstance(fitted.sample, NormalSample):
        raise TypeError(
            f"the sample of {name}'s Fitted must be a NormalSample, got {type(fitted.sample).__name__}"
        )
    if not isinstance(fitted.warnings, Mapping):
        raise TypeError(
            f"the warnings of {name}'s Fitted must be a mapping from a kind to a message, got "
            f"{type(fitted.warnings).__name__}"
        )
    if fitted.state is None:
        raise TypeError(f"the state of {name}'s Fitted must be what was learned, got None")
    for place, tensor in tensors_of(fitted.state):
        if tensor.requires_grad:
            raise TypeError(f"{name} must learn a state without gradients, got one in {place}: detach() it")
    return fitted


def check_scores(method: Any, scores: Any, seen: Seen) -> Scores:
    """What `scores` returned for a batch. Raises TypeError for another kind, ValueError for wrong shapes."""
    name = f"{type(method).__name__}.scores"
    if not isinstance(scores, Scores):
        raise TypeError(f"{name} must return Scores(grids), got {type(scores).__name__}")
    for field, ndim, shape in (("grids", 3, "[B, h, w]"), ("images", 1, "[B]")):
        value = getattr(scores, field)
        if value is None and field == "images":
            continue
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: {field} must be a tensor {shape}, got {type(value).__name__}")
        if value.ndim != ndim or len(value) != len(seen):
            raise ValueError(
                f"{name}: {field} must be {shape} with B = {len(seen)}, got shape {tuple(value.shape)}"
            )
    return scores


def tensors_of(value: Any, place: str = "state") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a state, and where they are."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from tensors_of(item, f"{place}[{i}]")
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name, None), f"{place}.{field.name}")
