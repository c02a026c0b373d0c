"""Data sets drawn into a temporary folder: pairing by name, splits, and what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblead.evaluation import Folder, MVTecAD, VisA

Image = pytest.importorskip("PIL.Image")


def draw(path: Path, *, size: tuple[int, int] = (8, 10)) -> Path:
    """An image file [H, W] whose pixels follow from its path, so that no two are equal by chance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_mask(path: Path, size: tuple[int, int] = (8, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[2:4, 3:6] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """Two categories, `bolt` with two kinds of defects and `nut` with one."""
    for category, kinds in (("bolt", ("bent", "crack")), ("nut", ("rust",))):
        for index in range(4):
            draw(tmp_path / category / "train/good" / f"{index:03}.png")
        for index in range(2):
            draw(tmp_path / category / "test/good" / f"{index:03}.png")
        for kind in kinds:
            for index in range(3):
                draw(tmp_path / category / "test" / kind / f"{index:03}.png")
                draw_mask(tmp_path / category / "ground_truth" / kind / f"{index:03}_mask.png")
    return tmp_path


def relative(path: str | None, base: Path) -> str:
    assert path is not None
    return Path(path).relative_to(base).as_posix()


def test_mvtec_category(mvtec: Path) -> None:
    data = MVTecAD(mvtec, "bolt")
    assert data.name == "bolt"
    assert [relative(path, mvtec) for path in data.train] == [f"bolt/train/good/{i:03}.png" for i in range(4)]
    assert [(sample.label, sample.defect_type) for sample in data.test] == (
        [(True, "bent")] * 3 + [(True, "crack")] * 3 + [(False, "good")] * 2
    )
    assert relative(data.test[4].mask_path, mvtec) == "bolt/ground_truth/crack/001_mask.png"
    assert data.test[-1].mask_path is None
    assert (data.ignored, data.notes) == (0, ())
    assert repr(data) == "MVTecAD(bolt: 4 train, 8 test)"


def test_mvtec_root_of_one_category_or_of_several(mvtec: Path) -> None:
    assert MVTecAD(mvtec / "nut").name == "nut"
    assert MVTecAD(mvtec / "nut").test == MVTecAD(mvtec, "nut").test
    everything = MVTecAD(str(mvtec))
    assert [category.name for category in everything.categories] == ["bolt", "nut"]
    with pytest.raises(ValueError, match=r"train belongs to one category and .* has 2 \(bolt, nut\)"):
        _ = everything.train


def test_masks_are_paired_by_name_not_by_place(mvtec: Path) -> None:
    truth = mvtec / "bolt/ground_truth/bent"
    (truth / "000_mask.png").rename(truth / "000.bmp")  # the same stem, sorted elsewhere
    draw_mask(truth / "aaa_mask.png")  # of no image, sorted first of those with letters
    data = MVTecAD(mvtec, "bolt")
    masks = {Path(sample.path).stem: sample.mask_path for sample in data.test if sample.defect_type == "bent"}
    assert {stem: Path(str(path)).name for stem, path in masks.items()} == {
        "000": "000.bmp",
        "001": "001_mask.png",
        "002": "002_mask.png",
    }
    assert len(data.notes) == 1
    assert "1 mask(s)" in data.notes[0]
    assert "belong to no test image: aaa_mask.png" in data.notes[0]


def test_missing_masks_are_named(mvtec: Path) -> None:
    (mvtec / "bolt/ground_truth/crack/001_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 defective image\(s\) have no mask .*crack/001\.png"):
        MVTecAD(mvtec, "bolt")
    data = MVTecAD(mvtec, "bolt", missing_masks="exclude")
    assert [sample.mask_path is None for sample in data.test if sample.label].count(True) == 1
    assert "left out of the pixel metrics" in data.notes[0]
    policy: Any = "ignore"
    with pytest.raises(ValueError, match="missing_masks must be"):
        MVTecAD(mvtec, "bolt", missing_masks=policy)


def test_ambiguous_masks_are_refused(mvtec: Path) -> None:
    draw_mask(mvtec / "bolt/ground_truth/bent/000.png")
    with pytest.raises(ValueError, match=r"image '000' must have one mask, got .*000_mask\.png, .*000\.png"):
        MVTecAD(mvtec, "bolt")


def test_no_ground_truth_at_all_is_a_remark(mvtec: Path) -> None:
    (mvtec / "nut/ground_truth").rename(mvtec / "elsewhere")
    data = MVTecAD(mvtec, "nut")
    assert all(sample.mask_path is None for sample in data.test)
    assert "pixel metrics are not defined" in data.notes[0]


def test_masks_of_another_size_are_named(mvtec: Path) -> None:
    draw_mask(mvtec / "bolt/ground_truth/bent/002_mask.png", (8, 11))
    data = MVTecAD(mvtec, "bolt")
    with pytest.raises(
        ValueError, match=r"bent/002_mask\.png must be as large .* 8 x 11, .*bent/002\.png is 8 x 10"
    ):
        data.categories[0].check_masks()
    MVTecAD(mvtec, "nut").categories[0].check_masks()


def test_mask_sizes_are_compared_upright(mvtec: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: shown, it is 10 x 8
    image = Image.open(mvtec / "nut/test/rust/000.png")
    image.save(mvtec / "nut/test/rust/000.png", exif=exif)
    with pytest.raises(ValueError, match=r"000\.png is 10 x 8"):
        MVTecAD(mvtec, "nut").categories[0].check_masks()
    draw_mask(mvtec / "nut/ground_truth/rust/000_mask.png", (10, 8))
    MVTecAD(mvtec, "nut").categories[0].check_masks()


def test_other_files_are_ignored_and_counted(mvtec: Path) -> None:
    (mvtec / "nut/train/good/notes.txt").write_text("not an image")
    (mvtec / "nut/train/good/.DS_Store").write_bytes(b"")
    (mvtec / "nut/test/rust/Thumbs.db").write_bytes(b"")
    draw(mvtec / "nut/test/rust/.hidden.png")
    data = MVTecAD(mvtec, "nut")
    assert (len(data.train), len(data.test), data.ignored) == (4, 5, 4)


def test_duplicates_between_train_and_test_are_found(mvtec: Path) -> None:
    category = MVTecAD(mvtec, "nut").categories[0]
    assert category.duplicates() == []
    copy = mvtec / "nut/test/good/copy.png"
    copy.write_bytes((mvtec / "nut/train/good/002.png").read_bytes())
    changed = bytearray(copy.read_bytes())
    changed[-1] ^= 1
    (mvtec / "nut/test/good/same_size.png").write_bytes(changed)
    pairs = MVTecAD(mvtec, "nut").categories[0].duplicates()
    assert [(Path(train).name, Path(sample.path).name) for train, sample in pairs] == [
        ("002.png", "copy.png")
    ]


def test_bad_mvtec_folders_are_refused(mvtec: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*absent"):
        MVTecAD(mvtec / "absent")
    with pytest.raises(ValueError, match=r"category 'bolts' is not in .*; did you mean bolt\?"):
        MVTecAD(mvtec, "bolts")
    with pytest.raises(ValueError, match="there are: bolt, nut"):
        MVTecAD(mvtec, "xyz")
    (mvtec / "empty").mkdir()
    with pytest.raises(ValueError, match="root must hold folders with a train folder"):
        MVTecAD(mvtec / "empty")
    draw(mvtec / "nut/train/rust/000.png")
    with pytest.raises(ValueError, match="train must hold only 'good', got images in rust"):
        MVTecAD(mvtec, "nut")
    (mvtec / "bolt/train/good").rename(mvtec / "bolt/train/bad_name")
    with pytest.raises(ValueError, match="train must hold only 'good'"):
        MVTecAD(mvtec, "bolt")
    (mvtec / "bolt/train/bad_name").rename(mvtec / "elsewhere")
    with pytest.raises(ValueError, match="category bolt has no training images"):
        MVTecAD(mvtec, "bolt")
    (mvtec / "elsewhere").rename(mvtec / "bolt/train/good")
    (mvtec / "bolt/test").rename(mvtec / "elsewhere")
    with pytest.raises(ValueError, match="category bolt has no test images"):
        MVTecAD(mvtec, "bolt")


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """Two categories in VisA's raw layout, one with annotated kinds of defects."""
    lines = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        for index in range(5):
            image = f"{category}/Data/Images/Normal/{index:04}.JPG"
            draw(tmp_path / image)
            lines.append(f"{category},{'train' if index % 2 == 0 else 'test'},normal,{image},")
        for index in range(2):
            image = f"{category}/Data/Images/Anomaly/{index:03}.JPG"
            mask = f"{category}/Data/Masks/Anomaly/{index:03}.png"
            draw(tmp_path / image)
            draw_mask(tmp_path / mask)
            lines.append(f"{category},test,anomaly,{image},{mask}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "candle/image_anno.csv").write_text(
        "image,label,mask\n"
        "candle/Data/Images/Normal/0001.JPG,normal,\n"
        'candle/Data/Images/Anomaly/000.JPG,"wax missing,stuck wax",candle/Data/Masks/Anomaly/000.png\n'
        "candle/Data/Images/Anomaly/001.JPG,extra wax,candle/Data/Masks/Anomaly/001.png\n"
    )
    return tmp_path


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_visa_follows_its_csv(visa: Path) -> None:
    data = VisA(visa, "candle")
    assert data.name == "candle"
    assert [Path(path).stem for path in data.train] == ["0000", "0002", "0004"]
    assert [(Path(s.path).stem, s.label, s.defect_type) for s in data.test] == [
        ("000", True, "wax missing,stuck wax"),
        ("001", True, "extra wax"),
        ("0001", False, "good"),
        ("0003", False, "good"),
    ]
    assert relative(data.test[1].mask_path, visa) == "candle/Data/Masks/Anomaly/001.png"
    data.categories[0].check_masks()
    everything = VisA(visa)
    assert [category.name for category in everything.categories] == ["candle", "pcb1"]
    assert {sample.defect_type for sample in everything.categories[1].test} == {"good", "anomaly"}


def test_bad_visa_folders_are_refused(visa: Path) -> None:
    table = visa / "split_csv/1cls.csv"
    good = table.read_text()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*split_csv/2cls_fewshot\.csv"):
        VisA(visa, split="2cls_fewshot")
    with pytest.raises(ValueError, match=r"category 'pcb' is not in .*did you mean pcb1"):
        VisA(visa, "pcb")
    (visa / "pcb1/Data/Masks/Anomaly/000.png").rename(visa / "elsewhere.png")
    with pytest.raises(ValueError, match=r"1 defective image\(s\) have no mask .*Anomaly/000\.JPG"):
        VisA(visa, "pcb1")
    assert VisA(visa, "pcb1", missing_masks="exclude").test[0].mask_path is None
    (visa / "candle/Data/Images/Normal/0004.JPG").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 image\(s\) that do not exist: .*0004\.JPG"):
        VisA(visa, "candle")
    rewrite(table, "candle,test,anomaly", "candle,train,anomaly")
    with pytest.raises(ValueError, match=r"anomalous training image: candle/Data/Images/Anomaly/000\.JPG"):
        VisA(visa, "candle")
    table.write_text(good.replace("pcb1,train", "pcb1,test"))
    with pytest.raises(ValueError, match="category pcb1 has no training images"):
        VisA(visa, "pcb1")
    table.write_text(good.replace("candle,test,normal", "candle,test,fine"))
    with pytest.raises(ValueError, match="train or test and normal or anomaly, got 'test' and 'fine'"):
        VisA(visa, "candle")
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have the columns object, split, label, image, mask"):
        VisA(visa)


def test_visa_two_class_splits_leave_their_training_defects_out(visa: Path) -> None:
    image = "candle/Data/Images/Anomaly/000"
    lines = (visa / "split_csv/1cls.csv").read_text()
    assert f"candle,test,anomaly,{image}" in lines
    lines = lines.replace(f"candle,test,anomaly,{image}", f"candle,train,anomaly,{image}")
    (visa / "split_csv/2cls_fewshot.csv").write_text(lines)
    data = VisA(visa, "candle", split="2cls_fewshot")
    assert [Path(path).stem for path in data.train] == ["0000", "0002", "0004"]
    assert [Path(sample.path).stem for sample in data.test] == ["001", "0001", "0003"]
    assert data.notes == ("1 anomalous training image(s) of 2cls_fewshot.csv are left out",)
    assert VisA(visa, "pcb1", split="2cls_fewshot").notes == ()


def test_visa_without_its_csv(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").unlink()
    (visa / "candle/Data/Images/Normal/Thumbs.db").touch()
    # Masks by name: this one is sorted elsewhere than its image.
    masks = visa / "candle/Data/Masks/Anomaly"
    (masks / "001.png").rename(masks / "001_mask.png")
    draw_mask(masks / "aaa.png")
    data = VisA(visa, "candle", split=None, holdout=0.4)
    assert (data.name, len(data.train), data.ignored) == ("candle", 3, 1)
    found = {Path(s.path).stem: (s.label, s.defect_type) for s in data.test}
    assert len(found) == 4
    assert (found["000"], found["001"]) == ((True, "wax missing,stuck wax"), (True, "extra wax"))
    assert [relative(s.mask_path, visa) for s in data.test if s.label] == [
        "candle/Data/Masks/Anomaly/000.png",
        "candle/Data/Masks/Anomaly/001_mask.png",
    ]
    assert "1 mask(s)" in data.notes[0]
    assert VisA(visa, "candle", split=None, holdout=0.4).test == data.test
    others = {VisA(visa, "candle", split=None, holdout=0.4, seed=seed).train for seed in range(5)}
    assert len(others) > 1
    everything = VisA(visa, split=None)
    assert [category.name for category in everything.categories] == ["candle", "pcb1"]
    assert [len(category.train) for category in everything.categories] == [4, 4]
    with pytest.raises(ValueError, match=r"category 'pcb' is not in .*did you mean pcb1"):
        VisA(visa, "pcb", split=None)
    with pytest.raises(ValueError, match=r"holdout must be in \(0, 1\), got 1.0"):
        VisA(visa, split=None, holdout=1.0)
    (masks / "000.png").unlink()
    with pytest.raises(ValueError, match=r"1 defective image\(s\) have no mask .*Anomaly/000\.JPG"):
        VisA(visa, "candle", split=None)
    for path in (visa / "pcb1/Data/Images/Normal").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="category pcb1 has no training images"):
        VisA(visa, "pcb1", split=None)
    with pytest.raises(ValueError, match=r"root must hold folders with Data/Images/Normal"):
        VisA(visa / "split_csv", split=None)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Ten normal images, defects of two kinds and one beside them, masks laid out alike."""
    for index in range(10):
        draw(tmp_path / "ok" / f"{index}.jpg")
    for name in ("scratch/a", "scratch/b", "dent/a", "c"):
        draw(tmp_path / "bad" / f"{name}.jpg")
        draw_mask(tmp_path / "masks" / f"{name}_mask.png")
    return tmp_path


def test_folder_holds_out_normal_images(own: Path) -> None:
    data = Folder(own, normal="ok", anomalous="bad", masks="masks")
    held_out = {sample.path for sample in data.test if not sample.label}
    assert (len(data.train), len(held_out)) == (8, 2)
    assert {Path(path).name for path in held_out | set(data.train)} == {f"{index}.jpg" for index in range(10)}
    again = Folder(own, normal="ok", anomalous="bad", masks="masks")
    assert again.test == data.test
    others = [Folder(own, normal="ok", seed=seed).train for seed in range(5)]
    assert len(set(others)) > 1
    assert len(Folder(own, normal="ok", holdout=0.5).train) == 5
    assert data.name == own.name
    assert Folder(own, normal="ok", name="line 3").name == "line 3"


def test_folder_pairs_masks_in_the_same_place(own: Path) -> None:
    data = Folder(own, normal="ok", anomalous="bad", masks="masks")
    found = {relative(s.path, own): (s.defect_type, relative(s.mask_path, own)) for s in data.test if s.label}
    assert found == {
        "bad/c.jpg": ("bad", "masks/c_mask.png"),
        "bad/dent/a.jpg": ("dent", "masks/dent/a_mask.png"),
        "bad/scratch/a.jpg": ("scratch", "masks/scratch/a_mask.png"),
        "bad/scratch/b.jpg": ("scratch", "masks/scratch/b_mask.png"),
    }
    several = Folder(
        own, normal=["ok"], anomalous=["bad/dent", "bad/scratch"], masks=["masks/dent", "masks/scratch"]
    )
    assert {s.defect_type for s in several.test} == {"good", "dent", "scratch"}
    assert all(s.mask_path for s in several.test if s.label)


def test_folder_with_its_own_test_images(own: Path) -> None:
    draw(own / "later/x.jpg")
    data = Folder(own, normal="ok", test_normal="later")
    assert len(data.train) == 10
    assert [Path(sample.path).name for sample in data.test] == ["x.jpg"]


def test_folder_of_a_single_image(own: Path) -> None:
    draw(own / "one/x.jpg")
    data = Folder(own, normal="one", anomalous="bad")
    assert len(data.train) == 1
    assert all(sample.label for sample in data.test)
    assert "none is left to test on" in data.notes[0]
    assert data.notes[1] == "there are no masks: pixel metrics are not defined"


def test_bad_folders_are_refused(own: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*absent"):
        Folder(own, normal="absent")
    (own / "empty").mkdir()
    with pytest.raises(ValueError, match="normal must hold images, got none in empty"):
        Folder(own, normal="empty")
    with pytest.raises(ValueError, match=r"must hold no anomalous images, got 4 in both: .*bad/c\.jpg"):
        Folder(own, normal=["ok", "bad"], anomalous="bad")
    with pytest.raises(ValueError, match="masks must be one per anomalous folder, got 1 for 2"):
        Folder(own, normal="ok", anomalous=["bad/dent", "bad/scratch"], masks="masks")
    with pytest.raises(ValueError, match="masks must be None without anomalous images"):
        Folder(own, normal="ok", masks="masks")
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"holdout must be in \(0, 1\)"):
            Folder(own, normal="ok", holdout=share)
    (own / "masks/dent/a_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 defective image\(s\) have no mask in masks: .*bad/dent/a\.jpg"):
        Folder(own, normal="ok", anomalous="bad", masks="masks")


def test_a_link_to_a_defect_is_no_normal_image(own: Path) -> None:
    (own / "ok/sneaky.jpg").symlink_to(own / "bad/c.jpg")
    with pytest.raises(ValueError, match=r"got 1 in both: .*sneaky\.jpg"):
        Folder(own, normal="ok", anomalous="bad")


def test_data_sets_need_no_torch(mvtec: Path) -> None:
    script = (
        "import sys; from ensemblead.evaluation import MVTecAD, evaluate, auroc;"
        f"MVTecAD({str(mvtec)!r});"
        "found = {'torch', 'faiss', 'cupy', 'scipy', 'matplotlib'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", "", "candle/../.."])
def test_a_csv_names_no_category_outside(visa: Path, name: str) -> None:
    rewrite(visa / "split_csv/1cls.csv", "pcb1,test,anomaly", f"{name},test,anomaly")
    with pytest.raises(ValueError, match=r"1cls\.csv must name categories by their folders, got "):
        VisA(visa)


@pytest.mark.parametrize("column", ["Images/Anomaly/000.JPG", "Masks/Anomaly/000.png"])
@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "candle/../../x.png"])
def test_a_csv_names_no_file_outside(visa: Path, column: str, name: str) -> None:
    rewrite(visa / "split_csv/1cls.csv", f"candle/Data/{column}", name)
    with pytest.raises(ValueError, match=r"1cls\.csv must name files inside of the data set, got "):
        VisA(visa, "candle")


def test_a_csv_that_cannot_be_read_is_named(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").write_bytes(b"object,split,label,image,mask\n\xff\xfe\x00,\n")
    with pytest.raises(ValueError, match=r"cannot read .*1cls\.csv as csv"):
        VisA(visa)


def test_a_data_set_to_test_on_alone(own: Path) -> None:
    data = Folder(own, normal=None, anomalous="bad", masks="masks", test_normal="ok")
    assert data.train == ()
    assert [sample.label for sample in data.test].count(False) == 10
    assert data.categories[0].duplicates() == []
    assert Folder(own, normal=None, anomalous="bad").train == ()
    with pytest.raises(ValueError, match="normal must be given, or images to test on"):
        Folder(own, normal=None)


def test_masks_below_the_images_are_no_images(own: Path) -> None:
    (own / "masks").rename(own / "bad/true")
    data = Folder(own, normal="ok", anomalous="bad", masks="bad/true")
    assert sum(sample.label for sample in data.test) == 4
    assert {sample.defect_type for sample in data.test} == {"good", "bad", "dent", "scratch"}


def test_images_beside_their_folders_are_told(mvtec: Path) -> None:
    draw(mvtec / "nut/test/stray.png")
    draw(mvtec / "nut/train/stray.png")
    data = MVTecAD(mvtec, "nut")
    assert (len(data.train), len(data.test), data.ignored) == (4, 5, 2)
    assert [note.split(":")[0] for note in data.notes] == [
        f"1 image(s) lie in {mvtec / 'nut' / name} itself" for name in ("train", "test")
    ]


def test_masks_beside_good_test_images_are_no_defects(mvtec: Path) -> None:
    draw_mask(mvtec / "nut/test/masks/000.png")
    data = MVTecAD(mvtec, "nut")
    assert {sample.defect_type for sample in data.test} == {"good", "rust"}
    assert data.notes == (f"{mvtec / 'nut/test/masks'} holds masks by its name: 1 image(s) left out",)


def test_the_folders_that_were_searched(mvtec: Path, own: Path, visa: Path) -> None:
    assert {str(mvtec / "nut/train"), str(mvtec / "nut/test")} <= MVTecAD(mvtec, "nut").folders
    assert str(mvtec) not in MVTecAD(mvtec).folders
    assert {str(own / "ok"), str(own / "bad")} <= Folder(own, normal="ok", anomalous="bad").folders
    assert str(own / "ok") in Folder(own, normal=None, test_normal="ok").folders
    assert str(visa / "pcb1/Data/Images/Normal") in VisA(visa, "pcb1").folders


def test_pictures_that_are_not_read_are_noted(mvtec: Path, own: Path) -> None:
    for place in ("nut/test/rust/9.dng", "ok/1.cr2"):
        (mvtec / place).write_bytes(b"")
    assert "1 picture is of a type that is not read" in MVTecAD(mvtec, "nut").notes[-1]
    assert "1 picture is of a type that is not read" in Folder(own, normal="ok").notes[-1]


def test_a_damaged_header_is_skipped_with_its_image(mvtec: Path) -> None:
    category = MVTecAD(mvtec, "nut").categories[0]
    sample = next(one for one in category.test if one.label)
    draw(mvtec / "large.png", size=(9, 10))
    data = (mvtec / "large.png").read_bytes()
    Path(sample.path).write_bytes(data[:-40])
    category.check_masks("skip")
    with pytest.raises(ValueError, match="must be as large as its image"):
        category.check_masks("raise")
    Path(sample.path).write_bytes(data)  # whole, and of another size than its mask
    with pytest.raises(ValueError, match="must be as large as its image"):
        category.check_masks("skip")
