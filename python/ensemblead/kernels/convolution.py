"""Convolutions of 3 x 3 on the CPU by Winograd's method: a quarter of the products, and more rounding.

They are for training, of which such convolutions are most of the time.
"""

from __future__ import annotations

from ensemblead import _core
from ensemblead.kernels.arrays import Array, framework_of, num_threads

# Channels must be a multiple of it.
CHANNELS = 16


def convolve(images: Array, taps: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
    """The convolution of images with zeros around them.

    Args:
        images: float32 `[B, H, W, C]`, contiguous, on the CPU.
        taps: float32 `[3, 3, C, O]`, contiguous: `result[b, y, x, o]` is the sum over i, j and c of
            `images[b, y + i - 1, x + j - 1, c] * taps[i, j, c, o]`.
        bias: float32 `[O]`, added to it.
        out: float32 `[B, H, W, O]`, contiguous, which is written. It shares no memory with the others.

    Returns:
        float32 `[B, H, W, O]`, within about 1e-5 of its largest value, with the same bits for any number of
        threads.

    Raises:
        ValueError: a shape, layout or device other than these, C or O that is no multiple of 16, or `out`
            that shares memory with another argument.
        TypeError: another dtype, or no array.
    """
    framework = framework_of(images, "images")
    for array, argument in ((images, "images"), (taps, "taps")):
        framework_of(array, argument)
        if array.ndim != 4:
            raise ValueError(f"{argument} must be 4-D, got shape {tuple(array.shape)}")
    if out is None:
        out = framework.empty((*images.shape[:3], taps.shape[3]), "float32", images)
    _core.convolution(images, taps, bias, out, num_threads=num_threads())
    return out


def taps_gradient(images: Array, gradients: Array) -> Array:
    """The gradient by the taps of `convolve`, of gradients by its result.

    Args:
        images: as for `convolve`.
        gradients: float32 `[B, H, W, O]`, contiguous, on the CPU.

    Returns:
        float32 `[3, 3, C, O]`, with the same bits for any number of threads.

    Raises:
        ValueError, TypeError: as for `convolve`.
    """
    framework = framework_of(images, "images")
    for array, argument in ((images, "images"), (gradients, "gradients")):
        framework_of(array, argument)
        if array.ndim != 4:
            raise ValueError(f"{argument} must be 4-D [B, H, W, channels], got shape {tuple(array.shape)}")
    taps = framework.empty((3, 3, images.shape[3], gradients.shape[3]), "float32", images)
    _core.convolution_gradient(images, gradients, taps, num_threads=num_threads())
    return taps
