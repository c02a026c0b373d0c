"""One way to search folders, for `fit`, `predict` and data sets alike."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

from support.pictures import draw

from ensemblead.common.errors import UnreadableImageError
from ensemblead.datasets import Folder, MVTecAD, VisA
from ensemblead.images import (
    IMAGE_SUFFIXES,
    check_normal_folder,
    check_output_outside,
    open_images,
    read_image,
    upright_size,
)
from ensemblead.images.folders import belongs, describe_ignored, scan_folder


def names(paths: object, root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in paths]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder `good` of every kind of file; the images to find are those of letters a to g."""
    good = tmp_path / "good"
    for name in ("a.png", "b.PNG", "deep/er/c.jpg", "deep/d.TIFF"):
        draw(good / name)
    for name in (
        ".e.png",
        ".ipynb_checkpoints/f.png",
        "deep/.git/g.png",
        "@eaDir/a.png",
        "ground_truth/a.png",
    ):
        draw(good / name)
    (good / "notes.txt").write_text("no image")
    os.mkfifo(good / "pipe.png")
    draw(tmp_path / "other/e.png")
    draw(tmp_path / "other/below/f.bmp")
    (good / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(good)
    (good / "up").symlink_to(tmp_path)
    draw(tmp_path / "single.png")
    (good / "g.png").symlink_to(tmp_path / "single.png")
    return tmp_path


FOUND = ["a.png", "b.PNG", "deep/d.TIFF", "deep/er/c.jpg", "g.png", "linked/below/f.bmp", "linked/e.png"]


def test_ignored_images_of_hidden_folders_are_named_with_the_folder() -> None:
    said = describe_ignored(["shop/.thumbs/a.jpg", "shop/notes.txt"])
    assert said.startswith("2 other files ignored (.thumbs/a.jpg, notes.txt); images are")


def test_every_way_in_finds_the_same(odd: Path) -> None:
    found = open_images(odd / "good")
    assert names(found.paths, odd / "good") == FOUND
    assert found.ignored == 7
    assert "7 other files ignored" in found.describe_ignored()
    assert "images are .bmp .gif" in found.describe_ignored()
    root = odd / "sets/part"
    for place in ("train/good", "test/good", "test/dent", "Data/Images/Normal"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(odd / "good")
    (category,) = MVTecAD(root).categories
    assert names(category.train, root / "train/good") == sorted(FOUND, key=Path)
    assert {one.defect_type for one in category.test} == {"good", "dent"}
    assert len(category.test) == 2 * len(FOUND)
    assert category.ignored == 21
    (raw,) = VisA(root.parent, split=None).categories
    own = Folder(root, normal="train/good")
    for data in (raw, own):
        paths = [*data.train, *(sample.path for sample in data.test)]
        assert len(paths) == len(FOUND)
        assert data.ignored == 7


def test_a_real_folder_counts_before_links_to_it(tmp_path: Path) -> None:
    draw(tmp_path / "z/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / ".hidden").symlink_to(tmp_path / "z")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert names(scan_folder(tmp_path).images, tmp_path) == ["z/1.png"]


def test_images_of_a_hidden_folder_count_behind_a_link_to_it(tmp_path: Path) -> None:
    draw(tmp_path / "root/.store/1.png")
    (tmp_path / "root/shown").symlink_to(tmp_path / "root/.store")
    assert names(scan_folder(tmp_path / "root").images, tmp_path / "root") == ["shown/1.png"]
    draw(tmp_path / ".own/2.png")
    assert len(open_images(tmp_path / ".own")) == 1


def test_a_link_to_nothing_is_an_image_that_is_gone(tmp_path: Path) -> None:
    draw(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "nowhere.png")
    source = open_images(tmp_path)
    assert len(source) == 2
    with pytest.raises(FileNotFoundError, match=r"no such image: .*1\.png"):
        source.read(1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    draw(tmp_path / "0.png")
    (tmp_path / "closed").mkdir(mode=0)
    try:
        with pytest.raises(PermissionError, match="closed"):
            open_images(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_goes_meanwhile_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "goes").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    scandir = os.scandir

    def gone(path: str) -> Any:
        if os.path.basename(path) == "goes":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert scan_folder(tmp_path).images == (str(tmp_path / "a.png"),)
    with pytest.raises(FileNotFoundError):
        scan_folder(tmp_path / "none")


def test_special_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, upright_size):
        with pytest.raises(UnreadableImageError, match=r"pipe\.png: it is a named pipe"):
            read(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="it is a named pipe"):
        open_images([tmp_path / "pipe.png"]).read(0)
    with pytest.raises(UnreadableImageError, match="it is a named pipe"):
        open_images(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="it is a device"):
        open_images(["/dev/zero"]).read(0)
    with pytest.raises(UnreadableImageError, match="it is a folder"):
        read_image(tmp_path)


def test_what_predict_and_evaluate_have_written_is_no_photograph(tmp_path: Path) -> None:
    for place in ("heat_maps/a.png", "maps/a.tiff", "deep/figures/c.png", "deep/contact_sheets/c.png"):
        draw(tmp_path / place)
    draw(tmp_path / "0.png")
    assert len(scan_folder(tmp_path).images) == 5
    (tmp_path / "scores.csv").write_text("")
    (tmp_path / "deep/results.csv").write_text("")
    assert names(scan_folder(tmp_path).images, tmp_path) == ["0.png"]


@pytest.mark.parametrize(
    ("table", "folders"),
    [
        ("scores.csv", ("heat_maps", "masks", "maps")),
        ("scores.part-1-of-2.csv", ("heat_maps", "masks", "maps")),
        ("scores.partial.part-1-of-2.csv", ("heat_maps", "masks", "maps")),
        ("results.sqlite", ("heat_maps",)),
    ],
)
def test_all_pictures_of_results_are_left_out(tmp_path: Path, table: str, folders: tuple[str, ...]) -> None:
    draw(tmp_path / "line/0.png")
    for folder in folders:
        draw(tmp_path / "out" / folder / "a.png")
    assert len(scan_folder(tmp_path).images) == 1 + len(folders)
    (tmp_path / "out" / table).write_text("")
    assert names(scan_folder(tmp_path).images, tmp_path) == ["line/0.png"]
    assert not any(belongs(tmp_path, f"out/{folder}/a.png") for folder in folders)


def test_one_file_belongs_as_the_scan_has_it(odd: Path) -> None:
    root = odd / "good"
    for place in ("heat_maps/a.png", "maps/b.tiff", "good/0.png", "masks/0.png", "deep/Masks/0.png"):
        draw(root / place)
    (root / "scores.csv").write_text("")
    for _ in range(2):
        found = set(names(scan_folder(root).images, root))
        places = [path.relative_to(root).as_posix() for path in root.rglob("*")]
        own = {place for place in places if not place.startswith(("linked", "up"))}
        assert {place for place in own if belongs(root, place)} == found & own
        assert found & own >= {"a.png", "deep/er/c.jpg"}
        (root / "scores.csv").unlink(missing_ok=True)  # the pictures beside it are photographs then
    assert not belongs(root, "gone/masks/a.png")
    assert not belongs(root, "gone.png")


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "it is empty"), (b"a", "it is no image of a known format")]
)
def test_a_file_of_nothing(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    for read in (read_image, upright_size):
        with pytest.raises(UnreadableImageError, match=reason):
            read(tmp_path / "a.jpg")


def test_masks_are_no_photographs(tmp_path: Path) -> None:
    for place in ("part/train/good", "part/test/dent", "part/ground_truth/dent", "visa/Data/Images", "masks"):
        draw(tmp_path / place / "0.png")
    draw(tmp_path / "visa/Data/Masks/Anomaly/0.png")
    found = names(open_images(tmp_path).paths, tmp_path)
    assert found == ["masks/0.png", "part/test/dent/0.png", "part/train/good/0.png", "visa/Data/Images/0.png"]
    draw(tmp_path / "own/good/0.png")
    draw(tmp_path / "own/masks/0.png")
    assert names(open_images(tmp_path / "own").paths, tmp_path) == ["own/good/0.png"]
    for place in ("part/ground_truth", "part/ground_truth/dent"):
        with pytest.raises(ValueError, match="holds masks"):
            open_images(tmp_path / place)


def test_pictures_that_are_not_read_raise_a_warning(tmp_path: Path) -> None:
    draw(tmp_path / "0.png")
    for name in ("1.HEIC", "2.dng", ".3.heic"):
        (tmp_path / name).write_bytes(b"")
    if ".heic" in IMAGE_SUFFIXES:
        pytest.skip("HEIC is read here")
    with pytest.warns(UserWarning, match=r"2 pictures are of a type .*1\.HEIC.*2\.dng.*ensemblead\[heic\]"):
        source = open_images(tmp_path)
    assert 'pip install "ensemblead[heic]"' in source.describe_ignored()
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"no image files in .*3 other files ignored.*ensemblead\[heic\]"):
        open_images(tmp_path)


