"""Bilinear resizing of photographs on the CPU: Pillow's filter and rounding, several times as fast."""

from __future__ import annotations

from collections.abc import Sequence

from ensemblead import _core
from ensemblead.kernels.arrays import Array, framework_of


def resized(
    image: Array, size: Sequence[int], box: Sequence[int] | None = None, *, out: Array | None = None
) -> Array:
    """An image at another size, as `PIL.Image.Image.resize` with `BILINEAR` makes it.

    The triangle reaches one pixel of the smaller of the two images to either side, so reduced images are
    antialiased.
    Rows are summed before columns, by weights that are whole numbers of 22 bits, and both sums are rounded to
    eight bits. So the result has the same bits on every processor. Pillow's has them too, but for newer
    versions that sum columns first where an image loses more rows than columns: values there differ by one at
    most. It is made on the calling thread.

    Args:
        image: uint8 `[H, W, 3]`, contiguous, on the CPU.
        size: `(h, w)` of the resized image.
        box: the part `(top, left, bottom, right)` of the resized image that is wanted; all of it by default.
            The rest takes neither time nor memory.
        out: uint8 `[bottom - top, right - left, 3]`, contiguous, which is written. It shares no memory with
            `image`.

    Returns:
        uint8 `[bottom - top, right - left, 3]`.

    Raises:
        ValueError: another shape, layout or device, a size that is not positive, a box that is empty or
            leaves the resized image, or `out` that shares memory with `image`.
        TypeError: another dtype, or no array.
    """
    framework = framework_of(image, "image")
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"size must be positive, got {(height, width)}")
    top, left, bottom, right = (0, 0, height, width) if box is None else box
    if out is None:
        out = framework.empty((max(bottom - top, 0), max(right - left, 0), 3), "uint8", image)
    _core.resize(image, height, width, top, left, out)
    return out
