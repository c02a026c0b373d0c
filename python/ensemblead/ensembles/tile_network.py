"""The networks that look at tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ensemblead.detectors.base import Detector, Embedded, LeafDetector
from ensemblead.images import Geometry
from ensemblead.networks.network import FeaturePool

# Tiles are network input as they are.
_AS_IS = Geometry(None, None)


class TileNetwork:
    """Embeds tiles for detectors of the same parameters and networks as `readers`: what these share of them
    runs once.
    """

    def __init__(self, readers: Sequence[Detector]) -> None:
        self._known = _leaves(readers)
        self._leaves = [leaf for leaf, _ in self._known]
        self.device = self._leaves[0]._network().device
        self._pool = FeaturePool([(leaf._network(), _AS_IS) for leaf in self._leaves])

    def serves(self, readers: Sequence[Detector]) -> bool:
        """Whether `readers` are these very ones, with these very networks."""
        return self._known == _leaves(readers)

    def embed(self, tiles: torch.Tensor) -> Embedded:
        """uint8 `[n, 3, h, w]` -> what the readers' leaves see of them, one reader's after the other's."""
        size = (tiles.shape[2], tiles.shape[3])
        with self._pool.batch({_AS_IS: tiles}) as features:
            parts = [leaf._embed_features(features(leaf._network(), _AS_IS)) for leaf in self._leaves]
        return Embedded(tuple(parts), (size,) * len(parts))


def _leaves(readers: Sequence[Detector]) -> list[tuple[LeafDetector, int]]:
    """And which module each has."""
    leaves = [leaf for reader in readers for leaf in reader._network_leaves()]
    return [(leaf, id(leaf._network().extractor.module)) for leaf in leaves]
