"""Bytes of image files are read as the files are, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from support.damaged_images import whole_files
from support.pictures import draw, png_of_sixteen_bits, save
from support.textures import normal_images

import ensemblead as ead
from ensemblead.common.errors import ImageTooLargeError, UnreadableImageError
from ensemblead.images import EncodedImage, are_files, detect_bits, open_images, read_image, upright_size


def in_memory(path: Path) -> EncodedImage:
    return EncodedImage(path.name, path.read_bytes())


def test_every_format_and_mode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "making").mkdir()
    paths = []
    for number, (suffix, data) in enumerate(whole_files(tmp_path / "making", rng)):
        paths.append(tmp_path / f"{number}{suffix}")
        paths[-1].write_bytes(data)
    colour = rng.integers(0, 65536, (5, 6, 4)).astype(np.uint16)
    paths.append(png_of_sixteen_bits(tmp_path / "deep.png", colour[..., :3]))
    paths.append(png_of_sixteen_bits(tmp_path / "deep_alpha.png", colour))
    cmyk = tmp_path / "cmyk.jpg"
    Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).convert("CMYK").save(cmyk)
    paths.append(cmyk)
    assert len(paths) >= 25
    for path in paths:
        image = in_memory(path)
        np.testing.assert_array_equal(read_image(image, bits=16), read_image(path, bits=16), str(path))
        assert upright_size(image) == upright_size(path)


def test_as_a_source(tmp_path: Path) -> None:
    paths = [draw(tmp_path / "a.png"), draw(tmp_path / "b.png")]
    source = open_images([in_memory(path) for path in paths])
    assert source.paths == [None, None]
    assert source.describe(1) == "b.png"
    assert source.size(0) == (8, 10)
    assert not are_files(source)
    np.testing.assert_array_equal(source.read(1), read_image(paths[1]))


@pytest.mark.filterwarnings("ignore:.*16-bit pixels with values")
def test_bits_are_detected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((4, 5), 1000, np.uint16))
    assert detect_bits(open_images([in_memory(path)])) == detect_bits(open_images([path])) == 10


def test_predict_takes_them(tmp_path: Path) -> None:
    options = {"resize": None, "image_size": None, "coreset_fraction": 0.1}
    detector = ead.PatchCore("gabor", device="cpu", **options).fit(normal_images(6))
    paths = [save(tmp_path / f"{i}.png", image) for i, image in enumerate(normal_images(3, seed=1))]
    by_path, by_bytes = (detector.predict(images) for images in (paths, [in_memory(path) for path in paths]))
    np.testing.assert_array_equal(by_bytes.anomaly_score, by_path.anomaly_score)
    np.testing.assert_array_equal(by_bytes.anomaly_map, by_path.anomaly_map)


def test_errors_name_it(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="cannot read image part: it is empty"):
        read_image(EncodedImage("part", b""))
    with pytest.raises(UnreadableImageError, match="cannot read image part: it is no image"):
        read_image(EncodedImage("part", b"words"))
    path = draw(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"cannot read image a\.png: "):
        read_image(EncodedImage("a.png", path.read_bytes()[:-30]))
    with pytest.raises(ImageTooLargeError, match="10 x 8 = 80 pixels"):
        read_image(in_memory(path), max_pixels=79)


def test_rare_formats_are_read_from_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sgi"
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(path)
    assert read_image(path).shape == (4, 5, 3)
    with pytest.raises(UnreadableImageError, match="no image of a known format"):
        read_image(in_memory(path))
