"""Weights as anomalib names them, by a formula of name and index, so that fixtures need none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from support.students import filled, waves

# Of the square images of each method, and every how manieth value is recorded.
SIDES = {"ReverseDistillation": 64, "FastFlow": 64, "EfficientAD": 256, "DRAEM": 64}
DRAEM_WIDTH, KEPT = 8, 97
QUANTILES = {"qa_st": 0.3, "qb_st": 0.7, "qa_ae": 0.2, "qb_ae": 0.5}
# Names that say nothing of a result, or that follow from others.
_UNUSED = ("num_batches_tracked", "w_perm_inv")


def value(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The values of a tensor of that name."""
    last = name.rpartition(".")[2]
    if last in QUANTILES:
        return torch.tensor(QUANTILES[last])
    if last in ("w_perm", "w_perm_inv"):
        matrix = torch.eye(shape[0])[waves(name.removesuffix("_inv"), shape[:1]).argsort()]
        return (matrix.T if last == "w_perm_inv" else matrix).reshape(list(shape))
    if ".mean_std." in name:
        return waves(name, shape) * 0.1 + (1.0 if last == "std" else 0.0)
    if "feature_extractor" in name and last == "weight" and len(shape) > 1:
        return 0.5 * filled(name, shape)  # nothing grows from block to block
    if last.startswith("global_"):
        return (
            filled(name.replace("global_", ""), shape) if last == "global_scale" else 0.1 * waves(name, shape)
        )
    if ".norms." in name:
        return 0.1 * waves(name, shape) + (1.0 if last == "weight" else 0.0)
    return filled(name, shape)


def digest_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """SHA-256 of names and shapes, but for those that are not needed."""
    lines = (f"{name} {tuple(shape)}" for name, shape in shapes.items() if not name.endswith(_UNUSED))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def pixels(side: int) -> torch.Tensor:
    """An image uint8 `[1, 3, H, W]`."""
    return ((waves("published image", (1, 3, side, side)) + 1.0) * 127.0).to(torch.uint8)
