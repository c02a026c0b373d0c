"""Arguments as plain Python numbers, so that they can be compared, saved and trusted."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any


def whole_number(name: str, value: Any, minimum: int | None = None) -> int:
    """`value` as an int: any integer, NumPy's too, but no bool.

    Raises TypeError for anything else, ValueError below `minimum`.
    """
    try:
        # NumPy's bool refuses to be an index, Python's does not.
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """Near matches among known names, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(str(wrong), names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names) or 'none'}"
