"""The reader of plain pickles: what it reads, and that it runs nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblead.conversion.plain_pickle import MOST_BYTES, read_plain_pickle

VALUES: dict[str, Any] = {
    "text": "wide\u00e9 \U0001f600" * 90,
    "numbers": [0, 1, -1, 255, 256, 65536, 2**31, -(2**40), 2**2100, 0.1, float("-inf")],
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "nothing": [None, True, False, [], {}],
    "nested": {"a": {"b": [{"c": ("d", ["e"])}]}},
    "long": list(range(2000)),
}
VALUES["again"] = VALUES["nested"]  # by reference


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read(protocol: int) -> None:
    read = read_plain_pickle(pickle.dumps(VALUES, protocol), "a test")
    assert read == VALUES
    assert read["again"] is read["nested"]
    assert [type(one) for one in read["nothing"]] == [type(None), bool, bool, list, dict]


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = pickle.dumps({"k": Calls(os.system, f"touch {marker}")}, protocol)
    with pytest.raises(ValueError, match=r"a test is refused: its instruction \w*GLOBAL at byte \d+"):
        read_plain_pickle(hostile, "a test")
    assert not marker.exists()
    pickle.loads(hostile)
    assert marker.exists()  # so it would have


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.arange(3), {1, 2}, b"bytes", Path("a"), complex(1, 2), bytearray(b"a"), int]
)
def test_other_kinds_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="makes more than plain values, and might run code"):
        read_plain_pickle(pickle.dumps([value], pickle.HIGHEST_PROTOCOL), "a test")


def test_only_listed_instructions_are_followed() -> None:
    """Every instruction that pickle has, alone behind some values, is refused or damages nothing."""
    refused = 0
    for code in pickletools.opcodes:
        argument = {None: b""}.get(code.arg, b"a\nb\n" + bytes(20))
        try:
            read_plain_pickle(b"]](K\x01" + code.code.encode("latin-1") + argument + b".", "a test")
        except ValueError as error:
            refused += "is refused: its instruction" in str(error)
    calling = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
    others = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "POP"}
    for name in calling | others:
        (code,) = (one for one in pickletools.opcodes if one.name == name)
        argument = b"" if code.arg is None else b"a\nb\n"
        with pytest.raises(ValueError, match=f"its instruction {name} at byte 0"):
            read_plain_pickle(code.code.encode("latin-1") + argument + b".", "a test")
    assert refused >= len(calling)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"}",
        b"K\x01K\x02.",
        b"(.",
        b"a.",
        b"]K\x01u.",
        b"}(K\x01u.",
        b"}(K\x01K\x02u.",  # a key that is a number
        b"})" + b"\x85" * 100_000 + b"K\x01s.",  # a key as deep as the stack of a hash
        b"})" + b"q\x00h\x00\x86" * 40 + b"K\x01s.",  # a key of 2**40 values
        b"h\x07.",  # nothing kept under that number
        b"}X\xff\xff\xff\x7fa.",
        b"not a pickle at all",
        pickle.dumps(VALUES)[:-20],
        pickle.dumps(VALUES) + b"x",
    ],
)
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a test is no whole pickle|a test is refused"):
        read_plain_pickle(data, "a test")


def test_every_damaged_byte_gives_a_value_or_a_value_error() -> None:
    whole = pickle.dumps({"layers": ["a", "b"], "size": (3, 224, 224), "k": 1.5}, 4)
    generator = np.random.default_rng(0)
    for place in range(len(whole)):
        for _ in range(4):
            data = bytearray(whole)
            data[place] = generator.integers(256)
            with contextlib.suppress(ValueError):  # any other error fails the test
                read_plain_pickle(bytes(data), "a test")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"](K\x01e" + b"q\x00h\x00\x86" * 40 + b".", "of more than 262144 values"),
        (b"](X\x00\x02\x00\x00" + b"x" * 512 + b"q\x00" + b"h\x00" * 600 + b"e.", "values and characters"),
        (b"]q\x00h\x00a.", "more than 50 deep"),
        (pickle.dumps(2 ** (1 << 14)), "a number of 16385 bits"),
    ],
    ids=["by references", "one text many times", "a list of itself", "a number"],
)
def test_values_that_are_large_when_written_out_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_plain_pickle(data, "a test")


def test_large_files_are_refused() -> None:
    with pytest.raises(ValueError, match=f"a test must have at most {MOST_BYTES} bytes"):
        read_plain_pickle(pickle.dumps("x" * MOST_BYTES), "a test")
