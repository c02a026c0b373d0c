"""Principal directions of a memory bank, along which most rows can be ruled out of a search."""

from __future__ import annotations

import torch

# Directions come in steps of this many: a whole panel of the kernel's products on every processor.
_STEP = 32
_MOST = 128
# Variance that the directions may leave out: no more are taken than reach the first share; beyond the second
# they rule out too little.
_ENOUGH, _USEFUL = 0.1, 0.3
_SAMPLE, _ROUNDS = 1024, 4
# Between these squared lengths float32 products neither overflow nor vanish.
_TOO_SHORT, _TOO_LONG = 1e-30, 1e36


def principal_directions(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """A point in the middle of the rows float32 `[M, D]`, and orthonormal directions `[P, D]` that carry most
    of their variance; None where so few rows or dimensions, or so even a variance, gain nothing.

    By subspace iteration on a sample of rows spread over all, from a start that needs no random numbers:
    Halko, Martinsson and Tropp (2011), "Finding structure with randomness", section 4.5, but for the start.
    """
    count, dims = rows.shape
    most = 2 * min(_MOST, dims // 4 // _STEP * _STEP)
    if most == 0 or _work(most // 2, count, dims) > 0.5:
        return None
    places = torch.arange(0, count, max(1, count // _SAMPLE), device=rows.device)
    sample = rows[places].double()
    middle = sample.mean(0)
    sample -= middle
    low, high = (float(value) for value in rows.aminmax())
    if not dims * (high - low) ** 2 < _TOO_LONG:
        return None
    energy = float(sample.square().sum())
    if not energy / len(sample) > _TOO_SHORT:
        return None
    order = torch.arange(len(sample), device=rows.device)
    signs = 1.0 - 2.0 * (order // most % 2)
    start = torch.zeros(most, dims, dtype=torch.float64, device=rows.device)
    start.index_add_(0, order % most, sample * signs[:, None])
    basis = torch.linalg.qr(start.T).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
    # In order of what they carry, so that the first few are the best few.
    values, turn = torch.linalg.eigh((sample @ basis).T @ (sample @ basis))
    basis, values = (basis @ turn).flip(1), values.flip(0)
    rest = 1.0 - values.cumsum(0) / energy
    front = next((n for n in range(_STEP, most // 2 + 1, _STEP) if float(rest[n - 1]) <= _ENOUGH), most // 2)
    if float(rest[front - 1]) > _USEFUL:
        return None
    return middle.float(), basis[:, : 2 * front].T.float().contiguous(), front


def _work(directions: int, count: int, dims: int) -> float:
    """Products for the sketch of a query and of it with all rows, as a share of those in full."""
    return directions * (dims + count) / (count * dims)
