"""Arguments as plain Python numbers that can be compared, saved and trusted; hints for wrong names."""

from __future__ import annotations

import difflib
import numbers
import operator
import sys
from collections.abc import Iterable
from typing import Any

_LARGEST_FLOAT32 = (2.0 - 2.0**-23) * 2.0**127


def whole_number(name: str, value: Any, minimum: int | None = None) -> int:
    """`value` as an int: any integer, NumPy's too, but no bool.

    Raises TypeError for anything else, ValueError below `minimum`.
    """
    number = _as_int(value)
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def positive_number(name: str, value: Any) -> float:
    """`value` as a float: an int or a float, positive and finite.

    Raises TypeError for anything else, ValueError out of that range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value <= sys.float_info.max:  # an int can be larger
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def finite_number(name: str, value: Any) -> float:
    """`value` as a float: any real number, NumPy's too, that is finite in float32.

    Raises TypeError for anything else, ValueError out of that range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number: Any = value  # a huge int has no float
    if not abs(number) <= _LARGEST_FLOAT32:
        raise ValueError(f"{name} must be finite, got {number}")
    return float(number)


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """`value` if it is one of the known names; raises ValueError, with near matches, for anything else."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        near = near_names(value, names)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}{hint}")
    return value


def pair(name: str, value: Any, minimum: int | None = None) -> tuple[int, int]:
    """`(h, w)` of a pair of integers, or of one that counts for both; errors as for `whole_number`."""
    size = size_or_pair(name, value, minimum)
    return size if isinstance(size, tuple) else (size, size)


def size_or_pair(name: str, value: Any, minimum: int | None = None) -> int | tuple[int, int]:
    """`value` as an int or a pair `(h, w)` of them, as it was given; errors as for `whole_number`."""
    several = isinstance(value, (tuple, list))
    sides = [_as_int(side) for side in (value if several else (value,))]
    if any(side is None for side in sides):
        raise TypeError(f"{name} must be a whole number or a pair (h, w) of them, got {value!r}")
    known = [side for side in sides if side is not None]
    if several and len(known) != 2:
        raise ValueError(f"{name} must be a whole number or a pair (h, w) of them, got {value!r}")
    if minimum is not None and min(known) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return (known[0], known[1]) if several else known[0]


def part_of(name: str, value: Any) -> tuple[int, int]:
    """`(k, n)`, part k of n, as it was given; the first is part 1.

    Raises TypeError for anything but a pair of whole numbers, ValueError where k is not in 1..n.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (k, n), part k of n, got {value!r}")
    number, count = (whole_number(name, one, 1) for one in value)
    if number > count:
        raise ValueError(f"{name} must be part 1 to {count} of {count}, got {number}")
    return number, count


def in_part(index: int, part: tuple[int, int]) -> bool:
    """Whether the item at `index` of a list belongs to part k of n: every n-th item, from the k-th on."""
    number, count = part
    return index % count == number - 1


def _as_int(value: Any) -> int | None:
    """Any integer; None for anything else."""
    try:
        # NumPy's bool refuses to be an index, Python's does not.
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def near_names(wrong: object, known: Iterable[str], most: int = 3) -> list[str]:
    """Up to `most` of the known names that resemble a wrong one, the nearest first.

    Those that differ in capitals alone are the only ones.
    """
    text, names = str(wrong), list(known)
    same = [name for name in names if name.casefold() == text.casefold()]
    return same[:most] or difflib.get_close_matches(text, names, n=most)


def did_you_mean(wrong: object, known: Iterable[str]) -> str:
    """The near matches among known names as a hint, or all of them."""
    names = list(known)
    near = near_names(wrong, names)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names) or 'none'}"


def some_of(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
