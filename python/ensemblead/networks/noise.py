"""The noise of a network: its output for one image depends on the batch that the image comes in."""

from __future__ import annotations

import torch

# At least two and a half times the largest deviation measured over networks, batch sizes, kernels and
# instruction sets; docs/design/noise.md has the figures.
_RELATIVE_NOISE = {
    torch.float64: 1e-14,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 6e-3,
}
# In int8 rounding in the last bit may become a step of 1/127 of a channel's range.
_RELATIVE_NOISE_INT8 = 4e-2


def relative_noise(dtype: torch.dtype, precision: str | None = None) -> float:
    """A bound on the Euclidean distance between the features of one image in two batches, relative to their
    norm, for a network whose features are of `dtype`, and which computes in int8 if `precision` says so.

    Features that are closer than this may be those of equal images.

    Raises ValueError for a dtype that no network computes in.

    Example:
        >>> relative_noise(torch.float32) < relative_noise(torch.float16) < relative_noise(torch.bfloat16)
        True
    """
    if dtype not in _RELATIVE_NOISE:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _RELATIVE_NOISE))}, got {dtype}")
    return _RELATIVE_NOISE_INT8 if precision == "int8" else _RELATIVE_NOISE[dtype]


def moved_distance(floor: float, distance: float, dims: int) -> float:
    """How far a distance may move where a point of `dims` dimensions moves by up to `floor`.

    A distance within the floor may vanish or double. A longer one moves by the part of the noise that lies
    along it: of noise in no particular direction the share `1 / sqrt(dims)`, taken four times, and the second
    order.

    Example:
        >>> moved_distance(0.1, 0.0, 400)
        0.1
        >>> round(moved_distance(0.1, 5.0, 400), 3)
        0.021
    """
    if distance <= floor:
        return floor
    return float(min(floor, 4.0 * floor / dims**0.5 + floor**2 / (2.0 * distance)))
