"""What a tiled ensemble is told, what it learns, and what one location learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemblead.calibration import NormalSample, Origin
from ensemblead.common.validation import one_of
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.regions import give_region, inside_of
from ensemblead.ensembles.tile_frame import EDGES, Edge
from ensemblead.ensembles.tile_merging import NORMALIZATIONS, SCORES, TileMerger, TileStatistics
from ensemblead.ensembles.tile_pyramid import TilePyramid, scaled_geometries
from ensemblead.images import AS_IS, Geometry, Region


@dataclass(frozen=True)
class TilePlan:
    """What a tiled ensemble is told: its parameters, and how images become its frame, at the scale 1."""

    member: Detector
    geometry: Geometry
    tile_size: tuple[int, int]
    stride: tuple[int, int]
    edge: Edge
    scales: tuple[float, ...]
    score: str
    seam_smoothing: bool
    normalization: str
    shared: bool
    memory_budget: int

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """How images come to every scale."""
        return scaled_geometries(self.geometry, self.scales)

    def frame_for(self, size: tuple[int, int]) -> TilePyramid:
        """Where the tiles of images of this size lie. Raises ValueError where the sizes do not go
        together.
        """
        frame = TilePyramid.of(size, self.scales, self.tile_size, self.stride, self.edge)
        masks = self._masks() if self.geometry.is_decided else None
        return frame if masks is None else frame.without_outside(masks)

    def member_at(self, frame: TilePyramid, number: int) -> Detector:
        """An unfitted detector for tile `number`, which inspects its part of the region."""
        member, masks = self.member._clone(), self._masks()
        part = None if masks is None else frame.inside(masks, number)
        if part is not None and not part.all():
            give_region(member._parts(), Region(part))
        return member

    def merger(self, frame: TilePyramid, statistics: TileStatistics | None) -> TileMerger:
        """How results of tiles become those of images."""
        return TileMerger(
            frame,
            self.score,
            self.seam_smoothing,
            self.normalization,
            statistics,
            tuple(map(inside_of, self.geometries)),
            inside_of(self.geometry),
        )

    def _masks(self) -> list[npt.NDArray[np.bool_]] | None:
        """The region in the image at every scale; None without one."""
        masks = [geometry.inside() for geometry in self.geometries]
        return [mask for mask in masks if mask is not None] or None


@dataclass(frozen=True)
class TiledState:
    """What a tiled ensemble has learned: a detector per location that is looked at (one per scale if shared),
    in the order of their numbers, where the tiles lie, and the statistics that bring their results to one
    unit.
    """

    members: tuple[Detector, ...]
    frame: TilePyramid
    statistics: TileStatistics | None

    def member_at(self, number: int) -> Detector:
        """The detector of a tile."""
        shared = len(self.members) < len(self.frame)
        return self.members[self.frame.place(number)[0] if shared else self.frame.numbers.index(number)]


@dataclass(frozen=True)
class Location:
    """What one location has learned, or all of a scale together if they share a detector.

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


def check_choices(score: str, normalization: str, edge: str, **flags: bool) -> None:
    """Raise ValueError for names that are not known, TypeError for flags that are no bools."""
    one_of("score", score, SCORES)
    one_of("normalization", normalization, NORMALIZATIONS)
    one_of("edge", edge, EDGES)
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


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
    if any(getattr(part, "pad_to_grid", False) for part in member._parts()):
        raise ValueError(
            "member: pad_to_grid must be False, for tiles can have a tile_size that fits the grid"
        )
    member._require_single_image_scores()
