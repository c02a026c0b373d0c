"""Units in folders, lists of images, and what keys depend on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.units import draw_images, trapped

pytest.importorskip("torch")

import ensemblead as ead
from ensemblead.distributed import units
from ensemblead.distributed.files import ImageList, with_absolute_paths, with_contents
from ensemblead.distributed.units import Unit, clean, standing
from ensemblead.distributed.working import modules_of
from ensemblead.images import open_images
from ensemblead.store import FolderWriter


def fill(value: int) -> Any:
    def write(writer: FolderWriter) -> dict[str, Any]:
        writer.tensors("a.safetensors", {"a": np.full(3, value)})
        return {"value": value}

    return write


class TestUnits:
    def test_written_and_read(self, tmp_path: Path) -> None:
        unit, other = (Unit.of(tmp_path, "one", {"a": a}) for a in (1, 2))
        assert unit.read() is None
        unit.write(fill(3))
        found = unit.read()
        assert found is not None
        assert found.state["value"] == 3
        assert found.tensors("a.safetensors")["a"].tolist() == [3, 3, 3]
        assert other.read() is None
        assert standing([unit, other]) == (["one"], ["one"])
        assert Unit(**unit.plain()) == unit

    def test_the_version_is_a_part_of_the_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = Unit.of(tmp_path, "one", {"a": 1}).key
        monkeypatch.setattr(units, "__version__", "other")
        assert Unit.of(tmp_path, "one", {"a": 1}).key != before

    def test_the_first_one_stays(self, tmp_path: Path) -> None:
        unit = Unit.of(tmp_path, "one", {})

        def late(writer: FolderWriter) -> dict[str, Any]:
            unit.write(fill(1))  # another worker
            return fill(2)(writer)

        unit.write(late)
        found = unit.read()
        assert found is not None
        assert found.state["value"] == 1
        assert os.listdir(tmp_path) == [Path(unit.folder).name]

    @pytest.mark.parametrize("how", ["a file is gone", "a byte is another"])
    def test_what_is_damaged_is_written_again(self, how: str, tmp_path: Path) -> None:
        unit = Unit.of(tmp_path, "one", {})
        unit.write(fill(1))
        path = Path(unit.folder) / "a.safetensors"
        before = path.read_bytes()
        path.unlink()
        if how == "a byte is another":
            path.write_bytes(before[:-1] + b"!")
        assert unit.read() is None
        unit.write(fill(2))
        found = unit.read()
        assert found is not None
        assert found.state["value"] == 2

    def test_another_thing_under_its_name_is_none(self, tmp_path: Path) -> None:
        unit = Unit.of(tmp_path, "one", {})
        Unit("one", unit.folder, "0" * 64).write(fill(1))
        assert unit.read() is None

    def test_an_error_leaves_nothing(self, tmp_path: Path) -> None:
        def broken(writer: FolderWriter) -> dict[str, Any]:
            fill(1)(writer)
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            Unit.of(tmp_path, "one", {}).write(broken)
        assert os.listdir(tmp_path) == []

    def test_the_folder_is_cleaned_up_under_a_slow_worker(self, tmp_path: Path) -> None:
        unit = Unit.of(tmp_path, "one", {})

        def late(writer: FolderWriter) -> dict[str, Any]:
            unit.write(fill(1))
            clean([unit])  # its caller has all, and removes what killed workers leave
            return fill(2)(writer)

        unit.write(late)
        found = unit.read()
        assert found is not None
        assert found.state["value"] == 1


class TestImages:
    def test_the_same(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in", 3)
        listed = ImageList.write(tmp_path / "work", open_images(paths), "raise")
        again = ImageList.read(listed.path, listed.sha256)
        again.check("was changed")
        assert again.open(None, None).paths == paths
        # Relative paths mean the same as absolute ones.
        relative = [os.path.relpath(path) for path in paths]
        assert ImageList.write(tmp_path / "work", open_images(relative), "raise").sha256 == listed.sha256

    def test_a_changed_one(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in", 3)
        listed = ImageList.write(tmp_path / "work", open_images(paths), "raise")
        os.utime(paths[1], (0, 0))
        with pytest.raises(ValueError, match=r"images: .*1\.png was changed on .*: call fit again"):
            listed.check("was changed")
        assert ImageList.write(tmp_path / "work", open_images(paths), "raise").sha256 != listed.sha256

    def test_one_that_a_worker_cannot_see(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in", 3)
        listed = ImageList.write(tmp_path / "work", open_images(paths), "raise")
        os.unlink(paths[2])
        with pytest.raises(
            FileNotFoundError, match=r"cannot read .*2\.png: every worker must see the images"
        ):
            listed.check("was changed")

    def test_a_folder_that_a_worker_cannot_see(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="workdir: .* it must be on a path that every worker"):
            ImageList.read(str(tmp_path / "images.json"), "0")

    def test_an_altered_list(self, tmp_path: Path) -> None:
        listed = ImageList.write(tmp_path, open_images(draw_images(tmp_path / "in", 2)), "raise")
        Path(listed.path).write_text("[]")
        with pytest.raises(ValueError, match="was altered; remove it"):
            ImageList.read(listed.path, listed.sha256)

    def test_missing_ones_are_skipped_alike(self, tmp_path: Path) -> None:
        paths = draw_images(tmp_path / "in", 3)
        os.unlink(paths[0])
        with pytest.raises(FileNotFoundError):
            ImageList.write(tmp_path, open_images(paths), "raise")
        ImageList.write(tmp_path, open_images(paths), "skip").check("was changed")

    def test_arrays(self, tmp_path: Path) -> None:
        for images in (np.zeros((2, 8, 8, 3), np.uint8), [np.zeros((8, 8, 3), np.uint8)]):
            source = open_images(images if isinstance(images, np.ndarray) else np.stack(images))
            with pytest.raises(ValueError, match="executor= needs files that every worker can read"):
                ImageList.write(tmp_path, source, "raise")


class TestDescriptions:
    def test_weights_count_by_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "w.pth").write_bytes(b"one")
        monkeypatch.chdir(tmp_path)
        description = {
            "type": "BackboneEnsemble",
            "members": [{"type": "PatchCore", "backbone": "resnet18", "weights": "w.pth"}],
        }
        assert with_absolute_paths(description)["members"][0]["weights"] == str(tmp_path / "w.pth")
        before = with_contents(description)
        assert with_contents(with_absolute_paths(description)) == before
        (tmp_path / "w.pth").write_bytes(b"two")
        assert with_contents(description) != before

    def test_folders_count_by_their_files(self, tmp_path: Path) -> None:
        draw_images(tmp_path / "textures", 2)
        description = {"type": "DRAEM", "textures": str(tmp_path / "textures")}
        before = with_contents(description)
        assert with_contents(description) == before
        os.utime(tmp_path / "textures/1.png", (0, 0))
        assert with_contents(description) != before

    def test_lists_of_paths_count_by_content(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = draw_images(tmp_path / "bad", 2)
        monkeypatch.chdir(tmp_path)
        polygons = [[[0.0, 0.0], [8.0, 0.0], [8.0, 8.0]]]
        description = ead.PatchCore(
            "gabor", defects=["bad/0.png", "bad/1.png"], region=polygons, device="cpu"
        ).describe()
        assert with_absolute_paths(description) == {**description, "defects": paths}
        before = with_contents(description)
        assert before["region"] == polygons
        assert with_contents(with_absolute_paths(description)) == before
        Path(paths[1]).write_bytes(b"another")
        assert with_contents(description) != before

    def test_names_are_no_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("gabor", "default"):
            (tmp_path / name).mkdir()
        described = ead.PatchCore("gabor", device="cpu").describe()
        assert with_absolute_paths(described) == described == with_contents(described)

    def test_modules_of_ones_own_are_imported(self, tmp_path: Path) -> None:
        tiled = ead.TiledEnsemble(trapped(tmp_path), 16, 16, image_size=32)
        assert modules_of(tiled.describe()) == ["support.units"]
        assert modules_of(ead.BackboneEnsemble([ead.PaDiM("gabor")]).describe()) == []
