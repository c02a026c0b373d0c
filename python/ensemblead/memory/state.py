"""Temporary."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BankState:
    rows: torch.Tensor
    images: torch.Tensor
    projection: torch.Tensor | None
    radius: float
    num_added: int
    index: bytes | None
