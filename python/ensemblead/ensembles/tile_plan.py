"""What a tiled ensemble is told, what it learns, and what one location learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ensemblead.calibration import NormalSample, Origin
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.regions import give_region, inside_of
from ensemblead.ensembles.tile_merging import Edge, TileFrame, TileMerger, TileStatistics
from ensemblead.images import AS_IS, Geometry, Region


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
        mask = self.geometry.inside() if self.geometry.is_decided else None
        return frame if mask is None else frame.without_outside(mask)

    def member_at(self, frame: TileFrame, number: int) -> Detector:
        """An unfitted detector for tile `number`, which inspects its part of the region."""
        member, mask = self.member._clone(), self.geometry.inside()
        part = None if mask is None else frame.inside(mask, number)
        if part is not None and not part.all():
            give_region(member._parts(), Region(part))
        return member

    def merger(self, frame: TileFrame, statistics: TileStatistics | None) -> TileMerger:
        """How results of tiles become those of images."""
        inside = inside_of(self.geometry)
        return TileMerger(frame, self.score, self.seam_smoothing, self.normalization, statistics, inside)


@dataclass(frozen=True)
class TiledState:
    """What a tiled ensemble has learned: a detector per location that is looked at (one if shared), in
    row-major order, where the tiles lie, and the statistics that bring their results to one scale.
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


def settle_in_tile(member: Detector) -> None:
    """Let the parts of a location's detector know that tiles come as they are, region and all."""
    parts: Sequence[Any] = member._parts()
    for part in parts:
        if part.region is not None:
            place = replace(AS_IS, region=part.region)
            part._reading = replace(part._reading, geometries=(place,))


def without_region(member: Detector) -> Detector:
    """The same unfitted detector, that of no location any more."""
    for part in member._parts():
        part._take_region(None)
    return member


def check_member(member: Any, shared: bool, edge: str) -> None:
    """Raise TypeError or ValueError for what cannot be fitted tile by tile."""
    if not isinstance(member, Detector):
        raise TypeError(f"member must be a detector, got {type(member).__name__}")
    if any(hasattr(type(part), "tile_grid_") for part in member._parts()):
        raise ValueError(
            "member must not be a TiledEnsemble or contain one; give smaller tiles to a single one"
        )
    if any(part.has_learned for part in member._parts()):
        raise ValueError(
            "member must be unfitted, for every tile location fits a copy of it; this "
            f"{type(member).__name__} has learned already, and not from tiles"
        )
    if any(part.region is not None for part in member._parts()):
        raise ValueError("member must have no region, for it sees tiles; give it to the TiledEnsemble")
    if any(getattr(part, "foreground", None) is not None for part in member._parts()):
        raise ValueError(
            'member: foreground="auto" tells the object from what lies about it, and a tile may hold either '
            "alone; leave it None, or give region= to the TiledEnsemble"
        )
    given = [getattr(part, "contamination", None) for part in member._parts()]
    shares = [own for own in given if isinstance(own, float)]
    if shares and not shared:
        raise ValueError(
            f"member: contamination={shares[0]:g} would leave out that share of the tiles at every location, "
            'good ones too: a defect lies in few tiles; give contamination="auto", or shared=True'
        )
    augment = [getattr(part, "augment", None) for part in member._parts()]
    if edge == "pad" and any(own not in (None, "brightness", ("brightness",)) for own in augment):
        raise ValueError(
            'member: augment turns tiles, and edge="pad" leaves some with black margins, which would be '
            'learned in eight places; take edge="flush"'
        )
    if any(getattr(part, "defects", None) is not None for part in member._parts()):
        raise ValueError(
            "member: defects must be None, for it sees tiles, and known defects are given as whole images"
        )
    member._require_single_image_scores()