def test_heic_is_read_where_pillow_heif_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from ensemblead.images import decode

    calls: list[str] = []
    stand_in = types.ModuleType("pillow_heif")
    stand_in.register_heif_opener = lambda: calls.append("registered")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    source = importlib.util.find_spec("ensemblead.images.decode")
    assert source is not None
    assert source.loader is not None
    again = importlib.util.module_from_spec(source)
    source.loader.exec_module(again)
    assert calls == ["registered"]
    assert {".heic", ".heif"} <= again.IMAGE_SUFFIXES
    assert decode.IMAGE_SUFFIXES <= again.IMAGE_SUFFIXES


def test_results_do_not_go_where_images_are_looked_for(tmp_path: Path) -> None:
    draw(tmp_path / "images/deep/0.png")
    draw(tmp_path / "far/1.png")
    (tmp_path / "images/linked").symlink_to(tmp_path / "far")
    folders = open_images(tmp_path / "images").folders
    for out in ("images", "images/out", "images/deep/a/b", "far/out", "images/../images/out"):
        with pytest.raises(ValueError, match=rf"out {tmp_path / out} lies inside the folder of images"):
            check_output_outside(tmp_path / out, folders)
    check_output_outside(tmp_path, folders)
    check_output_outside(tmp_path / "images2", folders)
    check_output_outside(tmp_path / "images", open_images(tmp_path / "images/deep/0.png").folders)


