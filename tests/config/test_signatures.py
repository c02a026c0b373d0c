"""Signatures as schemas: keys, values, and what is said of those that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from ensemblead.config.documents import Problems, Source, read_source
from ensemblead.config.signatures import (
    MismatchError,
    Parameter,
    check_keys,
    check_value,
    fitted_to,
    parameters,
)


class TestValues:
    @pytest.mark.parametrize(
        ("value", "hint", "expected"),
        [
            (3, int, 3),
            (3, float, 3.0),
            (0.5, float, 0.5),
            ("x", str, "x"),
            (True, bool, True),
            (None, int | None, None),
            ([1, 2], int | tuple[int, int] | None, (1, 2)),
            ((1, 2), int | tuple[int, int] | None, (1, 2)),
            (["a", "b"], Sequence[str], ["a", "b"]),
            (["a", "b"], str | Sequence[str], ["a", "b"]),
            ([1, 2], Sequence[float], [1.0, 2.0]),
            ([], list[str], []),
            ("auto", int | Sequence[int] | Literal["auto"], "auto"),
            ({"a": 1}, Any, {"a": 1}),
            ({"a": 1}, Mapping[str, float], {"a": 1.0}),
            (Path("a"), str | Path, Path("a")),
        ],
    )
    def test_what_fits(self, value: Any, hint: Any, expected: Any) -> None:
        found = fitted_to(value, hint)
        assert found == expected
        assert type(found) is type(expected)

    @pytest.mark.parametrize(
        ("value", "hint", "wanted"),
        [
            (True, int, "a whole number"),
            (1.0, int, "a whole number"),
            ("1", float, "a number"),
            (1, bool, "true or false"),
            (0, str, "a string"),
            (0, None | str, "a string or null"),
            ([1, 2, 3], int | tuple[int, int] | None, "a whole number, a list of 2 or null"),
            ("layer2", Sequence[str], "a list of strings"),
            ([1], Sequence[str], "a list of strings"),
            ("mx", Literal["max", "topk"], '"max" or "topk"'),
            (1, Literal[True], "true"),
            ({"a": "b"}, dict[str, int], "a whole number"),
            (3, dict[str, int], ""),
            ("a", Path, ""),
        ],
    )
    def test_what_does_not(self, value: Any, hint: Any, wanted: str) -> None:
        with pytest.raises(MismatchError) as caught:
            fitted_to(value, hint)
        assert str(caught.value) == wanted

    def test_numbers_that_yaml_takes_for_text(self, tmp_path: Path) -> None:
        pytest.importorskip("yaml")
        (tmp_path / "c.yaml").write_text("rate: 1e-3\ncount: 1e3\n")
        source = read_source(tmp_path / "c.yaml")
        problems = Problems(source)
        assert check_value(source.value["rate"], float, ("rate",), problems) == "1e-3"
        check_value(source.value["count"], int, ("count",), problems)
        assert "line 1: rate must be a number" in problems.lines[0]
        assert "YAML reads 1e-3 as text; write 0.001" in problems.lines[0]
        assert "YAML reads" not in problems.lines[1]


def build(size: int, *, score: Literal["max", "topk"] = "max", rate: float = 0.5, **more: Any) -> None:
    """A signature for the tests."""


def test_a_signature_is_a_schema() -> None:
    known = parameters(build)
    assert list(known) == ["size", "score", "rate"]
    assert known["size"] == Parameter(int, Parameter.NONE)
    assert known["size"].required
    assert not known["rate"].required
    problems = Problems(Source({}))
    assert check_keys({"size": 1, "rate": 2}, known, (), problems)
    assert not check_keys({"scor": "max"}, known, ("a", 0), problems)
    assert problems.lines == [
        "configuration: a[0].scor is an unknown key; did you mean score?",
        "configuration: a[0] has no 'size', which must be given",
    ]
    with pytest.raises(ValueError, match=r"has 2 problems:\n1\) a\[0\]\.scor is .*\n2\) a\[0\] has"):
        problems.raise_any()


def test_hints_that_only_type_checkers_know_leave_values_to_the_callable() -> None:
    class Later:
        def __init__(self, size: Unknown = 3) -> None:  # type: ignore[name-defined]  # noqa: F821
            self.size = size

    assert parameters(Later)["size"] == Parameter(Any, 3)
