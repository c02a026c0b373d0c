"""Detectors and their like as one line of text."""

from __future__ import annotations

import inspect
from typing import Any

_LONGEST = 80  # characters of a parameter
_MOST = 8  # strings of a list


def constructor_text(obj: Any) -> str:
    """One line: an object's class, and the parameters of its constructor that are not the default."""
    own: dict[str, Any] = getattr(obj, "constructor_arguments", dict)()
    given = []
    for name, parameter in inspect.signature(type(obj)).parameters.items():
        value = own[name] if name in own else getattr(obj, name, parameter.default)
        if repr(value) != repr(parameter.default):
            given.append(f"{name}={_short(value)}")
    return f"{type(obj).__name__}({', '.join(given)})"


def _short(value: Any) -> str:
    """Of a parameter, in a word where it is long, as a network."""
    text = repr(value)
    if isinstance(value, (list, tuple)) and len(value) > _MOST and all(isinstance(one, str) for one in value):
        text = f"[{value[0]!r} and {len(value) - 1} more]"
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(_short(one) for one in value)}]"
    elif hasattr(type(value), "predict_batches"):  # a detector
        text = text.rsplit(", ", 1)[0]  # without its state
    elif "\n" in text or len(text) > _LONGEST:
        text = type(value).__name__
    return text
