"""Hostile and unusual files: their memory, and their errors."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image, ImageFile
from support.pictures import chunk, draw, png, save

from ensemblead.common.errors import ImageTooLargeError, UnreadableImageError
from ensemblead.images import (
    Geometry,
    ImageSource,
    decode,
    iterate_batches,
    open_images,
    read_image,
    read_mask,
    upright_size,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TURNED = {
    1: IMAGE,
    2: IMAGE[:, ::-1],
    3: np.rot90(IMAGE, 2),
    4: IMAGE[::-1],
    5: IMAGE.swapaxes(0, 1),
    6: np.rot90(IMAGE, -1),
    7: np.rot90(IMAGE, 2).swapaxes(0, 1),
    8: np.rot90(IMAGE),
}


def turned(path: Path, pixels: np.ndarray, orientation: int, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, pixels, exif=exif, **options)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("webp", {"lossless": True})],
)
def test_every_orientation(tmp_path: Path, orientation: int, suffix: str, options: dict[str, object]) -> None:
    path = turned(tmp_path / f"a.{suffix}", IMAGE, orientation, **options)
    np.testing.assert_array_equal(read_image(path), TURNED[orientation])
    assert upright_size(path) == TURNED[orientation].shape[:2]
    grey = turned(tmp_path / f"b.{suffix}", IMAGE[..., 0], orientation, **options)
    np.testing.assert_array_equal(read_image(grey), np.dstack([TURNED[orientation][..., 0]] * 3))
    mask = turned(tmp_path / f"c.{suffix}", IMAGE[..., 0] // 128 * np.uint8(255), orientation, **options)
    np.testing.assert_array_equal(read_mask(mask), TURNED[orientation][..., 0] >= 128)


def test_sizes_come_from_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [turned(tmp_path / f"a.{suffix}", IMAGE, 6) for suffix in ("png", "jpg", "tif", "webp")]
    plain = save(tmp_path / "b.png", IMAGE)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert [upright_size(path) for path in paths] == [(30, 20)] * 4
    assert upright_size(plain) == (20, 30)


def test_an_orientation_behind_the_pixels_counts(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in IMAGE)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = png(tmp_path / "a.png", rows, IMAGE.shape[:2], 8, 2, chunk(b"eXIf", exif.tobytes()[6:]))
    np.testing.assert_array_equal(read_image(path), TURNED[6])
    assert upright_size(path) == (30, 20)


def test_large_images_need_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", IMAGE)
    said = r"a\.png: it has 30 x 20 = 600 pixels, more than max_pixels=599 allows"
    with pytest.raises(UnreadableImageError, match=said):
        read_image(path, max_pixels=599)
    with pytest.raises(UnreadableImageError, match=said):
        open_images([path], max_pixels=599).read(0)
    assert read_image(path, max_pixels=600).shape == IMAGE.shape
    monkeypatch.setenv("ENSEMBLEAD_MAX_PIXELS", "599")
    for read in (read_image, read_mask):
        with pytest.raises(UnreadableImageError, match="ENSEMBLEAD_MAX_PIXELS=600"):
            read(path)
    assert upright_size(path) == (20, 30)
    monkeypatch.setenv("ENSEMBLEAD_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="ENSEMBLEAD_MAX_PIXELS must be a positive whole number, got 'many'"):
        read_image(path)
    with pytest.raises(ValueError, match="max_pixels must be at least 1"):
        open_images([path], max_pixels=0)


def test_pillows_own_limit_is_neither_used_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", IMAGE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(read_image(path), IMAGE)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_header_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", b"", (60000, 60000), 8, 2)
    with pytest.raises(UnreadableImageError, match="more than max_pixels=178956970 allows"):
        read_image(path)
    assert upright_size(path) == (60000, 60000)


def test_programs_are_not_started_for_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UnreadableImageError, match="no image of a known format"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "LA", "CMYK", "I;16"])
def test_bands_change_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    image = Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
    image = image or Image.fromarray(np.dstack([IMAGE, IMAGE[..., 1]])).convert(mode)
    image.save(tmp_path / "a.tif")
    whole = read_image(tmp_path / "a.tif")
    monkeypatch.setattr(decode, "_BAND_PIXELS", 90)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), whole)


PEAK = """
import sys
import numpy as np
from ensemblead.common.memory import peak_memory_mb, reset_peak_memory
from ensemblead.images import Geometry, read_image, read_mask
read_image(sys.argv[1])
assert reset_peak_memory()
before = peak_memory_mb()
{work}
print(peak_memory_mb() - before)
"""


def peak_mb(work: str, *paths: Path) -> float:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory can be measured on Linux alone")
    command = [sys.executable, "-c", PEAK.format(work=work), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_one_pixel_by_many_stays_small(tmp_path: Path) -> None:
    """254 bytes that were gigabytes after a resize of the shorter side."""
    count = 200_000
    small, path = draw(tmp_path / "small.png"), tmp_path / "thin.png"
    png(path, b"\0\0" * count, (count, 1), 8, 0)
    assert path.stat().st_size < 1000
    work = "print(Geometry(256, 224).apply(read_image(sys.argv[2])).shape, file=sys.stderr)"
    assert peak_mb(work, small, path) < 40
    mask = "assert Geometry(256, 224).apply_mask(read_mask(sys.argv[2])).shape == (224, 224)"
    assert peak_mb(mask, small, path) < 40
    with pytest.raises(UnreadableImageError, match=r"aspect ratio of 200000 x 1 pixels .* too extreme"):
        Geometry(256, None).apply(read_image(path))
    with iterate_batches(open_images([path, small]), [Geometry(256, None)], 1, errors="skip") as batches:
        assert [batch.indices for batch in batches] == [[1]]
    assert "thin.png" in batches.skipped[0].reason


@pytest.mark.parametrize("size", [(2_000_000, 1), (1, 2_000_000)])
def test_one_pixel_by_many_stays_small_at_an_exact_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """Every row as wide as the result would be 1.5 GB, sixteen rows of the image another 100 MB."""
    small, path = draw(tmp_path / "small.png"), tmp_path / "thin.png"
    png(path, (b"\0" + bytes(size[1])) * size[0], size, 8, 0)
    work = "assert Geometry((256, 256), None).apply(read_image(sys.argv[2])).shape == (256, 256, 3)"
    assert peak_mb(work, small, path) < 80


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4000, 3), (3, 4000), (1, 100_000)])
def test_the_crop_of_an_extreme_image_is_that_of_the_whole(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    geometry = Geometry(64, (64, 50)) if size[0] < size[1] else Geometry(64, (50, 64))
    height, width = geometry.resized_size(*size)
    whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - geometry.crop[0]) / 2), round((width - geometry.crop[1]) / 2)
    expected = whole[top : top + geometry.crop[0], left : left + geometry.crop[1]]
    got = geometry.apply(image)
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "bytes_per_pixel"), [(3, 8), (1, 8), (4, 8)])
def test_the_peak_of_one_image_is_as_stated(tmp_path: Path, channels: int, bytes_per_pixel: int) -> None:
    height, width = 5000, 6000
    small, path = draw(tmp_path / "small.png"), tmp_path / "large.png"
    rows = (b"\0" + bytes(width * channels)) * height
    png(path, rows, (height, width), 8, {1: 0, 3: 2, 4: 6}[channels])
    megabytes = height * width / 2**20
    # A band and the buffers of the decoder come on top of it.
    assert peak_mb("read_image(sys.argv[2])", small, path) < bytes_per_pixel * megabytes + 70


class Scarce(ImageSource):
    """Images, of which one does not fit into memory."""

    def __init__(self) -> None:
        self.paths = ["a.png", "b.png", "c.png"]

    def read(self, index: int) -> np.ndarray:
        if index == 1:
            raise MemoryError
        return IMAGE


def test_scarce_memory_names_the_file_and_can_be_skipped() -> None:
    with pytest.raises(MemoryError, match=r"not enough memory to read b\.png"):
        list(iterate_batches(Scarce(), [Geometry(None, None)], 1))
    with iterate_batches(Scarce(), [Geometry(None, None)], 1, errors="skip") as batches:
        assert [batch.indices for batch in batches] == [[0], [2]]
    assert [one.path for one in batches.skipped] == ["b.png"]


def test_scarce_memory_while_decoding_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", IMAGE)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "upright", fail)
    with pytest.raises(MemoryError, match=re.escape(str(path))):
        read_image(path)


def test_an_image_without_its_pixels_is_refused(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", b"\0", (9000, 9000), 8, 2)
    with pytest.raises(UnreadableImageError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize(("tile", "refused"), [((256, 256), False), ((4096, 1040), True)])
def test_a_tiff_of_tiles_far_larger_than_itself(tmp_path: Path, tile: tuple[int, int], refused: bool) -> None:
    """Tiles are decoded whole, and those of small images are larger than these in ordinary files too."""
    data = zlib.compress(bytes(tile[0] * tile[1]))
    longs = {256: 16, 257: 16, 322: tile[0], 323: tile[1], 324: 134, 325: len(data)}
    shorts = {258: 8, 259: 8, 262: 1, 277: 1}
    entries = sorted(
        [(tag, 4, 1, value) for tag, value in longs.items()] + [(t, 3, 1, v) for t, v in shorts.items()]
    )
    header = (
        b"II*\0"
        + struct.pack("<IH", 8, len(entries))
        + b"".join(struct.pack("<HHII", *one) for one in entries)
    )
    path = tmp_path / "a.tif"
    path.write_bytes(header + bytes(4) + data)
    if refused:
        with pytest.raises(ImageTooLargeError, match="its tiles have 4096 x 1040 = 4259840 pixels"):
            read_image(path, max_pixels=1000)
    else:
        assert read_image(path, max_pixels=1000).shape == (16, 16, 3)
