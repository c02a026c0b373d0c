"""Folders: written whole or not at all, refused when they are not what was written."""

from __future__ import annotations

import errno
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tampering import edit

from ensemblead import store
from ensemblead.common.errors import DamagedModelError, EnsembleADError, NewerFormatError
from ensemblead.config.registry import register
from ensemblead.store import folders, saving


@register("test-leaf")
class Leaf:
    def __init__(self, values: np.ndarray, note: str = "", index: bytes = b"\0\1") -> None:
        self.values, self.note, self.index = values, note, index

    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        tensor = torch.from_numpy(self.values)
        writer.tensors("values.safetensors", {"values": self.values, "same": tensor, "tied": tensor.t().t()})
        writer.data("index.bin", self.index)
        return {"note": self.note, "options": writer.options}

    @classmethod
    def from_store(cls, reader: store.FolderReader) -> Leaf:
        tensors = reader.tensors("values.safetensors")
        leaf = cls(tensors["values"].numpy(), reader.state["note"], reader.data("index.bin"))
        leaf.options = {**reader.state["options"], **reader.options}  # type: ignore[attr-defined]
        return leaf


@register("test-tree")
class Tree:
    def __init__(self, children: list[Any]) -> None:
        self.children = children

    def to_store(self, writer: store.FolderWriter) -> dict[str, Any]:
        for i, child in enumerate(self.children):
            writer.child(f"child{i}", child)
        return {"count": len(self.children)}

    @classmethod
    def from_store(cls, reader: store.FolderReader) -> Tree:
        return cls([reader.child(f"child{i}", place=i) for i in range(reader.state["count"])])


def _leaf(note: str = "a") -> Leaf:
    return Leaf(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), note)


def test_there_and_back(tmp_path: Path) -> None:
    leaf = _leaf()
    store.save(leaf, tmp_path / "new" / "model", include_backbone=True)
    again = store.load(tmp_path / "new" / "model", weights=None)
    np.testing.assert_array_equal(again.values, leaf.values)
    assert (again.note, again.index) == (leaf.note, leaf.index)
    assert again.options == {"include_backbone": True, "weights": None}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["model"]
    manifest = json.loads((tmp_path / "new" / "model" / "model.json").read_text())
    assert manifest["format"] == folders.FORMAT_VERSION
    assert set(manifest["files"]) == {"values.safetensors", "index.bin"}


def test_trees_nest(tmp_path: Path) -> None:
    store.save(Tree([_leaf("x"), Tree([_leaf("y")])]), tmp_path / "m")
    again = store.load(tmp_path / "m")
    assert again.children[0].note == "x"
    assert again.children[0].options == {"place": 0}
    assert again.children[1].children[0].note == "y"


def test_saving_again_replaces(tmp_path: Path) -> None:
    store.save(Tree([_leaf("old")]), tmp_path / "m")
    store.save(_leaf("new"), tmp_path / "m")
    assert store.load(tmp_path / "m").note == "new"
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "index.bin",
        "model.json",
        "values.safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that cannot exchange two folders in one step."""
    monkeypatch.setattr(saving, "exchange", lambda first, second: False)


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_between_the_renames_leaves_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
) -> None:
    store.save(_leaf("old"), tmp_path / "m")
    rename, calls = os.rename, []

    def interrupted(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == number and not after:
            raise KeyboardInterrupt
        rename(source, target)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(_leaf("new"), tmp_path / "m")
    monkeypatch.undo()
    assert store.load(tmp_path / "m").note == ("new" if (number, after) == (2, True) else "old")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO])
