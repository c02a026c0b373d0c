"""Principal directions of a memory bank, along which most rows can be ruled out of a search."""

from __future__ import annotations

import torch

# Directions of a sketch come in steps of this many: whole panels of the kernel on every processor.
_STEP, _MOST = 32, 192
# Directions that the kernel keeps in float32.
_LEAD = 8
# Variance that a sketch may leave out: no more directions are taken than reach the first share. The second is
# a share of what it leaves out of noise; beyond that it rules out too little.
_ENOUGH, _USEFUL = 0.04, 0.3
# What a search by sketches may take of one without.
_WORTH = 0.7
_SAMPLE, _ROUNDS = 1024, 4
# Between these squared lengths float32 products neither overflow nor vanish.
_TOO_SHORT, _TOO_LONG = 1e-30, 1e36
_MOST_DIMS = 1 << 17  # of the kernel


def principal_directions(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A point in the middle of the rows float32 `[M, D]`, and orthonormal directions `[P, D]` that carry most
    of their variance, the first ones first: as many as gain time, or a few where sketches along more would
    not. None for rows that are all alike, beyond what products in float32 take, or too long for the kernel.

    By subspace iteration on a sample of rows spread over all, from a start that needs no random numbers:
    Halko, Martinsson and Tropp (2011), "Finding structure with randomness", section 4.5, but for the start.
    """
    count, dims = rows.shape
    if dims > _MOST_DIMS:
        return None
    places = torch.arange(0, count, max(1, count // _SAMPLE), device=rows.device)
    sample = rows[places].double()
    middle = sample.mean(0)
    sample -= middle
    low, high = torch.stack(rows.aminmax()).tolist()
    if not dims * (high - low) ** 2 < _TOO_LONG:
        return None
    energy = float(sample.square().sum())
    if not energy / len(sample) > _TOO_SHORT:
        return None
    sizes = [n for n in range(_STEP, min(_MOST, dims // 2) + 1, _STEP) if _work(n, count, dims) < _WORTH]
    lead = min(_LEAD, dims, len(sample))
    most = max(sizes[-1:] or [lead])
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
    rest = (1.0 - values.cumsum(0) / energy).tolist()
    taken = next((n for n in sizes if rest[n - 1] <= _ENOUGH), most)
    if rest[taken - 1] > _USEFUL * (1.0 - taken / dims):
        taken = lead
    return middle.float(), basis[:, :taken].T.float().contiguous()


def _work(directions: int, count: int, dims: int) -> float:
    """Multiplications to sketch a query and compare its sketch with all rows, as a share of those to compare
    it whole. Four of codes take as long as one of float32.
    """
    coded = directions - _LEAD + 4 * (_LEAD + 2)
    return (4 * directions * dims + coded * count) / ((dims + 4 * (_LEAD + 2)) * count)
