"""Plain values out of a pickle, without running anything.

A pickle is a program for a small machine with a stack, some of whose instructions import and call. Here the
instructions are read one by one, by `pickletools.genops`, which runs none of them. Those that build plain
values are followed; at any other the file is refused.
"""

from __future__ import annotations

import pickletools
from typing import Any

# Parameters take some hundred bytes.
MOST_BYTES = 1 << 20
# A value can hold another one many times, at a byte or two each. So it is counted as if written out: values,
# and characters of texts.
MOST_VALUES = 1 << 18
_DEEPEST = 50
_MOST_BITS = 1 << 13  # Python refuses to write out numbers of twice as many

_NUMBERS = frozenset(("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"))
_TEXTS = frozenset(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_PUT, _GET = frozenset(("PUT", "BINPUT", "LONG_BINPUT")), frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset(("PROTO", "FRAME"))
_MARK = object()


def read_plain_pickle(data: bytes, what: str) -> Any:
    """The value of a pickle of dicts with names, lists, tuples, strings, numbers, bools and None.

    Args:
        data: the pickle, of any protocol.
        what: its name in errors.

    Raises ValueError for a pickle that holds anything else, naming the first instruction that is refused, and
    for one that is damaged.

    >>> read_plain_pickle(b"}q\\x00X\\x01\\x00\\x00\\x00kK\\x05s.", "an example")
    {'k': 5}
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"{what} must have at most {MOST_BYTES} bytes, got {len(data)}")
    machine = _Machine(what)
    end = 0
    try:
        for operation, argument, position in pickletools.genops(data):
            machine.step(operation.name, argument, position or 0)
            end = (position or 0) + 1
        value = machine.result()
        check_extent(value)
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{what} is no whole pickle of plain values: {error}") from error
    if end != len(data):
        raise ValueError(f"{what} is no whole pickle: {len(data) - end} bytes follow its end")
    return value


def check_extent(value: Any) -> None:
    """Raise ValueError for a value that is large once it is written out, as errors do it, or holds itself."""
    waiting, extent = [(value, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"its values lie more than {_DEEPEST} deep in each other")
        extent += 1
        if isinstance(one, int):
            if one.bit_length() > _MOST_BITS:
                raise ValueError(f"it has a number of {one.bit_length()} bits")
            extent += one.bit_length() // 3
        elif isinstance(one, (str, bytes, bytearray, list, tuple, dict)):
            extent += len(one)
        if extent > MOST_VALUES:
            raise ValueError(f"it is of more than {MOST_VALUES} values and characters")
        if isinstance(one, (list, tuple)):
            waiting += [(inner, depth + 1) for inner in one]
        elif isinstance(one, dict):
            waiting += [(inner, depth + 1) for pair in one.items() for inner in pair]


class _RefusedError(Exception):
    pass


class _Machine:
    def __init__(self, what: str) -> None:
        self._what = what
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, position: int) -> None:
        stack = self._stack
        if name in _NUMBERS or name in _TEXTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _PUT:
            self._memo[argument] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack.append(tuple(reversed([self._pop() for _ in range(_TUPLES[name])])))
        elif name in ("TUPLE", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._collect(name)
        elif name not in _IGNORED and name != "STOP":
            raise _RefusedError(
                f"{self._what} is refused: its instruction {name} at byte {position} makes more than plain "
                "values, and might run code"
            )

    def _collect(self, name: str) -> None:
        """Instructions that take several values off the stack."""
        if name in ("APPEND", "SETITEM"):
            items = [self._pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
        else:
            items = []
            while (item := self._stack.pop()) is not _MARK:
                items.append(item)
            items.reverse()
        if name == "TUPLE":
            self._stack.append(tuple(items))
        elif name == "LIST":
            self._stack.append(items)
        elif name in ("APPEND", "APPENDS"):
            self._top(list).extend(items)
        else:
            if name == "DICT":
                self._stack.append({})
            # Before they are hashed: that of a deep tuple ends the process.
            if not all(isinstance(key, str) for key in items[::2]):
                raise TypeError("a key is no string")
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark stands where a value should")
        return value

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise TypeError(f"a {kind.__name__} should be there")
        return self._stack[-1]

    def result(self) -> Any:
        value = self._pop()
        if self._stack:
            raise ValueError("values are left over")
        return value