def test_a_folder_that_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As a mount point, whose model then lies inside; other errors are errors."""
    store.save(_leaf("old"), tmp_path / "m")
    rename = os.rename

    def busy(source: Any, target: Any) -> None:
        if Path(source) == tmp_path / "m":
            raise OSError(number, "refused")
        rename(source, target)

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(OSError, match="refused") if number == errno.EIO else nullcontext():
        store.save(_leaf("new"), tmp_path / "m")
    assert store.load(tmp_path / "m").note == ("old" if number == errno.EIO else "new")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_only_models_and_empty_folders_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    store.save(_leaf(), tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("photos", "file", "link"):
        with pytest.raises(ValueError, match="exists and is no saved model"):
            store.save(_leaf(), tmp_path / name)
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"1"


def test_a_model_json_of_something_else_is_no_model(tmp_path: Path) -> None:
    for i, text in enumerate(
        ("{}", "no json", '{"format": true, "class": "a", "files": {}}', '{"format": 1}')
    ):
        folder = tmp_path / f"d{i}"
        folder.mkdir()
        (folder / "model.json").write_text(text)
        (folder / "a.png").write_bytes(b"1")
        with pytest.raises(ValueError, match="exists and is no saved model"):
            store.save(_leaf(), folder)
        assert (folder / "a.png").read_bytes() == b"1"


@pytest.mark.parametrize("extra", ["notes.txt", "maps/a.tiff", "child0/b.txt"])
def test_a_model_with_foreign_files_is_not_replaced(tmp_path: Path, extra: str) -> None:
    store.save(Tree([_leaf("old")]), tmp_path / "m")
    file = tmp_path / "m" / extra
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"1")
    named = extra if extra.startswith("child0") else extra.split("/")[0]
    with pytest.raises(ValueError, match=f"no saved model alone: it also holds {named};"):
        store.save(_leaf("new"), tmp_path / "m")
    assert file.read_bytes() == b"1"
    assert store.load(tmp_path / "m").children[0].note == "old"


def test_the_target_needs_a_folder_to_lie_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(ValueError, match="file is no folder"):
        store.check_target(tmp_path / "file" / "new" / "m")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="no permission to write into"):
        store.check_target(tmp_path / "new" / "m")


@pytest.mark.parametrize(
    "changes",
    [
        {"class": 3},
        {"state": None},
        {"files": []},
        {"files": {"index.bin": 3}},
        {"files": {"index.bin": {"bytes": 2}}},
        {"format": "1"},
        {"state": {"count": "three"}, "class": "test-tree"},
    ],
)
def test_a_manifest_of_wrong_kinds_is_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    store.save(_leaf(), tmp_path / "m")
    edit(tmp_path / "m", **changes)
    with pytest.raises(DamagedModelError):
        store.load(tmp_path / "m")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "state": NaN}', '{"format": 1}'])
def test_a_manifest_that_is_no_manifest_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DamagedModelError):
        store.load(tmp_path)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_failed_save_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, writes: int
) -> None:
    store.save(Tree([_leaf("old")]), tmp_path / "m")
    synced, left = os.fsync, [writes]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise failure
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(type(failure)):
        store.save(Tree([_leaf("new")]), tmp_path / "m")
    monkeypatch.undo()
    assert store.load(tmp_path / "m").children[0].note == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.usefixtures("no_exchange")
def test_a_failed_swap_puts_the_old_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(_leaf("old"), tmp_path / "m")
    rename, calls = os.rename, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="no"):
        store.save(_leaf("new"), tmp_path / "m")
    monkeypatch.undo()
    assert store.load(tmp_path / "m").note == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize(
    "name",
    ["model.json", "child0/model.json", "child0/values.safetensors", "child1/child0/index.bin"],
)
def test_damage_anywhere_is_refused(tmp_path: Path, name: str, damage: Any) -> None:
    store.save(Tree([_leaf(), Tree([_leaf()])]), tmp_path / "m")
    damage(tmp_path / "m" / name)
    with pytest.raises(DamagedModelError):
        store.load(tmp_path / "m")


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    store.save(_leaf("abc"), tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    path.write_text(path.read_text().replace("abc", "abd"))
    with pytest.raises(DamagedModelError, match="altered"):
        store.load(tmp_path / "m")


def test_a_newer_format_is_named_as_such(tmp_path: Path) -> None:
    store.save(_leaf(), tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    # Whatever a later version does with the rest of the manifest.
    path.write_text(json.dumps({"format": 99, "written_by": "ensemblead 7.0"}))
    with pytest.raises(NewerFormatError, match=r"format 99, written by ensemblead 7\.0; .* upgrade"):
        store.load(tmp_path / "m")


def test_what_a_hostile_folder_could_try(tmp_path: Path) -> None:
    store.save(_leaf(), tmp_path / "m")
    secret = tmp_path / "secret"
    secret.write_bytes(b"12")
    known = json.loads((tmp_path / "m" / "model.json").read_text())["files"]
    for name in ("../secret", str(secret)):
        edit(tmp_path / "m", files={**known, name: {"bytes": 2, "sha256": "0"}})
        with pytest.raises(DamagedModelError, match="outside of itself"):
            store.load(tmp_path / "m")
    edit(tmp_path / "m", files=known)
    (tmp_path / "m" / "index.bin").unlink()
    (tmp_path / "m" / "index.bin").symlink_to(secret)
    with pytest.raises(DamagedModelError, match="outside of itself"):
        store.load(tmp_path / "m")
    store.save(_leaf(), tmp_path / "n")
    edit(tmp_path / "n", **{"class": "os.system"})
    with pytest.raises(DamagedModelError, match=r"'os\.system', which is not known: import the module"):
        store.load(tmp_path / "n")


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved model"):
        store.load(tmp_path / "nothing")
    with pytest.raises(DamagedModelError, match=r"no model\.json"):
        store.load(tmp_path)
    (tmp_path / "model.json").write_text("[1]")
    with pytest.raises(DamagedModelError, match="states no format"):
        store.load(tmp_path)
    assert issubclass(DamagedModelError, EnsembleADError)
    assert issubclass(NewerFormatError, EnsembleADError)


def test_registration() -> None:
    with pytest.raises(ValueError, match="registered already, as 'test-leaf'"):
        register("test-leaf")(Leaf)
    with pytest.raises(TypeError, match="object is not registered"):
        store.save(object(), "never-written")  # type: ignore[arg-type]
