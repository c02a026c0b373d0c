"""Configuration documents: values, lines, and all problems in one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

from ensemblead.config.documents import Problems, Source, key_text, read_source, read_text


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


def test_one_problem_stands_alone_and_none_raises_nothing(tmp_path: Path) -> None:
    problems = Problems(read(tmp_path, "a: 1\nb: 2\n"))
    problems.raise_any()
    problems.add(("b",), "must be 3")
    with pytest.raises(ValueError, match=r"^/.*c\.yaml, line 2: b must be 3$"):
        problems.raise_any()


def test_places_of_keys() -> None:
    assert key_text(("detectors", 0, "members", 1, "seed")) == "detectors[0].members[1].seed"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("[a, 2]", ["a", 2]), ("true", True), ("x y", "x y"), ("", None), ("1e-3", "1e-3")],
)
def test_one_value(text: str, value: Any) -> None:
    assert read_text(text) == value


@pytest.mark.parametrize("text", ["[a", "!!python/object/apply:os.system ['true']", "a: 2024-13-45"])
def test_text_that_is_no_value(text: str) -> None:
    with pytest.raises(ValueError, match="is not a YAML value"):
        read_text(text)
