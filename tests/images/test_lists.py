"""Files that list images: texts and marks, what they name, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ensemblead.images import (
    equal_files,
    listed_images,
    open_images,
    read_list,
    without_images,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a.png, b.png and below/c.png, each of another colour; the current folder is another one."""
    (tmp_path / "data/below").mkdir(parents=True)
    for level, name in enumerate(("a", "b", "below/c")):
        pixels = np.full((4, 4, 3), level, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/{name}.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "data"


def marks(*pairs: tuple[str, str], version: Any = 1) -> str:
    return json.dumps({"version": version, "marks": [{"path": path, "mark": mark} for path, mark in pairs]})


def test_a_text(folder: Path) -> None:
    text = folder / "list.txt"
    text.write_text(f"\ufeff# a comment\n\n  a.png  \n{folder / 'b.png'}\n**/c.png\na.png\n")
    listed = read_list(text)
    assert listed.entries == ("a.png", str(folder / "b.png"), "**/c.png", "a.png")
    assert not listed.is_marks
    assert [Path(path).resolve() for path in listed_images(listed)] == [
        folder / "a.png",
        folder / "b.png",
        folder / "below/c.png",
    ]


def test_names_with_brackets_are_names_first(folder: Path) -> None:
    (folder / "[ab].png").write_bytes((folder / "a.png").read_bytes())
    (folder / "list.txt").write_text("[ab].png\n")
    assert listed_images(read_list(folder / "list.txt")) == [str(folder / "[ab].png")]
    (folder / "[ab].png").unlink()
    assert len(listed_images(read_list(folder / "list.txt"))) == 2


def test_paths_relative_to_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere/list.txt").write_text("data/a.png\n")
    monkeypatch.chdir(tmp_path)
    assert listed_images(read_list("elsewhere/list.txt")) == ["data/a.png"]


def test_marks(folder: Path) -> None:
    pairs = ("a.png", "false alarm"), ("b.png", "missed defect"), ("a.png", "false alarm")
    (folder / "marked.json").write_text(marks(*pairs))
    listed = read_list(folder / "marked.json")
    assert (listed.entries, listed.missed, listed.is_marks) == (("a.png",), ("b.png",), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "must be"),
        ('{"version": 1}', "must be"),
        (marks(version=2), "version 2"),
        (marks(version=None), "version None"),
        (marks(("a.png", "nice")), r"marks\[0\] must be 'false alarm' or 'missed defect', got 'nice'"),
        (marks(("", "false alarm")), r"marks\[0\] must have a path"),
        ('{"version": 1, "marks": ["a.png"]}', r"marks\[0\] must have a path"),
        ('{"version": 1, "marks": [{"path": "a.png", "mark": []}]}', r"marks\[0\] must be"),
        (marks(("a.png", "false alarm"), ("a.png", "missed defect")), "a.png has both marks"),
    ],
)
def test_broken_marks(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "marked.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / "marked.json")


def test_what_is_no_list(folder: Path) -> None:
    with pytest.raises(ValueError, match="must end with"):
        read_list(folder / "a.png")
    (folder / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        read_list(folder / "list.txt")
    with pytest.raises(FileNotFoundError):
        read_list(folder / "none.txt")
    (folder / "list.txt").write_text("a.png\nnone.png\nbelow\n*.bmp\n")
    with pytest.raises(
        FileNotFoundError, match=r"names 3 images that are not there: none.png, below, \*.bmp"
    ):
        listed_images(read_list(folder / "list.txt"))


def test_images_left_out(folder: Path) -> None:
    source = open_images(folder)
    kept, excluded = without_images(source, ["below/*.png", str(folder / "a.png"), "a.png"], folder)
    assert [Path(str(path)).name for path in kept.paths] == ["b.png"]
    assert sorted(Path(path).name for path in excluded) == ["a.png", "c.png"]
    assert kept.folders == source.folders
    with pytest.raises(ValueError, match="exclude: none.png is none of the 3 images"):
        without_images(source, ["a.png", "none.png"], folder)
    with pytest.raises(ValueError, match="none of the 3 images is left"):
        without_images(source, ["**/*.png"], folder)


def test_equal_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.png").write_bytes((folder / "b.png").read_bytes())
    same_size = bytearray((folder / "a.png").read_bytes())
    same_size[-1] ^= 1
    (tmp_path / "other/y.png").write_bytes(same_size)
    found = equal_files(open_images(folder), open_images(tmp_path / "other"))
    assert found == [str(tmp_path / "other/x.png")]
    assert equal_files(open_images(np.zeros((1, 4, 4, 3), np.uint8)), open_images(folder)) == []