@pytest.mark.parametrize(
    ("folders", "asked", "right"),
    [
        (["train/good", "test/dent"], ".", "fit on {}/train/good"),
        (["train/good", "ground_truth"], ".", "fit on {}/train/good"),
        (["a/train/good", "a/test/good", "b/train/good", "b/test/good"], ".", "fit {}/a/train/good --model"),
        (["c/Data/Images/Normal", "c/Data/Images/Anomaly"], ".", "fit {}/c/Data/Images/Normal --model"),
        (["c/Data/Images/Normal"], "c", "fit on {}/c/Data/Images/Normal"),
        (["test/good", "test/dent"], "test", "fit on {}/test/good"),
        (["ok", "NG"], ".", "holds NG beside ok: fit on {}/ok"),
    ],
)
def test_the_error_names_the_folder_to_fit_on(
    tmp_path: Path, folders: list[str], asked: str, right: str
) -> None:
    for place in folders:
        draw(tmp_path / place / "0.png")
    with pytest.raises(ValueError, match=right.format(tmp_path)):
        check_normal_folder(tmp_path / asked)


@pytest.mark.parametrize("folders", [["good"], ["monday", "tuesday"], ["good", "shift 2"], ["train/good"]])
def test_folders_of_normal_images_are_fitted_on(tmp_path: Path, folders: list[str]) -> None:
    for place in folders:
        draw(tmp_path / place / "0.png")
    check_normal_folder(tmp_path)
    check_normal_folder(tmp_path / folders[0])
    check_normal_folder(tmp_path / folders[0] / "0.png")
