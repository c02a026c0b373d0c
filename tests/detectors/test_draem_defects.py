"""DRAEM's synthetic defects: noise against anomalib's and by hand, textures, and how they are blended in."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.students import waves
from torch.nn import functional

from ensemblead.common.errors import UnreadableImageError
from ensemblead.detectors.draem import defects, textures
from ensemblead.images import BitDepthWarning

RECORDED = load_file(Path(__file__).with_name("draem.safetensors"))
SIDE = 32


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_noise_is_anomalibs() -> None:
    angles = 2 * math.pi * (waves("directions", (5, 9)) / 2 + 0.5).float().double().numpy()
    rows, columns = np.mgrid[:64:5, :64:7] * np.array([4 / 64, 8 / 64])[:, None, None]
    found = defects.lattice_noise(angles, rows, columns)
    np.testing.assert_allclose(found, RECORDED["noise"].numpy(), atol=1e-5)


def test_noise_between_the_pixels_by_hand() -> None:
    angles = generator(0).uniform(0, 2 * math.pi, (3, 5))
    places = generator(1).uniform(0, [2, 4], (50, 2))
    expected = []
    for row, column in places:
        total = 0.0
        for top, left in itertools.product((int(row), int(row) + 1), (int(column), int(column) + 1)):
            away = np.array([row - top, column - left])
            slope = np.array([math.cos(angles[top, left]), math.sin(angles[top, left])])
            near = 1 - np.abs(away)
            total += (6 * near**5 - 15 * near**4 + 10 * near**3).prod() * (away @ slope)
        expected.append(math.sqrt(2) * total)
    np.testing.assert_allclose(defects.lattice_noise(angles, *places.T), expected, atol=1e-12)


@pytest.mark.parametrize("degrees", [-90.0, 0.0, 31.0, 90.0])
def test_places_turn_as_images_do(degrees: float) -> None:
    size = (24, 40)
    rows, columns = (torch.from_numpy(own).float() for own in np.mgrid[: size[0], : size[1]])
    turned = torch.from_numpy(defects.turned_places(size, degrees))
    inside = (turned[0] >= 1) & (turned[0] <= size[0] - 2) & (turned[1] >= 1) & (turned[1] <= size[1] - 2)
    for own, expected in zip(turned, (rows, columns), strict=True):
        found = textures.rotated(expected[None], degrees)[0].double()
        torch.testing.assert_close(own[inside], found[inside], rtol=0.0, atol=1e-3)


def test_share_of_pixels_and_of_empty_masks() -> None:
    """Of 200 masks of the authors' form 5.1 % of the pixels and 5.5 % of the masks were measured."""
    masks = [defects.perlin_noise((128, 128), generator(2, i)) > 0.5 for i in range(200)]
    assert 0.035 < np.mean(masks) < 0.065
    assert 0.02 < np.mean([not mask.any() for mask in masks]) < 0.1


def planes(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    return torch.from_numpy(generator(seed).integers(0, 256, (3, *size), dtype=np.uint8))


def test_examples() -> None:
    image, other, size = planes(0, (32, 64)), planes(1, (32, 64)), (32, 64)
    made = [defects.example(image, other, generator(3, i), 0.0, None) for i in range(100)]
    shown = 0
    for normal, defective, mask in made:
        torch.testing.assert_close(normal, image / 255.0, rtol=0.0, atol=0.0)
        assert (normal.shape, mask.shape) == ((3, *size), (1, *size))
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        outside = (mask == 0.0).expand(3, -1, -1)
        assert torch.equal(defective[outside], normal[outside])
        assert 0.0 <= defective.min() <= defective.max() <= 1.0
        if mask.any():
            shown += 1
            assert not torch.equal(defective, normal)
    assert 30 < shown < 65
    again = defects.example(image, other, generator(3, 7), 0.0, None)
    assert all(torch.equal(a, b) for a, b in zip(again, made[7], strict=True))


def test_the_texture_shows_by_a_fifth_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "varied", lambda texture, _: texture)
    monkeypatch.setattr(defects, "drawn_texture", lambda size, other, _: other)
    black, white = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.full((3, 64, 64), 255, dtype=torch.uint8)
    strengths = []
    for i in range(150):
        _, defective, mask = defects.example(black, white, generator(4, i), 0.0, None)
        if mask.any():
            inside = defective[(mask > 0).expand(3, -1, -1)]
            assert inside.min() == inside.max()
            strengths.append(float(inside[0]))
    assert 0.2 <= min(strengths) < 0.3
    assert 0.9 < max(strengths) <= 1.0


