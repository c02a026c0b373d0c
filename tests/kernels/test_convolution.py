"""Convolutions of 3 x 3 by Winograd's method against the sum that defines them, in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import reference
from support.instruction_sets import INSTRUCTION_SETS, skip_without

from ensemblead import _core
from ensemblead.kernels.convolution import convolve, taps_gradient

# Of the largest value: float32, enlarged by the transforms.
TOLERANCE = 3e-5

# (B, H, W, C, O): whole tiles, cut ones, single rows and pixels, panels of one vector and of two, blocks that
# are not full.
CASES = [
    (1, 4, 4, 16, 16),
    (2, 8, 12, 16, 32),
    (3, 7, 9, 32, 48),
    (1, 1, 1, 16, 16),
    (2, 1, 13, 48, 16),
    (5, 2, 3, 16, 80),
    (2, 33, 41, 32, 16),
    (1, 18, 18, 112, 64),
]


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_results(case):
    batch, height, width, channels, outputs = case
    images, taps = drawn((batch, height, width, channels)), drawn((3, 3, channels, outputs), 1)
    check(convolve(images, taps), reference.convolve(images, taps))
    bias = drawn((outputs,), 2)
    out = np.full((batch, height, width, outputs), np.nan, np.float32)
    assert convolve(images, taps, bias, out=out) is out
    check(out, reference.convolve(images, taps) + bias)


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_the_taps(case):
    batch, height, width, channels, outputs = case
    images, gradients = drawn((batch, height, width, channels)), drawn((batch, height, width, outputs), 1)
    check(taps_gradient(images, gradients), reference.taps_gradient(images, gradients))


def test_a_single_tap_moves_images():
    images = drawn((2, 6, 10, 16))
    taps = np.zeros((3, 3, 16, 16), np.float32)
    taps[0, 2] = np.eye(16)
    expected = np.zeros_like(images)
    expected[:, 1:, :-1] = images[:, :-1, 1:]
    check(convolve(images, taps), expected)


def test_any_number_of_threads_gives_the_same_bits():
    images, taps, gradients = drawn((3, 50, 38, 32)), drawn((3, 3, 32, 48), 1), drawn((3, 50, 38, 48), 2)
    found = []
    for threads in (1, 2, 3, 7, 40):
        out, own = np.empty((3, 50, 38, 48), np.float32), np.empty((3, 3, 32, 48), np.float32)
        _core.convolution(images, taps, None, out, num_threads=threads)
        _core.convolution_gradient(images, gradients, own, num_threads=threads)
        found.append((out.tobytes(), own.tobytes()))
    assert len(set(found)) == 1


PROGRAM = """
import sys; sys.path.insert(0, "tests")
import numpy as np
from support import reference
from ensemblead import _core
from ensemblead.kernels.convolution import convolve, taps_gradient
rng = np.random.default_rng(0)
images, taps = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 9, 14, 48), (3, 3, 48, 32)))
gradients = rng.standard_normal((2, 9, 14, 32)).astype(np.float32)
for found, expected in (
    (convolve(images, taps), reference.convolve(images, taps)),
    (taps_gradient(images, gradients), reference.taps_gradient(images, gradients)),
):
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=3e-5 * np.abs(expected).max())
print(_core.instruction_set())
"""


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_other_instruction_sets(instruction_set):
    """In a process of its own, since the choice is made once."""
    skip_without(instruction_set)
    environment = {**os.environ, "ENSEMBLEAD_INSTRUCTION_SET": instruction_set}
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == instruction_set


IMAGES, TAPS = np.zeros((2, 4, 4, 16), np.float32), np.zeros((3, 3, 16, 32), np.float32)


@pytest.mark.parametrize(
    ("images", "taps", "error", "message"),
    [
        (IMAGES[0], TAPS, ValueError, r"images must be 4-D, got shape \(4, 4, 16\)"),
        (IMAGES[..., :8].copy(), TAPS[:, :, :8].copy(), ValueError, "images must have a multiple of 16"),
        (IMAGES, TAPS[..., :24].copy(), ValueError, "taps must have a multiple of 16 channels, got 24"),
        (IMAGES, TAPS[:2], ValueError, r"taps must have shape \(3, 3, 16, 32\), got \(2, 3, 16, 32\)"),
        (IMAGES[:, :, ::2], TAPS, ValueError, "images is not contiguous"),
        (IMAGES.astype(np.float64), TAPS, TypeError, "images must be float32"),
        (IMAGES, TAPS.tolist(), TypeError, "taps must be a NumPy, CuPy or torch array"),
    ],
)  # fmt: skip
def test_refusals(images, taps, error, message):
    with pytest.raises(error, match=message):
        convolve(images, taps)


def test_refusals_of_gradients():
    with pytest.raises(ValueError, match=r"gradients must have shape \(2, 4, 4, 32\), got \(2, 4, 3, 32\)"):
        taps_gradient(IMAGES, np.zeros((2, 4, 3, 32), np.float32))
    with pytest.raises(ValueError, match=r"out must have shape \(2, 4, 4, 32\)"):
        convolve(IMAGES, TAPS, out=np.empty((2, 4, 4, 16), np.float32))
    with pytest.raises(ValueError, match=r"bias must have shape \(32,\), got \(16,\)"):
        convolve(IMAGES, TAPS, np.zeros(16, np.float32))


def test_an_output_that_shares_memory_with_an_input():
    square, shared = np.zeros((2, 1, 3, 3, 16), np.float32)
    room = np.zeros(2 * IMAGES.size, np.float32)
    images, out = (room[at : at + IMAGES.size].reshape(IMAGES.shape) for at in (0, IMAGES.size - 1))
    taps = np.zeros((3, 3, 16, 16), np.float32)
    with pytest.raises(ValueError, match="out shares memory with images"):
        convolve(IMAGES, taps, out=IMAGES)
    with pytest.raises(ValueError, match="out shares memory with images"):
        convolve(images, taps, out=out)
    with pytest.raises(ValueError, match="out shares memory with taps"):
        convolve(square, taps, out=taps.reshape(-1)[: square.size].reshape(square.shape))
    with pytest.raises(ValueError, match="out shares memory with bias"):
        convolve(square, taps, shared.reshape(-1)[-16:], out=shared)
    beside = room[IMAGES.size :].reshape(IMAGES.shape)
    assert convolve(images, taps, out=beside) is beside
