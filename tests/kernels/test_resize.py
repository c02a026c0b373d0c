"""Resizing of photographs against its definition in whole numbers, and beside Pillow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import reference
from support.instruction_sets import INSTRUCTION_SETS, skip_without

from ensemblead.kernels.resize import resized

# (H, W) and (h, w): reduced, enlarged, one of each, unequal by far, single pixels, rows that fill no block,
# more pixels and rows than are taken at once.
CASES = [
    ((64, 64), (32, 32)),
    ((90, 70), (31, 29)),
    ((17, 23), (40, 55)),
    ((16, 48), (50, 20)),
    ((37, 5), (5, 37)),
    ((300, 3), (7, 11)),
    ((2, 500), (3, 9)),
    ((1, 1), (5, 6)),
    ((33, 21), (1, 1)),
    ((15, 22), (15, 22)),
    ((40, 40), (40, 21)),
    ((40, 40), (21, 40)),
    ((5, 3000), (3, 700)),
    ((20, 2100), (9, 1)),
    ((900, 4), (50, 6)),
]


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check_cases() -> None:
    for native, size in CASES:
        image = drawn(*native)
        np.testing.assert_array_equal(resized(image, size), reference.resize(image, size))


def test_equals_the_definition() -> None:
    check_cases()
    black_and_white = (drawn(71, 83) > 127).astype(np.uint8) * 255
    np.testing.assert_array_equal(
        resized(black_and_white, (20, 31)), reference.resize(black_and_white, (20, 31))
    )


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_other_instruction_sets(instruction_set: str) -> None:
    """In a process of its own, since the choice is made once."""
    skip_without(instruction_set)
    tests = Path(__file__).resolve().parents[1]
    program = (
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests / 'kernels')!r}]\n"
        "import test_resize; from ensemblead import _core\n"
        "test_resize.check_cases(); print(_core.instruction_set())"
    )
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == instruction_set


@pytest.mark.parametrize(("native", "size"), CASES)
def test_is_pillows_but_for_the_order_of_its_passes(native: tuple[int, int], size: tuple[int, int]) -> None:
    """Pillow 13 goes down the columns first where that is less work; a value then differs by one."""
    pillow = pytest.importorskip("PIL.Image")
    image = drawn(*native, seed=1)
    theirs = np.asarray(pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BILINEAR))
    ours = resized(image, size)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(ours.astype(int) - theirs).mean() < 0.3


def test_a_part_is_that_of_the_whole() -> None:
    image = drawn(67, 120)
    for size in ((31, 50), (100, 200)):
        whole = resized(image, size)
        for top, left, bottom, right in ((0, 0, 1, 1), (3, 7, 29, 43), (30, 49, 31, 50), (0, 5, 31, 6)):
            part = resized(image, size, (top, left, bottom, right))
            np.testing.assert_array_equal(part, whole[top:bottom, left:right])


def test_flat_images_stay_flat() -> None:
    for value in (0, 1, 128, 254, 255):
        image = np.full((53, 1000, 3), value, np.uint8)
        for size in ((7, 3), (1, 1), (100, 1200)):
            assert (resized(image, size) == value).all()


def test_what_may_not_be_written_is_read() -> None:
    image = drawn(20, 30)
    image.flags.writeable = False
    out = np.empty((9, 8, 3), np.uint8)
    assert resized(image, (9, 8), out=out) is out
    np.testing.assert_array_equal(out, reference.resize(image, (9, 8)))


IMAGE = drawn(8, 9)


@pytest.mark.parametrize(
    ("image", "size", "box", "error", "message"),
    [
        (IMAGE[..., 0].copy(), (4, 4), None, ValueError, r"image must be 3-D \[H, W, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), (2, 2), None, ValueError, r"image must have shape \(4, 4, 3\)"),
        (IMAGE[:, ::2], (4, 4), None, ValueError, "image is not contiguous"),
        (IMAGE[:0], (4, 4), None, ValueError, "image"),
        (IMAGE.astype(np.float32), (4, 4), None, TypeError, "image must be uint8, got float32"),
        (IMAGE.tolist(), (4, 4), None, TypeError, "image must be a NumPy, CuPy or torch array"),
        (IMAGE, (0, 4), None, ValueError, r"size must be positive, got \(0, 4\)"),
        (IMAGE, (4, 4), (0, 0, 5, 4), ValueError, r"resized image of \(4, 4\), got one of \(5, 4\)"),
        (IMAGE, (4, 4), (-1, 0, 2, 2), ValueError, r"got one of \(3, 2\) at \(-1, 0\)"),
        (IMAGE, (4, 4), (0, 2, 2, 5), ValueError, r"got one of \(2, 3\) at \(0, 2\)"),
        (IMAGE, (4, 4), (2, 2, 2, 4), ValueError, "out|box"),
    ],
)  # fmt: skip
def test_refusals(
    image: object, size: tuple[int, int], box: tuple[int, ...] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resized(image, size, box)


def test_refusals_of_outputs() -> None:
    with pytest.raises(ValueError, match=r"box must be a part"):
        resized(IMAGE, (4, 4), out=np.empty((4, 5, 3), np.uint8))
    with pytest.raises(TypeError, match="out must be uint8"):
        resized(IMAGE, (4, 4), out=np.empty((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="out shares memory with image"):
        resized(IMAGE, (8, 9), out=IMAGE)
