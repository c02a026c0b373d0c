"""Decoding, geometry, sources and batches of ensemblead.images."""

from __future__ import annotations

import gc
import struct
import threading
import time
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
    ImageSource,
    iterate_batches,
    open_images,
    read_image,
    read_mask,
)


def drawn(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ensemblead-decode")]


# Geometry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30, 40), (41, 33), (37, 37), (101, 64), (256, 300), (20, 20), (97, 31)])
@pytest.mark.parametrize("resize", [None, 32, 37, (33, 51), (20, 20)])
@pytest.mark.parametrize("crop", [None, 19, 20, (17, 20)])
def test_geometry_is_torchvisions(size, resize, crop):
    image = drawn(*size)
    steps = [] if resize is None else [transforms.Resize(resize)]
    steps += [] if crop is None else [transforms.CenterCrop(crop)]
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray(image)))
    geometry = Geometry(resize, crop)
    got = geometry.apply(image)
    np.testing.assert_array_equal(got, expected)
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
    with pytest.raises(ValueError, match=r"no image files in .*1 other files ignored"):
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


# Batches ------------------------------------------------------------------------------------------


class Counted(ImageSource):
    """Images that tell how often each was read; `size(i)` may vary; reading `broken` fails."""

    def __init__(self, number, size=lambda i: (24, 32), broken=()):
        self.paths = [f"image_{i}.png" for i in range(number)]
        self.reads = []
        self.size, self.broken = size, broken

    def read(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise UnreadableImageError(f"cannot read image {self.paths[index]}: broken")
        return np.full((*self.size(index), 3), index, np.uint8)


def test_batches_hold_every_image_once_and_in_order():
    source = Counted(11, size=lambda i: (24, 32 + i))
    geometries = [Geometry(16, 12), Geometry((20, 20), None), Geometry(16, (12, 12))]
    batches = list(iterate_batches(source, geometries, 4, workers=3))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert [i for batch in batches for i in batch.indices] == list(range(11))
    assert [path for batch in batches for path in batch.paths] == source.paths
    assert [size for batch in batches for size in batch.sizes] == [(24, 32 + i) for i in range(11)]
    assert sorted(source.reads) == list(range(11))
    for batch in batches:
        assert set(batch.images) == set(geometries)
        assert len(batch.images) == 2
        for geometry, shape in zip(geometries, [(3, 12, 12), (3, 20, 20)], strict=False):
            images = batch.images[geometry]
            assert images.dtype == torch.uint8
            assert images.is_contiguous()
            assert images.shape == (len(batch), *shape)
            assert images[:, 0, 0, 0].tolist() == batch.indices


def test_batches_put_channels_first():
    rgb = drawn()
    (batch,) = iterate_batches(open_images(rgb[None]), [Geometry(None, None)], 1)
    np.testing.assert_array_equal(batch.images[Geometry(None, None)][0].numpy(), rgb.transpose(2, 0, 1))


def test_batches_raise_at_what_cannot_be_read():
    before = decoding_threads()
    source = Counted(9, broken=(5,))
    batches = iterate_batches(source, [Geometry(None, None)], 2)
    assert next(batches).indices == [0, 1]
    assert next(batches).indices == [2, 3]
    with pytest.raises(UnreadableImageError, match=r"image_5\.png"):
        next(batches)
    assert decoding_threads() == before


def test_batches_skip_and_count(tmp_path):
    source = Counted(9, broken=(0, 5, 8))
    with iterate_batches(source, [Geometry(None, None)], 2, errors="skip") as batches:
        assert [batch.indices for batch in batches] == [[1, 2], [3, 4], [6, 7]]
        assert [(image.index, image.path) for image in batches.skipped] == [
            (0, "image_0.png"),
            (5, "image_5.png"),
            (8, "image_8.png"),
        ]
        assert "broken" in batches.skipped[0].reason
    missing = open_images([tmp_path / "gone.png"])
    batches = iterate_batches(missing, [Geometry(None, None)], 2, errors="skip")
    assert list(batches) == []
    assert len(batches.skipped) == 1


def test_skipping_does_not_hide_other_errors():
    source = Counted(3)
    with pytest.raises(ValueError, match=r"image_0\.png: crop \(99, 99\) does not fit"):
        list(iterate_batches(source, [Geometry(None, 99)], 2, errors="skip"))


def test_batches_of_different_sizes_name_both_images():
    source = Counted(4, size=lambda i: (24, 40 if i == 2 else 32))
    with pytest.raises(
        ValueError, match=r"image_0\.png comes out as \(24, 32\) and image_2\.png as \(24, 40\)"
    ):
        list(iterate_batches(source, [Geometry(24, None)], 3))
    widths = [b.images[Geometry(24, None)].shape[3] for b in iterate_batches(source, [Geometry(24, None)], 1)]
    assert widths == [32, 32, 40, 32]


def test_reading_ahead_is_bounded_and_overlaps():
    source = Counted(100)
    batches = iterate_batches(source, [Geometry(None, None)], 2, workers=2, prefetch=3)
    assert source.reads == []
    next(batches)
    deadline = time.monotonic() + 10
    while len(source.reads) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    # Two of the first batch and three batches ahead: read though nobody has asked for them, and no more.
    time.sleep(0.05)
    assert len(source.reads) == 8
    batches.close()


@pytest.mark.parametrize("ending", ["close", "break", "with", "throw", "drop"])
def test_threads_end_with_the_iterator(ending):
    source = Counted(200)
    if ending == "close":
        batches = iterate_batches(source, [Geometry(None, None)], 2)
        next(batches)
        assert decoding_threads()
        batches.close()
        assert next(batches, None) is None
    elif ending == "break":
        for _ in iterate_batches(source, [Geometry(None, None)], 2):
            assert decoding_threads()
            break
    elif ending == "with":
        with iterate_batches(source, [Geometry(None, None)], 2) as batches:
            next(batches)
    elif ending == "throw":
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the interrupt falls inside the loop
            for _ in iterate_batches(source, [Geometry(None, None)], 2):
                raise KeyboardInterrupt
    else:
        gc.disable()
        try:
            batches = iterate_batches(source, [Geometry(None, None)], 2)
            next(batches)
            del batches  # no cycle collector needed
        finally:
            gc.enable()
    assert not decoding_threads()
    assert len(source.reads) < 200


def test_a_dataset_is_read_by_one_thread():
    readers = set()

    class Watching(Items):
        def __getitem__(self, index):
            readers.add(threading.get_ident())
            time.sleep(0.002)
            return self.items[index]

    list(iterate_batches(open_images(Watching([drawn()] * 12)), [Geometry(None, None)], 3, workers=4))
    assert len(readers) == 1
    assert threading.get_ident() not in readers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"errors": "ignore"}, "errors must be"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"prefetch": -1}, "prefetch must not be negative"),
        ({"geometries": []}, "geometries must not be empty"),
    ],
)
def test_batches_refuse_wrong_arguments(arguments, message):
    arguments = {"geometries": [Geometry(None, None)], "batch_size": 1} | arguments
    with pytest.raises(ValueError, match=message):
        iterate_batches(Counted(1), **arguments)
    with pytest.raises(TypeError, match="source must come from open_images"):
        iterate_batches([drawn()], [Geometry(None, None)], 1)


@pytest.mark.parametrize("batch_size", [2.5, 2.0, True, "2"])
def test_batches_have_whole_sizes(batch_size):
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        iterate_batches(Counted(1), [Geometry(None, None)], batch_size)


@pytest.mark.parametrize(("resize", "crop"), [(32, 64), (32, (33, 40)), ((32, 80), 64)])
def test_a_crop_that_never_fits_is_refused_at_once(resize, crop):
    with pytest.raises(ValueError, match=r"crop \(\d+, \d+\) does not fit into"):
        Geometry(resize, crop)
    # The longer side of some images is long enough.
    assert Geometry(32, (32, 64)).output_size(10, 40) == (32, 64)
