"""Reverse Distillation as standard operators, for export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemblead.detectors.parts import GraphOutputs
from ensemblead.detectors.reverse_distillation.student import EPS, NOTHING, Student


class StudentGraph(nn.Module):
    """A teacher's feature maps to grids of the images' size; see `anomaly_grids`."""

    def __init__(self, student: Student, size: tuple[int, int]) -> None:
        super().__init__()
        self.student, self._size = student, size

    def forward(self, pixels: Sequence[Tensor], maps: Sequence[Tensor]) -> GraphOutputs:
        total: Tensor | None = None
        for teacher, student in zip(maps, self.student(maps), strict=True):
            norms = [one.square().sum(1).sqrt() for one in (teacher, student)]
            # The cosine by its definition, for which OpenVINO has no operator.
            below = norms[0].clamp_min(EPS) * norms[1].clamp_min(EPS)
            apart = 1.0 - (teacher * student).sum(1) / below
            apart = torch.where(torch.maximum(*norms) < NOTHING, torch.zeros_like(apart), apart)
            resized = functional.interpolate(apart[:, None], self._size, mode="bilinear", align_corners=True)
            total = resized[:, 0] if total is None else total + resized[:, 0]
        assert total is not None
        return total, None
