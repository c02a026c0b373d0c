"""16-bit files that hold fewer bits: one stated scale for all images of a model."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from support.pictures import png_of_sixteen_bits, save

from ensemblead.common.errors import UnreadableImageError
from ensemblead.images import (
    BIT_DEPTHS,
    BitDepthWarning,
    Geometry,
    detect_bits,
    iterate_batches,
    open_images,
    read_image,
)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return np.floor(values.astype(np.float64) * 255 / (2**bits - 1) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("bits", BIT_DEPTHS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_depth_has_the_whole_range(tmp_path: Path, bits: int, suffix: str) -> None:
    values = np.linspace(0, 2**bits - 1, 300).astype(np.uint16).reshape(15, 20)
    grey = save(tmp_path / f"grey.{suffix}", values)
    np.testing.assert_array_equal(read_image(grey, bits=bits), np.dstack([scaled(values, bits)] * 3))
    assert detect_bits_quietly(grey) == bits
    colour = np.dstack([values, values[::-1], values // 3])
    path = png_of_sixteen_bits(tmp_path / "colour.png", colour)
    np.testing.assert_array_equal(read_image(path, bits=bits), scaled(colour, bits))
    assert detect_bits_quietly(path) == bits
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(tmp_path / f"turned.{suffix}", values, exif=exif)
    np.testing.assert_array_equal(read_image(turned, bits=bits)[..., 0], scaled(np.rot90(values, -1), bits))


def detect_bits_quietly(*paths: Path) -> int | None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitDepthWarning)
        return detect_bits(open_images(list(paths)))


def test_transparent_colour_of_sixteen_bits_is_composited(tmp_path: Path) -> None:
    values = np.full((4, 6, 4), 4000, np.uint16)
    values[..., 3] = 65535
    values[:2, :, 3] = 0
    got = read_image(png_of_sixteen_bits(tmp_path / "a.png", values), bits=12)
    assert not got[:2].any()
    assert (got[2:] == round(4000 * 255 / 4095)).all()


def test_one_depth_holds_for_all_images_of_a_model(tmp_path: Path) -> None:
    dark = save(tmp_path / "dark.png", np.full((4, 4), 200, np.uint16))
    bright = save(tmp_path / "bright.png", np.array([[0, 3900]], np.uint16))
    plain = save(tmp_path / "plain.png", np.full((4, 4), 77, np.uint8))
    with pytest.warns(BitDepthWarning, match=r"2 images .* up to 3900: they are read as 12 bits, 0\.\.4095"):
        bits = detect_bits(open_images([dark, bright, plain]))
    assert bits == 12
    source = open_images([dark, bright, plain], bits=bits)
    assert source.read(0).max() == round(200 * 255 / 4095)
    assert source.read(1).max() == round(3900 * 255 / 4095)
    assert (source.read(2) == 77).all()
    brighter = save(tmp_path / "brighter.png", np.array([[0, 5000]], np.uint16))
    with pytest.raises(UnreadableImageError, match=r"brighter\.png: its largest value 5000 is beyond the 12"):
        open_images([brighter], bits=bits).read(0)
    geometry = Geometry(None, (1, 1))
    with iterate_batches(
        open_images([brighter, bright, dark]), [geometry], 1, errors="skip", bits=12
    ) as batches:
        assert [batch.indices for batch in batches] == [[1], [2]]
    assert [one.index for one in batches.skipped] == [0]
    # The depth of a source stays, unless another one is given.
    assert open_images(source).bits == 12
    assert open_images(source, bits=16).bits == 16
    assert source.bits == 12


def test_images_without_sixteen_bits_have_no_depth(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.png", np.full((4, 4), 77, np.uint8))
    assert detect_bits(open_images([plain])) is None
    assert detect_bits(open_images(np.zeros((2, 4, 4), np.uint8))) is None
    gone = open_images([plain, tmp_path / "gone.png"])
    with pytest.raises(FileNotFoundError):
        detect_bits(gone)
    assert detect_bits(gone, errors="skip") is None


def test_looking_for_the_depth_holds_little_of_each_image() -> None:
    # One call for each image, all waiting at once, took 1.6 KB of every image of a large set.
    images = open_images(np.broadcast_to(np.zeros((4, 4), np.uint8), (8000, 4, 4)))
    detect_bits(images)
    tracemalloc.start()
    try:
        detect_bits(images)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize(("largest", "said"), [(255, 255), (1000, 1023), (4095, 4095), (16000, 16383)])
def test_fewer_bits_are_never_silent(tmp_path: Path, largest: int, said: int) -> None:
    path = save(tmp_path / "a.png", np.array([[0, largest]], np.uint16))
    with pytest.warns(BitDepthWarning, match=f"no value above {said}"):
        got = read_image(path)
    assert got.max() == round(largest / 257)
    assert read_image(path, bits=16).max() == got.max()  # given, and so without a warning


def test_files_that_state_their_range_are_read_by_it(tmp_path: Path) -> None:
    values = np.array([[0, 100, 200, 255]])
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 1023\n" + (values * 1023 // 255).astype(">u2").tobytes())
    for bits in (None, 8, 16):
        np.testing.assert_allclose(read_image(tmp_path / "a.pgm", bits=bits)[..., 0], values, atol=1)
    assert detect_bits(open_images([tmp_path / "a.pgm"])) is None


def test_white_is_zero(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 65535]], np.uint16)
    path = save(tmp_path / "a.tif", values, tiffinfo={262: 0})
    np.testing.assert_array_equal(read_image(path)[..., 0], 255 - scaled(values, 16))


@pytest.mark.parametrize(
    ("bits", "error"), [(9, ValueError), (0, ValueError), ("12", TypeError), (True, TypeError)]
)
def test_other_depths_are_refused(tmp_path: Path, bits: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="bits must be"):
        read_image(tmp_path / "a.png", bits=bits)
    with pytest.raises(error, match="bits must be"):
        open_images(np.zeros((1, 4, 4), np.uint8), bits=bits)


def test_items_of_a_dataset_are_scaled_too() -> None:
    class Items:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Image.Image:
            return Image.fromarray(np.full((3, 3), 4095, np.uint16))

    assert (open_images(Items(), bits=12).read(0) == 255).all()
