"""Files that are written whole or not at all, and names that are safe on every file system."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from ensemblead.common.files import (
    NAME_BYTES,
    as_file_name,
    csv_line,
    file_names,
    sha256_of,
    valid_text,
    write_atomically,
)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_bytes_texts_and_writers_are_written(tmp_path: Path) -> None:
    assert write_atomically(tmp_path / "new/a", b"1", sync=True).read_bytes() == b"1"
    write_atomically(tmp_path / "new/a", "two\r\n検")
    assert (tmp_path / "new/a").read_bytes() == "two\r\n検".encode()
    write_atomically(str(tmp_path / "new/b"), lambda file: file.write(b"3"))
    assert files_below(tmp_path) == ["new/a", "new/b"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_error_leaves_the_earlier_file_and_no_other(tmp_path: Path, error: BaseException) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    (tmp_path / "a").write_text("old")
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    assert files_below(tmp_path) == ["a"]


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    name = "検" * (NAME_BYTES // 3)
    assert write_atomically(tmp_path / name, b"x").read_bytes() == b"x"
    assert files_below(tmp_path) == [name]


def test_bytes_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"pr\xfcfung.png")
    assert valid_text(f"{name} \ud800 検") == r"pr\xfcfung.png \ud800 検"
    write_atomically(tmp_path / "a", name)
    assert (tmp_path / "a").read_text(encoding="utf-8") == r"pr\xfcfung.png"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["metal nut", "検査 (3)", "a:b", "x.png", "$x_1$", "-", "a..b"])
def test_harmless_names_stay(name: str) -> None:
    assert as_file_name(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../x", "-..-x"),
        ("/etc/passwd", "-etc-passwd"),
        ("..\\..\\x", "-..-x"),
        ("..", "unnamed"),
        ("", "unnamed"),
        (".hidden", "hidden"),
        ("a\nb\rc\x00d", "a-b-c-d"),
        (os.fsdecode(b"pr\xfcfung"), "pr-fung"),
    ],
)
def test_dangerous_names_are_made_harmless(tmp_path: Path, name: str, expected: str) -> None:
    assert as_file_name(name) == expected
    written = write_atomically(tmp_path / "out" / f"{as_file_name(name)}.png", b"")
    assert written.resolve().parent == (tmp_path / "out").resolve()


def test_names_are_cut_by_bytes() -> None:
    assert as_file_name("検査" * 60, limit=80) == "検査" * 13
    assert as_file_name("a b/c:d", plain=True) == "a-b-c-d"


def test_names_are_made_unique() -> None:
    assert file_names(["x", "y", "x", "x"]) == ["x", "y", "x-2", "x-3"]
    # Harmless names keep what they are.
    assert file_names(["x", "x", "x-2"]) == ["x", "x-3", "x-2"]
    assert file_names(["a/b", "a-b", "a\nb"]) == ["a-b-2", "a-b", "a-b-3"]
    assert file_names(["a b", "a-b"], plain=True) == ["a-b-2", "a-b"]
    assert file_names(["x", "y"], taken=["x"]) == ["x-2", "y"]
    long = file_names(["検" * 4] * 12, limit=12)
    assert len(set(long)) == 12
    assert max(len(name.encode()) for name in long) <= 12
    assert long[-1] == "検検検-12"


def test_a_csv_line_is_read_back_whatever_is_in_it() -> None:
    cells = ["plain", 'a "b"', "x,y", "line\nfeed", "carriage\rreturn", "", "1.5"]
    assert csv_line([*cells[:-1], 1.5]).startswith('plain,"a ""b""","x,y","line')
    assert list(csv.reader(io.StringIO(csv_line(cells) * 2, newline=""))) == [cells, cells]
