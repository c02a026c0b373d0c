"""The networks that look at tiles."""

from __future__ import annotations

import torch

from ensemblead.detectors.base import Detector, Embedded
from ensemblead.detectors.network import FeaturePool
from ensemblead.images import Geometry

# Tiles are network input as they are.
_AS_IS = Geometry(None, None)


class TileNetwork:
    """Embeds tiles for any detector of the same parameters and networks as `reader`."""

    def __init__(self, reader: Detector) -> None:
        self._leaves = reader._network_leaves()
        self._modules = _modules(reader)
        self.device = self._leaves[0]._network().device
        self._pool = FeaturePool([(leaf._network(), _AS_IS) for leaf in self._leaves])

    def serves(self, reader: Detector) -> bool:
        """Whether `reader` has these very networks."""
        return self._modules == _modules(reader)

    def embed(self, tiles: torch.Tensor) -> Embedded:
        """uint8 `[n, 3, h, w]` -> what a member's leaves see of them."""
        size = (tiles.shape[2], tiles.shape[3])
        with self._pool.batch({_AS_IS: tiles}) as features:
            parts = [leaf._embed_features(features(leaf._network(), _AS_IS)) for leaf in self._leaves]
        return Embedded(tuple(parts), (size,) * len(parts))


def _modules(reader: Detector) -> list[int]:
    return [id(leaf._network().extractor.module) for leaf in reader._network_leaves()]
