"""Configuration files and their values: lines, near matches, signatures as schemas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("yaml")

from ensemblead.config.schema import (
    MismatchError,
    Parameter,
    Problems,
    Source,
    check_keys,
    check_value,
    fitted_to,
    key_text,
    parameters,
    read_source,
)


def read(tmp_path: Path, text: str, name: str = "c.yaml") -> Source:
    (tmp_path / name).write_text(text)
    return read_source(tmp_path / name)


class TestReading:
    def test_values_and_lines(self, tmp_path: Path) -> None:
        source = read(
            tmp_path, "# a comment\nseed: 3\ndetectors:\n  - name: a\n    layers: [x, y]\n  - {name: b}\n"
        )
        assert source.value == {"seed": 3, "detectors": [{"name": "a", "layers": ["x", "y"]}, {"name": "b"}]}
        assert source.lines[("seed",)] == 2
        assert source.lines[("detectors", 0)] == 4
        assert source.lines[("detectors", 0, "layers")] == 5
        assert source.lines[("detectors", 1, "name")] == 6
        assert source.where(("detectors", 0, "layers", 1)).endswith("c.yaml, line 5: detectors[0].layers[1]")
        # What is not there is where the nearest thing above it is.
        assert source.where(("detectors", 1, "absent")).endswith("line 6: detectors[1].absent")

    def test_json_by_its_suffix(self, tmp_path: Path) -> None:
        source = read(tmp_path, '{\n\t"seed": 1e-3}', "c.json")
        assert (source.value, dict(source.lines)) == ({"seed": 0.001}, {})
        with pytest.raises(ValueError, match=r"c\.json is not JSON"):
            read(tmp_path, "seed: 3", "c.json")
        with pytest.raises(ValueError, match=r"c\.json is not JSON"):
            read(tmp_path, "[" * 100_000, "c.json")

    def test_anchors_and_merges(self, tmp_path: Path) -> None:
        source = read(tmp_path, "base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\n  list: [*b, *b]\n")
        both = {"x": 1, "y": 2}
        assert source.value == {"base": both, "more": {"x": 1, "y": 3, "list": [both, both]}}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: [1, 2\nb: 3", r"c\.yaml, line 2 is not YAML"),
            ("a: 1\nb: 2\na: 3", r"c\.yaml, line 3: the key 'a' is given twice"),
            ("a:\n  - {b: 1, b: 2}", r"line 2: the key 'b' is given twice"),
            ("a: &x [1, *x]", r"aliases must not go round"),
            ("a: !!python/object/apply:os.system ['true']", r"c\.yaml, line 1 is not YAML"),
            ("a: \x07", "is not YAML"),
            ("? [a, b]\n: 1", r"c\.yaml, line 1: keys must be names, got a list or a mapping"),
            ("a: 2024-13-45", r"c\.yaml holds a value that is not what it looks like: month must be in 1"),
            ("a: !!timestamp x", r"c\.yaml holds a value that is not what it looks like"),
            ("a: " + "[" * 5000, r"c\.yaml is nested too deeply"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read(tmp_path, text)

    def test_aliases_do_not_multiply(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
        with pytest.raises(ValueError, match="aliases must not go round or multiply"):
            read(tmp_path, "\n".join(lines))

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no such configuration file: .*absent"):
            read_source(tmp_path / "absent.yaml")
        (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
        with pytest.raises(ValueError, match="not text in UTF-8"):
            read_source(tmp_path / "b.yaml")
        assert read(tmp_path, "").value is None


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
            ({}, dict[str, int], ""),
        ],
    )
    def test_what_does_not(self, value: Any, hint: Any, wanted: str) -> None:
        with pytest.raises(MismatchError) as caught:
            fitted_to(value, hint)
        assert str(caught.value) == wanted

    def test_numbers_that_yaml_takes_for_text(self, tmp_path: Path) -> None:
        source = read(tmp_path, "rate: 1e-3\ncount: 1e3\n")
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


def test_one_problem_is_told_alone_and_none_not_at_all(tmp_path: Path) -> None:
    problems = Problems(read(tmp_path, "a: 1\nb: 2\n"))
    problems.raise_any()
    problems.add(("b",), "must be 3")
    with pytest.raises(ValueError, match=r"^/.*c\.yaml, line 2: b must be 3$"):
        problems.raise_any()


def test_texts() -> None:
    assert key_text(("detectors", 0, "members", 1, "seed")) == "detectors[0].members[1].seed"
