"""EfficientAD as standard operators, for export."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ensemblead.detectors.efficientad.imitators import Imitators, upsampled
from ensemblead.detectors.efficientad.teacher import standardised
from ensemblead.detectors.parts import GraphOutputs
from ensemblead.kernels.patch_operators import PatchOperators
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.graphs import Grids, NetworkGraph, Normalized
from ensemblead.networks.pdn import BORDER, CHANNELS, PDN


class TeacherGraph(nn.Module):
    """Normalised images of a size to descriptions; see `teacher.describe`."""

    def __init__(self, extractor: FeatureExtractor, size: tuple[int, int]) -> None:
        super().__init__()
        self._is_pdn = isinstance(extractor.module, PDN)
        self._size = size if self._is_pdn else (2 * size[0], 2 * size[1])
        self.network = NetworkGraph(extractor, extractor.layers)
        self._grids = Grids(extractor, extractor.layers, self._size)
        self.patches = PatchOperators(
            extractor.channels(self._size),
            extractor.grid(self._size),
            patch_size=3,
            pretrain_dim="auto",
            target_dim=CHANNELS,
            mode="adaptive",
        )

    def forward(self, images: Tensor) -> Tensor:
        if self._is_pdn:
            return self._grids.of(self.network(images))[0]
        maps = self._grids.of(self.network(upsampled(images, self._size)))
        described: Tensor = self.patches(maps).permute(0, 3, 1, 2)
        return described[:, :, BORDER:-BORDER, BORDER:-BORDER]


class ImitationGraph(nn.Module):
    """Pixels to grids, by what teacher, student and autoencoder make of them.

    Args:
        distance_maps, anomaly_grids: the detector's functions of these names, the second with its quantiles.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        size: tuple[int, int],
        networks: Imitators,
        statistics: Sequence[Tensor],
        distance_maps: Callable[[Imitators, Tensor, Tensor], tuple[Tensor, Tensor]],
        anomaly_grids: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.normalized, self.teacher = Normalized(extractor), TeacherGraph(extractor, size)
        self.networks, self._statistics = networks, [own.cpu() for own in statistics]
        self._distance_maps, self._anomaly_grids = distance_maps, anomaly_grids

    def forward(self, pixels: Sequence[Tensor], maps: Sequence[Tensor]) -> GraphOutputs:
        images = self.normalized(pixels[0])
        teacher = standardised(self.teacher(images), self._statistics)
        return self._anomaly_grids(*self._distance_maps(self.networks, images, teacher)), None
