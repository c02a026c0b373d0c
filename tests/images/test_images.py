"""Decoding, geometry and sources of ensemblead.images."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transforms = pytest.importorskip("torchvision.transforms")
from PIL import Image  # noqa: E402

from ensemblead.common.errors import UnreadableImageError  # noqa: E402
from ensemblead.images import (  # noqa: E402
    Geometry,
    open_images,
    read_image,
    read_mask,
)


def drawn(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Geometry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30, 40), (41, 33), (37, 37), (101, 64), (256, 300), (20, 20), (97, 31)])
@pytest.mark.parametrize("resize", [None, 32, 37, (33, 51), (20, 20)])
@pytest.mark.parametrize("crop", [None, 19, 20, (17, 20)])
def test_geometry_is_torchvisions(size, resize, crop):
    """To one level: Pillow sums columns before rows in some versions, where that is less work."""
    image = drawn(*size)
    steps = [] if resize is None else [transforms.Resize(resize)]
    steps += [] if crop is None else [transforms.CenterCrop(crop)]
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray(image)))
    geometry = Geometry(resize, crop)
    got = geometry.apply(image)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert got.flags.c_contiguous
    assert geometry.output_size(*size) == got.shape[:2]


def test_geometry_mask_is_nearest_and_binary():
    mask = (drawn(61, 83)[..., 0] > 250).astype(np.uint16) * 700
    geometry = Geometry(37, 31)
    steps = [transforms.Resize(37, transforms.InterpolationMode.NEAREST), transforms.CenterCrop(31)]
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray((mask > 0).astype(np.uint8)))) > 0
    got = geometry.apply_mask(mask)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, expected)
    assert got.any()
    assert not got.all()
    np.testing.assert_array_equal(geometry.apply_mask(mask > 0), expected)


def test_geometry_crop_box_maps_back_to_the_original():
    assert Geometry(None, None).crop_box(30, 40) == (0, 0, 30, 40)
    assert Geometry((10, 10), None).crop_box(30, 40) == (0, 0, 30, 40)
    # 100 x 200 -> 50 x 100, of which the middle 40 x 40 is rows 5..45, columns 30..70.
    assert Geometry(50, 40).crop_box(100, 200) == (10, 60, 90, 140)


def test_geometry_equality_is_by_meaning():
    assert Geometry(256, 224) == Geometry(256, (224, 224))
    assert len({Geometry(256, 224), Geometry(256, (224, 224)), Geometry(256, 200)}) == 2
    assert Geometry(np.int64(8), None) == Geometry(8, None)


@pytest.mark.parametrize("resize", [0, -3, (4,), (4, 5, 6), (0, 5)])
def test_geometry_refuses_wrong_sizes(resize):
    with pytest.raises(ValueError, match="resize must be"):
        Geometry(resize, None)


@pytest.mark.parametrize("crop", [2.5, "224", True, (2.0, 3)])
def test_geometry_refuses_what_is_no_size(crop):
    with pytest.raises(TypeError, match="crop must be"):
        Geometry(None, crop)


def test_geometry_refuses_a_crop_that_does_not_fit():
    with pytest.raises(ValueError, match=r"crop \(50, 50\) does not fit .*\(40, 60\)"):
        Geometry((40, 60), 50)
    with pytest.raises(
        ValueError, match=r"crop \(50, 50\) does not fit into the resized image of size \(30, 40\)"
    ):
        Geometry(None, 50).apply(drawn(30, 40))


def test_geometry_refuses_wrong_arrays():
    with pytest.raises(TypeError, match="image must be uint8, got float32"):
        Geometry(None, None).apply(drawn().astype(np.float32))
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\], got shape \(30, 40\)"):
        Geometry(None, None).apply(drawn()[..., 0])
    with pytest.raises(ValueError, match=r"mask must be \[H, W\]"):
        Geometry(None, None).apply_mask(drawn())


# Decoding -----------------------------------------------------------------------------------------


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_read_rgb_grey_and_bilevel(tmp_path):
    rgb = drawn()
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", Image.fromarray(rgb))), rgb)
    grey = read_image(saved(tmp_path / "b.png", Image.fromarray(rgb[..., 0])))
    np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))
    bits = rgb[..., 0] > 127
    bilevel = read_image(saved(tmp_path / "c.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(bilevel, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


def test_read_palette_and_cmyk(tmp_path):
    palette = Image.fromarray(drawn()).quantize(16)
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "a.png", palette)), np.asarray(palette.convert("RGB"))
    )
    cmyk = Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).convert("CMYK")
    got = read_image(saved(tmp_path / "b.tif", cmyk))
    np.testing.assert_array_equal(got, np.asarray(cmyk.convert("RGB")))


def test_read_alpha_is_composited_over_black(tmp_path):
    rgb = drawn()
    alpha = np.zeros(rgb.shape[:2], np.uint8)
    alpha[:10], alpha[10:20] = 255, 128
    rgba = np.dstack([rgb, alpha])
    got = read_image(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(got[:10], rgb[:10])
    assert not got[20:].any()
    np.testing.assert_allclose(got[10:20], rgb[10:20] * (128 / 255), atol=1)
    grey = read_image(saved(tmp_path / "b.png", Image.fromarray(np.dstack([rgb[..., 0], alpha]))))
    np.testing.assert_array_equal(grey[:10], np.repeat(rgb[:10, :, :1], 3, axis=2))
    assert not grey[20:].any()


def test_read_transparent_palette_entry_is_black(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putpixel((1, 0), 1)
    got = read_image(saved(tmp_path / "a.png", image, transparency=0))
    np.testing.assert_array_equal(got[0, 1], [10, 200, 10])
    np.testing.assert_array_equal(got[1, 1], [0, 0, 0])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_read_sixteen_bits_on_one_fixed_scale(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 300], [4095, 32768, 65278, 65407, 65535]], np.uint16)
    got = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    expected = np.rint(values / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, axis=2))
    assert got[1, 4, 0] == 255


def test_twelve_bits_in_sixteen_are_told(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 700], [4095, 2000]], np.uint16)))
    with pytest.warns(UserWarning, match="no value above 4095"):
        got = read_image(path)
    assert got.max() == 16


def test_read_sixteen_bit_colour_png(tmp_path):
    # Pillow cannot write these, so the file is put together here.
    values = np.random.default_rng(3).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    got = read_image(path)
    np.testing.assert_allclose(got, values.astype(np.int64) / 257.0, atol=1.0)


def test_read_turns_by_exif(tmp_path):
    rgb = drawn(20, 30)
    for orientation, turned in [
        (3, np.rot90(rgb, 2)),
        (6, np.rot90(rgb, -1)),
        (8, np.rot90(rgb)),
        (2, rgb[:, ::-1]),
    ]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path / f"{orientation}.png", Image.fromarray(rgb), exif=exif)
        np.testing.assert_array_equal(read_image(path), turned)


def test_read_takes_the_first_frame(tmp_path):
    pages = [Image.fromarray(np.full((6, 5, 3), value, np.uint8)) for value in (40, 90)]
    path = saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    assert (read_image(path) == 40).all()


def test_read_refuses_pixels_without_a_range(tmp_path):
    floats = saved(tmp_path / "f.tif", Image.fromarray(np.full((4, 4), 0.5, np.float32)))
    with pytest.raises(UnreadableImageError, match=r"f\.tif: floating-point"):
        read_image(floats)
    wide = saved(tmp_path / "i.tif", Image.fromarray(np.full((4, 4), 70000, np.int32)))
    with pytest.raises(UnreadableImageError, match=r"i\.tif: 32-bit pixels with values in \[70000, 70000\]"):
        read_image(wide)


def test_read_names_what_it_cannot_read(tmp_path):
    whole = saved(tmp_path / "whole.jpg", Image.fromarray(drawn(200, 200)))
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for path in (truncated, text, empty):
        with pytest.raises(UnreadableImageError, match=path.name) as caught:
            read_image(path)
        assert isinstance(caught.value, ValueError)
        with pytest.raises(UnreadableImageError, match=path.name):
            read_mask(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")


def test_read_mask_of_any_mode(tmp_path):
    truth = drawn()[..., 0] > 200
    grey = (truth * 255).astype(np.uint8)
    palette = Image.fromarray(truth.astype(np.uint8))
    palette = palette.convert("P") if palette.mode != "P" else palette
    files = [
        saved(tmp_path / "l.png", Image.fromarray(grey)),
        saved(tmp_path / "1.png", Image.fromarray(truth)),
        saved(tmp_path / "16.png", Image.fromarray(truth.astype(np.uint16) * 3)),
        saved(tmp_path / "rgb.png", Image.fromarray(np.dstack([grey * 0, grey, grey * 0]))),
        saved(tmp_path / "rgba.png", Image.fromarray(np.dstack([grey, grey, grey, grey * 0 + 255]))),
        saved(tmp_path / "p.png", palette),
    ]
    for path in files:
        got = read_mask(path)
        assert got.dtype == np.bool_, path
        np.testing.assert_array_equal(got, truth, err_msg=str(path))


# Sources ------------------------------------------------------------------------------------------


def folder_of(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
    return root


def test_folder_is_read_in_natural_order_with_its_subfolders(tmp_path):
    folder_of(tmp_path, ["10.png", "2.PNG", "b/1.jpg", "a/c/3.bmp", "1.png", ".hidden.png", ".thumbs/1.png"])
    (tmp_path / "notes.txt").write_text("x")
    source = open_images(tmp_path)
    relative = [Path(path).relative_to(tmp_path).as_posix() for path in source.paths]
    assert relative == ["1.png", "2.PNG", "10.png", "a/c/3.bmp", "b/1.jpg"]
    assert source.ignored == 3
    assert len(source) == 5
    assert (source.read(0) == 4).all()
    assert open_images(str(tmp_path)).paths == source.paths


def test_folder_links_are_followed_once(tmp_path):
    outside = folder_of(tmp_path / "outside", ["1.png"])
    root = folder_of(tmp_path / "root", ["0.png"])
    (root / "linked").symlink_to(outside)
    (outside / "back").symlink_to(root)
    names = [Path(path).relative_to(root).as_posix() for path in open_images(root).paths]
    assert names == ["0.png", "linked/1.png"]


def test_one_file_and_lists_keep_what_is_given(tmp_path):
    folder_of(tmp_path, ["1.png", "2.png"])
    assert open_images(tmp_path / "2.png").paths == [str(tmp_path / "2.png")]
    paths = [tmp_path / "2.png", str(tmp_path / "1.png")]
    source = open_images(paths)
    assert source.paths == [str(path) for path in paths]
    assert open_images(source) is source


def test_folder_without_images_or_missing(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no image files in .*1 other file ignored"):
        open_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such image or folder of images: .*nowhere"):
        open_images(tmp_path / "nowhere")


def test_arrays(tmp_path):
    images = np.stack([drawn(seed=0), drawn(seed=1)])
    source = open_images(images)
    assert source.paths == [None, None]
    np.testing.assert_array_equal(source.read(1), images[1])
    np.testing.assert_array_equal(
        open_images(images[..., 0]).read(0), np.repeat(images[0, ..., :1], 3, axis=2)
    )


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), TypeError, r"must be uint8, got float32; .*\* 255"),
        (np.zeros((2, 3, 8, 8), np.uint8), ValueError, r"got shape \(2, 3, 8, 8\) \(channels come last\)"),
        (
            np.zeros((8, 8, 3), np.uint8),
            ValueError,
            r"got shape \(8, 8, 3\) \(one image alone is images\[None\]\)",
        ),
        (np.zeros((0, 8, 8, 3), np.uint8), ValueError, "must not be empty"),
        (torch.zeros(2, 3, 8, 8), TypeError, r"permute\(0, 2, 3, 1\)"),
        ([], ValueError, "must not be empty"),
        ([np.zeros((8, 8, 3), np.uint8)], TypeError, r"images\[0\] must be a path, got ndarray"),
        (5, TypeError, "got int"),
        ({"a": 1}, TypeError, "got dict"),
        (iter(()), TypeError, "with a length"),
    ],
)
def test_wrong_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        open_images(images)


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_dataset_items_of_every_kind():
    rgb = drawn()
    chw = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    kinds = [
        rgb,
        (rgb, 1),
        [rgb],
        Image.fromarray(rgb),
        chw,
        chw.float() / 255.0,
        (chw.double() / 255.0, "label"),
    ]
    source = open_images(Items(kinds))
    assert len(source) == len(kinds)
    assert source.paths == [None] * len(kinds)
    for i in range(len(kinds)):
        np.testing.assert_array_equal(source.read(i), rgb)
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    for item in (rgb[..., 0], chw[:1], Image.fromarray(rgb[..., 0])):
        np.testing.assert_array_equal(open_images(Items([item])).read(0), grey)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (torch.randn(3, 8, 8) * 2 - 5, ValueError, r"item 0 of the Dataset must be a float tensor in 0\.\.1"),
        (torch.full((3, 8, 8), float("nan")), ValueError, r"in 0\.\.1, got values in \[nan, nan\]"),
        (
            torch.zeros(8, 8, 3),
            ValueError,
            r"must be \[3, H, W\] or \[1, H, W\] as a tensor, got shape \(8, 8, 3\)",
        ),
        (np.zeros((8, 8, 3)), TypeError, "must be uint8, got an array of float64"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"got shape \(8, 8, 2\)"),
        ("a.png", TypeError, "must be a PIL image, an array or a tensor, got str"),
    ],
)
def test_dataset_wrong_items_are_refused(item, error, message):
    with pytest.raises(error, match=message):
        open_images(Items([item])).read(0)
    with pytest.raises(ValueError, match="Dataset of length 0"):
        open_images(Items([]))
