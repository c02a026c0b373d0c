"""PaDiM as standard operators, for export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ensemblead.detectors.padim.gaussians import Gaussians, block_spans
from ensemblead.detectors.parts import GraphOutputs
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.patch_operators import Interpolation, resized


class GaussiansGraph(nn.Module):
    """Feature maps to distances, by one Gaussian per position of a grid.

    Args:
        channels: of every layer the numbers of those to keep.
        interpolation: how layers come to the grid.
        inside: a region, whose positions alone have Gaussians.
    """

    center: Tensor

    def __init__(
        self,
        channels: Sequence[Tensor],
        gaussians: Gaussians,
        grid: tuple[int, int],
        interpolation: Interpolation,
        inside: Inside | None = None,
    ) -> None:
        super().__init__()
        self._interpolation, self._inside = interpolation, inside
        self._channels, self._grid = [own.cpu() for own in channels], grid
        self.register_buffer("center", gaussians.mean.float().cpu())
        self._spans = block_spans(gaussians.num_dimensions)
        # [P, end, rows of the block], so that a row vector stands on the left.
        self._blocks = [block.cpu().mT.contiguous() for block in gaussians.whitening]

    def forward(self, pixels: Sequence[Tensor], maps: Sequence[Tensor]) -> GraphOutputs:
        pairs = zip(maps, self._channels, strict=True)
        kept = [
            resized(own.index_select(1, which), self._grid, self._interpolation)
            for own, which in pairs
            if len(which)
        ]
        height, width = self._grid
        rows = torch.cat(kept, 1).flatten(2).transpose(1, 2)
        if self._inside is not None:
            rows = rows.index_select(1, self._inside.places(self._grid, rows.device))
        deviations = (rows - self.center)[:, :, None]
        total: Tensor | float = 0.0
        for block, (_, end) in zip(self._blocks, self._spans, strict=True):
            total = total + torch.matmul(deviations[:, :, :, :end], block).square().sum(3)[:, :, 0]
        assert isinstance(total, Tensor)
        if self._inside is not None:
            return self._inside.put(total.sqrt(), self._grid), None
        return total.sqrt().reshape(-1, height, width), None