def test_rotation_of_the_normal_image() -> None:
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    shares = (0.0, 0.3, 1.0)
    turned = []
    for share in shares:
        made = [defects.example(white, white, generator(5, i), share, None)[0] for i in range(80)]
        turned.append(np.mean([bool((own == 0.0).any()) for own in made]))
    assert turned[0] == 0.0
    assert 0.15 < turned[1] < 0.45
    assert turned[2] > 0.9


@pytest.mark.parametrize("number", range(10))
def test_operations_change_a_texture(number: int) -> None:
    operation, texture = textures.OPERATIONS[number], planes(0) // 2 + 40
    before, changed = texture.clone(), []
    for i in range(6):
        found = operation(texture, generator(6, i))
        assert (found.dtype, found.shape) == (torch.uint8, texture.shape)
        assert torch.equal(found, operation(texture, generator(6, i)))
        changed.append(not torch.equal(found, texture))
    assert any(changed)
    assert torch.equal(texture, before)


def test_three_operations_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tuple((lambda texture, _, by=2**i: texture + by) for i in range(10))
    monkeypatch.setattr(textures, "OPERATIONS", marks)
    found = [int(textures.varied(torch.tensor(0), generator(i))) for i in range(200)]
    assert {own.bit_count() for own in found} == {3}
    assert np.bitwise_or.reduce(found) == 1023


def test_drawn_textures() -> None:
    size = (32, 64)
    noise = textures.colour_noise(size, generator(0))
    assert noise.amin((1, 2)).tolist() == [0.0] * 3
    assert noise.amax((1, 2)).tolist() == [1.0] * 3
    colours = textures.cells(size, generator(0)).flatten(1).T.unique(dim=0)
    assert 5 <= len(colours) <= 32
    for seed in range(8):
        line = textures.stripes(size, generator(seed)).flatten(1)
        line = line - line[:, :1]
        assert torch.linalg.matrix_rank(line, atol=1e-3) == 1  # mixtures of two colours
    image = planes(0, size)
    mixed = textures.shuffled(image, generator(0))
    assert torch.equal(mixed.flatten(1).sort().values, image.flatten(1).sort().values)
    blocks = functional.unfold(torch.stack([image, mixed]).float(), (4, 8), stride=(4, 8))
    assert {tuple(own.tolist()) for own in blocks[0].T} == {tuple(own.tolist()) for own in blocks[1].T}
    assert not torch.equal(mixed, image)
    kinds = {textures.drawn_texture(size, image, generator(i)).shape for i in range(12)}
    assert kinds == {(3, *size)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "textures"
    path.mkdir()
    for i, colour in enumerate(((200, 10, 10), (10, 200, 10))):
        Image.new("RGB", (48, 20 + i), colour).save(path / f"{i}.png")
    return path


def test_textures_of_a_folder(folder: Path) -> None:
    source = textures.Folder(str(folder))
    drawn = [source.draw((32, 64), generator(i)) for i in range(8)]
    assert {tuple(own.shape) for own in drawn} == {(3, 32, 64)}
    assert {tuple(own[:, 5, 5].tolist()) for own in drawn} == {(200, 10, 10), (10, 200, 10)}


def digest(folder: Path) -> str:
    with ThreadPoolExecutor(2) as threads:
        return textures.Folder(str(folder)).digest(threads)


@pytest.mark.parametrize("name", ["0.png", "2.png"])
def test_other_textures_have_another_digest(folder: Path, name: str) -> None:
    first = digest(folder)
    assert digest(folder) == first
    Image.new("RGB", (48, 20), (200, 10, 11)).save(folder / name)
    assert digest(folder) != first


def test_textures_of_twelve_bits_are_no_black_ones(folder: Path) -> None:
    for i in range(2):
        Image.fromarray(np.full((20, 20), 4095, dtype=np.uint16)).save(folder / f"{i}.png")
    with pytest.warns(BitDepthWarning, match="they are read as 12 bits"):
        source = textures.Folder(str(folder))
    assert source.draw((32, 32), generator(0)).unique().tolist() == [255]


def test_textures_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    Image.fromarray(planes(0, (64, 64)).permute(1, 2, 0).numpy()).save(path)
    path.write_bytes(path.read_bytes()[:6000])
    source = textures.Folder(str(tmp_path))
    truncated = r"textures: cannot read image .*1\.png: .*truncated"
    with pytest.raises(UnreadableImageError, match=truncated):
        source.draw((32, 32), generator(0))
    with pytest.raises(UnreadableImageError, match=truncated):
        digest(tmp_path)
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"textures: cannot read image .*1\.png"):
        textures.Folder(str(tmp_path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="textures: no such image"):
        source.draw((32, 32), generator(0))
