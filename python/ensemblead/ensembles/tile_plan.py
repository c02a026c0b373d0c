"""What a tiled ensemble is told, what it learns, and what one location learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensemblead.calibration import NormalSample, Origin
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.left_out import LeftOut
from ensemblead.ensembles.tile_merging import Edge, TileFrame, TileMerger, TileStatistics
from ensemblead.images import Geometry


@dataclass(frozen=True)
class TilePlan:
    """What a tiled ensemble is told: its parameters, and how images become its frame."""

    member: Detector
    geometry: Geometry
    tile_size: tuple[int, int]
    stride: tuple[int, int]
    edge: Edge
    score: str
    seam_smoothing: bool
    normalization: str
    shared: bool
    memory_budget: int

    def frame_for(self, size: tuple[int, int]) -> TileFrame:
        """Where the tiles of images of this size lie. Raises ValueError where the sizes do not go
        together.
        """
        frame = TileFrame(size, self.tile_size, self.stride, self.edge)
        _ = frame.grid
        return frame

    def merger(self, frame: TileFrame, statistics: TileStatistics | None) -> TileMerger:
        """How results of tiles become those of images."""
        return TileMerger(frame, self.score, self.seam_smoothing, self.normalization, statistics)


@dataclass(frozen=True)
class TiledState:
    """What a tiled ensemble has learned: a detector per location (one if shared), in row-major order, where
    the tiles lie, and the statistics that bring their results to one scale.
    """

    members: tuple[Detector, ...]
    frame: TileFrame
    statistics: TileStatistics | None


@dataclass(frozen=True)
class Location:
    """What one location has learned, or all together if they share a detector.

    Attributes:
        member: the detector, ready to score.
        samples: one per part of the member, in step: results of normal images that it has not learned.
        positions: where the images of these results stand among those given.
        origins: of the samples.
        warnings: why thresholds say little, by the part and the kind of reason.
        rose: as in `Fitted`.
        left_out: what its parts have left out, joined.
    """

    member: Detector
    samples: tuple[NormalSample, ...]
    positions: tuple[int, ...]
    origins: tuple[Origin, ...]
    warnings: Mapping[str, str]
    rose: bool = False
    left_out: tuple[LeftOut, ...] = ()
