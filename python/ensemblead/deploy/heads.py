"""What follows the networks: feature maps and pixels to scores and maps, method by method, fused."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from ensemblead.calibration import Calibration
from ensemblead.detectors.parts import Result
from ensemblead.ensembles.fusion import fuse_maps, fuse_scores
from ensemblead.kernels.maps import MapKind, render_maps, resize_maps

# Frames' pixels and layers' feature maps, by what names them.
Values = dict[Hashable, Tensor]
# Scores [B], maps [B, H, W] and verdicts [B].
Results = tuple[Tensor, Tensor, Tensor]


class Head(nn.Module):
    """`forward(values)`: `Values` to a `Result`. `reads`: the names of the values that it needs."""

    reads: tuple[Hashable, ...]

    def __call__(self, values: Values) -> Result:
        result: Result = super().__call__(values)
        return result


class MethodHead(Head):
    """A method's graph, and its grids upsampled and blurred."""

    def __init__(
        self,
        inner: nn.Module,
        pixels: Sequence[Hashable],
        maps: Sequence[Hashable],
        size: tuple[int, int],
        sigma: float,
        kind: MapKind,
    ) -> None:
        super().__init__()
        self.inner, self._pixels, self._maps, self._size = inner, pixels, maps, size
        self._sigma, self._kind = sigma, kind
        self.reads = (*pixels, *maps)

    def forward(self, values: Values) -> Result:
        grids, scores = self.inner([values[key] for key in self._pixels], [values[key] for key in self._maps])
        maps = render_maps(grids, self._size, sigma=self._sigma, kind=self._kind)
        return (maps.flatten(1).amax(1) if scores is None else scores), maps


class FusionHead(Head):
    """Members' results as one; see `BackboneEnsemble`."""

    def __init__(
        self,
        members: Sequence[Head],
        fusion: str,
        calibrations: Sequence[Calibration],
        weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.reads = tuple(name for member in members for name in member.reads)
        self._fusion, self._calibrations, self._weights = fusion, calibrations, weights

    def forward(self, values: Values) -> Result:
        results: list[Result] = [member(values) for member in self.members]
        height, width = map(int, results[0][1].shape[1:])
        scores = [own for own, _ in results]
        maps = [resize_maps(own, (height, width)) for _, own in results]
        fused = fuse_scores(self._fusion, scores, self._calibrations, self._weights)
        return fused, fuse_maps(self._fusion, maps, self._calibrations, self._weights)
