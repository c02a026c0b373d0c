"""Which patches a bank of known defects has, of patches made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemblead.detectors.patchcore.defects import DefectLook, chosen_rows
from ensemblead.detectors.patchcore.scoring import PatchScoring, of_length_one
from ensemblead.memory import DefectRows, MemoryBank


def _chosen(patches: torch.Tensor, metric: str, dtype: str = "float32") -> DefectRows:
    """Of patches that a mask covers."""
    normal = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32))
    bank = MemoryBank(1.0, dtype=dtype)
    bank.add(of_length_one(normal))
    bank.fit()
    look = DefectLook("image", 1, 1, patches, (1, len(patches)), None, torch.ones(len(patches)))
    return chosen_rows([look], bank, PatchScoring("topk", 1, 9, metric), lambda: 0.0, 1e-6)


def test_for_cosine_vectors_of_zeros_are_no_defect() -> None:
    """They would have the distance 1/2, by L2, from every patch."""
    patches = torch.eye(16)[:3]
    patches[1] = 0
    assert torch.equal(_chosen(patches, "cosine").rows, patches[[0, 2]])
    assert torch.equal(_chosen(patches, "l2").rows, patches)
    with pytest.raises(ValueError, match="no patch of the 1 images differs from normal ones"):
        _chosen(torch.zeros(2, 16), "cosine")


def test_values_that_half_precision_does_not_have() -> None:
    with pytest.raises(
        ValueError, match=r"bank_dtype: float16 has values up to 65504, those of known .*100000"
    ):
        _chosen(1e5 * torch.eye(16)[:2], "l2", "float16")
