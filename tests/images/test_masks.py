"""Masks mean what they show; ambiguous ones are refused, suspicious ones are noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image
from support.pictures import draw, save

from ensemblead.common.errors import UnreadableImageError
from ensemblead.datasets import MVTecAD
from ensemblead.images import examine_mask, read_mask
from ensemblead.images.masks import GREY, INVERTED, LOSSY, SPECKS

TRUTH = np.zeros((48, 64), bool)
TRUTH[20:36, 13:40] = True
PAINT = TRUTH.astype(np.uint8) * 255


def merged(mode: str, *planes: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(plane) for plane in planes])


def check(path: Path, image: Image.Image, *notes: str, **options: Any) -> None:
    image.save(path, **options)
    mask, noted = examine_mask(path)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, TRUTH)
    assert noted == notes
    np.testing.assert_array_equal(read_mask(path), mask)


def refused(path: Path, image: Image.Image, why: str, **options: Any) -> None:
    image.save(path, **options)
    with pytest.raises(UnreadableImageError, match=rf"mask .*{path.name} is ambiguous: .*{why}"):
        read_mask(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {}),
        ("a.jpg", {"quality": 30}),
        ("a.webp", {"quality": 50}),
        ("a.jp2", {"quality_layers": [8]}),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_loss_is_no_defect(tmp_path: Path, name: str, options: dict[str, Any], mode: str) -> None:
    Image.fromarray(PAINT).convert(mode).save(tmp_path / name, **options)
    mask, noted = examine_mask(tmp_path / name)
    assert np.count_nonzero(mask ^ TRUTH) <= 12  # corners
    assert mask[21:35, 14:39].all()
    assert not mask[:19].any()
    if noted:
        assert noted == (LOSSY,)
    else:
        assert set(np.unique(Image.open(tmp_path / name))) == {0, 255}


def test_loss_that_was_saved_without_loss_is_noted(tmp_path: Path) -> None:
    Image.fromarray(PAINT).save(tmp_path / "a.jpg", quality=60)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    mask, noted = examine_mask(tmp_path / "a.png")
    assert noted == (LOSSY,)
    assert np.count_nonzero(mask ^ TRUTH) <= 4


@pytest.mark.parametrize("value", [1, 60, 127])
def test_labels_under_loss_are_refused(tmp_path: Path, value: int) -> None:
    refused(tmp_path / "a.jpg", Image.fromarray(TRUTH.astype(np.uint8) * np.uint8(value)), "loss")
    Image.fromarray(PAINT * 0).save(tmp_path / "b.jpg")
    assert not read_mask(tmp_path / "b.jpg").any()


@pytest.mark.parametrize("hidden", [0, 255])
def test_alpha_is_composited(tmp_path: Path, hidden: int) -> None:
    colour = np.where(TRUTH, 255, hidden).astype(np.uint8)
    check(tmp_path / "rgba.png", merged("RGBA", colour, colour, colour, PAINT))
    check(tmp_path / "la.png", merged("LA", colour, PAINT))
    check(tmp_path / "faint.png", merged("LA", np.minimum(colour, 3), PAINT // 2))
    check(tmp_path / "opaque.png", merged("LA", PAINT, PAINT * 0 + 255))


def test_transparency_that_says_something_else_is_refused(tmp_path: Path) -> None:
    black = PAINT * 0
    refused(tmp_path / "black paint.png", merged("RGBA", black, black, black, PAINT), "over black")
    refused(tmp_path / "unseen paint.png", merged("LA", PAINT, black), "over black")
    merged("LA", black, black).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png").any()


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def test_palettes(tmp_path: Path) -> None:
    red, white, black = (200, 0, 0), (255, 255, 255), (0, 0, 0)
    check(tmp_path / "labels.png", palette(TRUTH, black, red))
    check(tmp_path / "labels.gif", palette(TRUTH, black, white))
    check(tmp_path / "exchanged.png", palette(~TRUTH, white, black))  # as programs that save space write grey
    check(tmp_path / "colourless.png", palette(TRUTH, black, black))
    check(tmp_path / "clear.png", palette(TRUTH, white, red), transparency=0)
    refused(tmp_path / "paper.png", palette(TRUTH, white, red), "palette")
    three = TRUTH.astype(np.uint8)
    three[25:30, 20:30] = 2
    refused(tmp_path / "three.png", palette(three, black, red, black), "palette")


@pytest.mark.parametrize(("name", "mode"), [("a.tif", "CMYK"), ("a.tif", "YCbCr"), ("a.tif", "LAB")])
def test_colours_are_converted(tmp_path: Path, name: str, mode: str) -> None:
    grey = PAINT * 0 + 128
    lab, rgb = merged("LAB", PAINT, grey, grey), Image.fromarray(np.dstack([PAINT] * 3))
    check(tmp_path / name, lab if mode == "LAB" else rgb.convert(mode))


def test_numbers_of_any_kind(tmp_path: Path) -> None:
    check(tmp_path / "16.png", Image.fromarray(TRUTH.astype(np.uint16) * np.uint16(300)))
    check(tmp_path / "32.tif", Image.fromarray(TRUTH.astype(np.int32) * np.int32(70000)))
    check(tmp_path / "float.tif", Image.fromarray(TRUTH.astype(np.float32) / 4))
    check(tmp_path / "white is zero.tif", Image.fromarray(PAINT), tiffinfo={262: 0})
    broken = TRUTH.astype(np.float32)
    broken[0, 0] = np.nan
    refused(tmp_path / "nan.tif", Image.fromarray(broken), "not finite")


def test_suspicious_masks_are_noted(tmp_path: Path) -> None:
    soft = np.where(TRUTH, np.arange(64) + 50, 0).astype(np.uint8)
    check(tmp_path / "soft.png", Image.fromarray(soft), GREY)
    specks = PAINT.copy()
    specks[0:18:3, ::10] = 255
    _, noted = examine_mask(save(tmp_path / "specks.png", specks))
    assert noted == (SPECKS,)
    _, noted = examine_mask(save(tmp_path / "inverted.png", np.full((9, 9), 255, np.uint8)))
    assert noted == (INVERTED,)


def test_one_mask_of_two_images_is_refused(tmp_path: Path) -> None:
    for place in ("train/good/0.png", "test/dent/0.png", "test/dent/0.jpg"):
        draw(tmp_path / place)
    save(tmp_path / "ground_truth/dent/0_mask.png", PAINT)
    with pytest.raises(ValueError, match=r"0_mask\.png must be of one image, got two: .*0\.jpg and .*0\.png"):
        MVTecAD(tmp_path)
