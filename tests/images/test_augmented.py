"""Changed copies of images: turned, darker and brighter, and which of their pixels are the photograph's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")

from ensemblead.images import AS_IS, Augmented, Copy, Geometry, Images, Tiles, Turn, Window, open_images
from ensemblead.images.changes import ANGLES, copies_of

Planes = npt.NDArray[np.uint8]
DIAGONAL = [angle for angle in ANGLES if angle % 90]


def noise(height: int, width: int, seed: int = 0) -> Planes:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def rotated_by_hand(planes: Planes, angle: int) -> npt.NDArray[np.float64]:
    """Clockwise about the middle: bilinear, edges mirrored about the middle of the last pixel."""
    _, height, width = planes.shape
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    out = np.zeros(planes.shape)
    for row, column in np.ndindex(height, width):
        x, y = column - (width - 1) / 2, row - (height - 1) / 2
        at_x, at_y = cos * x + sin * y + (width - 1) / 2, -sin * x + cos * y + (height - 1) / 2
        left, top = int(np.floor(at_x)), int(np.floor(at_y))
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            share = (1 - abs(at_y - i)) * (1 - abs(at_x - j))
            out[:, row, column] += share * planes[:, _mirrored(i, height), _mirrored(j, width)]
    return out


def _mirrored(place: int, side: int) -> int:
    place = abs(place) % (2 * (side - 1))
    return min(place, 2 * (side - 1) - place)


class TestTurn:
    @pytest.mark.parametrize("quarters", [1, 2, 3])
    def test_quarter_turns_are_copies(self, quarters: int) -> None:
        square = noise(12, 12)
        expected = np.rot90(square, -quarters, axes=(1, 2))
        np.testing.assert_array_equal(Turn(90 * quarters).of(square), expected)
        assert Turn(90 * quarters).reached(np.ones((12, 12), dtype=bool)).all()

    @pytest.mark.parametrize("angle", [*DIAGONAL, 90])
    @pytest.mark.parametrize("size", [(11, 11), (9, 14)])
    def test_equals_the_definition(self, angle: int, size: tuple[int, int]) -> None:
        planes = noise(*size)
        found = Turn(angle).of(planes)
        assert found.shape == planes.shape
        assert np.abs(found - rotated_by_hand(planes, angle)).max() <= 1

    def test_only_the_photograph_is_reached(self) -> None:
        whole = np.ones((200, 200), dtype=bool)
        # A square on a square turned by 45 degrees: a regular octagon.
        for angle in DIAGONAL:
            assert Turn(angle).reached(whole).mean() == pytest.approx(2 * (2**0.5 - 1), abs=2e-3)
        assert Turn(90).reached(np.ones((40, 20), dtype=bool)).mean() == 0.5
        part = whole.copy()
        part[:, :100] = False
        assert Turn(180).reached(part)[:, :100].all()
        assert not Turn(180).reached(part)[:, 100:].any()

    def test_what_is_reached_does_not_depend_on_the_mirror(self) -> None:
        planes = noise(30, 20)
        turn = Turn(45, 1.3)
        reached = turn.reached(np.ones((30, 20), dtype=bool))
        flat = np.full_like(planes, 77)
        assert (turn.of(flat) == 77).all()
        marked = planes.copy()
        marked[:, :, 10] = 255  # of the photograph
        assert (turn.of(marked) != turn.of(planes)).any(0)[reached].any()

    def test_the_photograph_is_turned_and_not_the_squashed_frame(self) -> None:
        """A photograph of 60 x 120 in a frame of 120 x 120: every pixel of it is twice as high as wide."""

        def picture(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return 128 + 50 * np.sin(x / 9) + 50 * np.cos(y / 7)

        side = np.arange(120) + 0.5 - 60
        x, y = side[None, :], side[:, None] / 2
        frame = np.repeat(np.rint(picture(x, y))[None].astype(np.uint8), 3, axis=0)
        cos = sin = np.sqrt(0.5)
        expected = picture(cos * x + sin * y, -sin * x + cos * y)
        turn = Turn(45, 2.0)
        reached = turn.reached(np.ones((120, 120), dtype=bool))
        assert 0.2 < reached.mean() < 0.9
        # Half a pixel of the mirror image is mixed in at the edge.
        assert np.abs(turn.of(frame)[0] - expected)[reached].max() < 8
        assert np.abs(Turn(45).of(frame)[0] - expected)[reached].max() > 50


class TestCopies:
    def test_brightness_is_rounded_and_ends_at_255(self) -> None:
        values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, axis=0)
        for factor in (0.8, 1.2):
            expected = np.minimum(np.rint(np.arange(256) * factor), 255)
            np.testing.assert_array_equal(Copy(0, factor).of(values, 1.0)[0].ravel(), expected)

    def test_all_combinations_and_the_first_changes_nothing(self) -> None:
        both = copies_of(("brightness", "rotations"))
        assert len(set(both)) == len(both) == 24
        for names in ((), ("rotations",), ("brightness",), ("rotations", "brightness")):
            assert [copy.is_unchanged for copy in copies_of(names)].index(True) == 0
            assert sum(copy.is_unchanged for copy in copies_of(names)) == 1


IMAGES = np.stack([noise(24, 32, seed).transpose(1, 2, 0) for seed in range(5)])


def whole() -> Images:
    return Images(open_images(IMAGES), [Geometry((16, 16), None)])


def tiles() -> Tiles:
    geometry = Geometry((16, 32), None)
    images = Images(open_images(IMAGES), [geometry])
    return Tiles(images, [(geometry, Window(0, 0, 16, 16)), (geometry, Window(0, 16, 16, 16))])


@pytest.mark.parametrize(
    ("make", "asked", "stretch"), [(whole, Geometry((16, 16), None), 4 / 3), (tiles, AS_IS, 2 / 3)]
)
def test_images_come_first_and_then_their_copies(
    make: Callable[[], Images | Tiles], asked: Geometry, stretch: float
) -> None:
    images, copies = make(), copies_of(["rotations"])
    augmented = Augmented(images, copies)
    count = len(images.positions())
    assert (len(augmented), augmented.copies) == (8 * count, 8)
    assert augmented.positions() == images.positions() * 8
    assert augmented.identities() == images.identities() * 8
    plain = [pixels for batch in images.batches([asked], 3) for pixels in batch.images[asked].numpy()]
    item = 0
    for batch in augmented.batches([asked], 3):
        turns = batch.turns.get(asked, (None,) * len(batch))
        for pixels, turn in zip(batch.images[asked].numpy(), turns, strict=True):
            copy, own = copies[item // count], plain[item % count]
            if turn is None:
                assert copy.is_unchanged
            else:
                assert turn == Turn(copy.angle, pytest.approx(stretch))
            np.testing.assert_array_equal(pixels, copy.of(own, stretch))
            again, (position,) = augmented.read(asked, [item])
            np.testing.assert_array_equal(again[0].numpy(), pixels)
            assert position == images.positions()[item % count]
            item += 1
    assert item == 8 * count
