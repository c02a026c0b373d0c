"""Numbers and sizes as arguments, and hints for wrong names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemblead.common.validation import did_you_mean, near_names, pair, size_or_pair, some_of, whole_number


def test_whole_numbers() -> None:
    assert type(whole_number("n", np.int16(3), 1)) is int
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        whole_number("n", 0, 1)
    for wrong in (True, np.True_, 1.0, "1", None):
        with pytest.raises(TypeError, match="n must be a whole number, got"):
            whole_number("n", wrong)


def test_sizes_and_pairs() -> None:
    assert size_or_pair("size", np.int64(3)) == 3
    assert size_or_pair("size", [3, np.uint8(4)]) == (3, 4)
    assert pair("size", 3) == (3, 3)
    assert pair("size", (3, 4)) == (3, 4)


@pytest.mark.parametrize("wrong", [1.5, (1, 2.0), True, (True, 1), "3", None, {1, 2}])
def test_what_is_no_size_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"size must be a whole number or a pair \(h, w\) of them, got"):
        pair("size", wrong)


@pytest.mark.parametrize("wrong", [(), (1,), (1, 2, 3)])
def test_a_pair_has_two(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"size must be a whole number or a pair \(h, w\) of them, got"):
        size_or_pair("size", wrong)


def test_sizes_have_a_minimum() -> None:
    with pytest.raises(ValueError, match=r"size must be at least 1, got \(1, 0\)"):
        pair("size", (1, 0), 1)


def test_hints() -> None:
    assert did_you_mean("sed", ["seed", "score"]) == "did you mean seed?"
    assert did_you_mean("xyz", ["seed", "score"]) == "there are: seed, score"
    assert did_you_mean("xyz", []) == "there are: none"
    assert near_names("sed", {"seed": 1, "seeds": 2, "x": 3}, most=1) == ["seed"]
    assert near_names("PADIM", ["PaDiM", "DRAEM"]) == ["PaDiM"]
    assert some_of("abc") == "a, b, c"
    assert some_of("abcdefg") == "a, b, c, d, e and 2 more"
