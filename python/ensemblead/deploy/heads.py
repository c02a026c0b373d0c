"""What follows the networks: feature maps and pixels to scores and maps, method by method, fused."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from ensemblead.calibration import Calibration
from ensemblead.detectors.parts import Result
from ensemblead.ensembles.fusion import fuse_maps, fuse_scores
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import MapKind, render_inside, resize_maps

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
        inside: Inside | None = None,
    ) -> None:
        super().__init__()
        self.inner, self._pixels, self._maps, self._size = inner, pixels, maps, size
        self._sigma, self._kind, self._inside = sigma, kind, inside
        self.reads = (*pixels, *maps)

    def forward(self, values: Values) -> Result:
        grids, scores = self.inner([values[key] for key in self._pixels], [values[key] for key in self._maps])
        largest, maps = render_inside(grids, self._size, self._inside, sigma=self._sigma, kind=self._kind)
        return (largest if scores is None else scores), maps


class FusionHead(Head):
    """Members' results as one; see `BackboneEnsemble`. `insides`: the region in the frame of each."""

    def __init__(
        self,
        members: Sequence[Head],
        fusion: str,
        calibrations: Sequence[Calibration],
        weights: Sequence[float],
        insides: Sequence[Inside | None],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.reads = tuple(name for member in members for name in member.reads)
        self._fusion, self._calibrations, self._weights = fusion, calibrations, weights
        self._insides = insides

    def forward(self, values: Values) -> Result:
        results: list[Result] = [member(values) for member in self.members]
        height, width = map(int, results[0][1].shape[1:])
        scores = [own for own, _ in results]
        pairs = zip(results, self._insides, strict=True)
        spread = [own if inside is None else inside.spread(own) for (_, own), inside in pairs]
        maps = [resize_maps(own, (height, width)) for own in spread]
        fused = fuse_scores(self._fusion, scores, self._calibrations, self._weights)
        whole, first = fuse_maps(self._fusion, maps, self._calibrations, self._weights), self._insides[0]
        return fused, whole if first is None else first.blank(whole)
