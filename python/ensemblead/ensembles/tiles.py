"""Ensembles over tiles: high-resolution images at the memory of a few tiles.

Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient Tiled
Ensemble", arXiv 2403.04932.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.calibration import Calibration, NormalSample
from ensemblead.common.errors import NotFittedError
from ensemblead.common.files import StrPath
from ensemblead.common.validation import whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.detector import Detector, Errors
from ensemblead.detectors.frozen import FrozenNetwork, share_networks
from ensemblead.detectors.holdout import holdout_of
from ensemblead.detectors.learning import nothing_read
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.parts import (
    Accumulator,
    Features,
    Fitted,
    Part,
    Passes,
    Progress,
    Reading,
    Result,
    Run,
    Seen,
)
from ensemblead.detectors.saving import plain_arguments, plain_parameters, read_statistics, write_statistics
from ensemblead.ensembles.tile_batches import tile_batches
from ensemblead.ensembles.tile_learning import TiledLearning
from ensemblead.ensembles.tile_plan import TiledState, TilePlan, check_choices, check_member, without_region
from ensemblead.ensembles.tile_pyramid import TilePyramid, checked_scales
from ensemblead.ensembles.tile_saving import read_tiles, write_tiles
from ensemblead.ensembles.tile_units import fit_tiles
from ensemblead.ensembles.units import job_of
from ensemblead.images import AS_IS, Geometry, ImageSet, Region, RegionLike
from ensemblead.images.spool import MEMORY_BYTES
from ensemblead.kernels.tiling import tile_grid
from ensemblead.networks.network import FeaturePool
from ensemblead.networks.summaries import rows_of
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

Size = int | tuple[int, int]
# Bytes of embeddings that a fit holds at once, unless it is told otherwise.
MEMORY_BUDGET = 1_000_000_000
# Where several passes are needed, resized images may take this share of the budget.
_SPOOL_SHARE = 1 / 4


@register("TiledEnsemble")
class TiledEnsemble(Detector):
    """One detector per tile location of a large image, joined to one score and one map.

    Every tile goes through the network once per run, in batches of the member's `batch_size` tiles, whatever
    number of members reads it.

    `fit` decodes and resizes every image once, keeps the pixels (a quarter of `memory_budget` in memory,
    256 MiB at most, the rest in a temporary file), and fits location after location: it holds the
    embeddings of one. `predict` decodes once, holds one batch of tiles and the maps of one image (of several
    where the image has few tiles).

    Several in one `BackboneEnsemble`, over the same tiles and on the same device, share the passes of equal
    networks in `predict`, in batches of the smallest `batch_size` among their members; in `fit` each makes
    its own. A `BackboneEnsemble` as the member shares them in both.

    Args:
        member: an unfitted detector, cloned for every location: a method, or a `BackboneEnsemble` of
            methods. Its resize and crop do not apply, for the tiles are its images; its normalisation does.
        tile_size: pixels, int or `(h, w)`; no larger than the image.
        stride: distance between tiles, int or `(rows, columns)`; at most `tile_size`.
        image_size: int: images are squashed to a square of that side; `(h, w)`: to that size; None: they keep
            their own, and then all must have the same.
        score: an image's score is the "mean" (the paper) or the "max" over those of its tiles.
        seam_smoothing: blur the joined map along the edges of tiles, see `smooth_seams`.
        normalization: "tile": each location's scores and maps less their mean and divided by their standard
            deviation over normal images (leave-one-out, of `fit`), a deviation of less than a quarter of that
            pooled over all locations counting as a quarter of it, so that noise where nothing ever varies is
            not amplified. Where that is nothing too (a single image, or images that are all alike), values
            are not divided, and a warning says so. "image": the same of the joined score and map as a whole,
            which leaves their order alone. "none": values as the members give them. These units are learned
            by `fit` and stay: `extend` and `calibrate` change the threshold only, in the same units, so that
            the guarantee of `calibrate` is exact.
        edge: "flush": where the image does not divide evenly, the last row and column of tiles are moved in
            until they lie flush with it. "pad" (the paper's): they overhang it, and are black there (the
            uint8 pixels are 0, before normalisation). A detector of such a tile learns the black edge, and
            defects beside it score far lower (measured: 14 instead of 926).
        scales: factors by which images are resized before they are cut, into tiles of the same `tile_size`
            and `stride` in pixels: at .5 a tile shows four times as much of the image. Tiles of every scale
            are locations of their own. Of each scale the score and the map are joined as of one; the maps are
            brought to the image's size, and both are averaged over the scales. docs/design/tiles.md has what
            is gained. Scales that leave no whole tile are refused.
        shared: one detector for all locations of a scale, fitted on the tiles of all of them. Its
            leave-one-out statistics come from as many images as fit a third of `memory_budget`.
        region: what is inspected of photographs, as `PatchCore` takes it; the member has none. Each location
            sees its part; one without any is skipped. It goes with `shared=False`.
        memory_budget: bytes; of resized images a quarter of it, 256 MiB at most, is kept in memory in
            `fit`, and a shared detector holds embeddings of sampled images up to a third. Besides them there
            are the network, one batch of tiles, the embeddings of one location (of a `PatchCore` up to its
            own `memory_budget`), the banks, and some images decoded ahead.

    Attributes after `fit`: `members_`, a detector per location with any region, row by row and scale by scale
    (one per scale if shared); `tile_grid_`, rows and columns of the first scale, `tile_grids_`, those of all;
    `calibration_`, `threshold_` of the joined scores.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (13, 96, 96, 3), dtype=np.uint8)
        >>> images[12, 20:40, 20:40] = 200
        >>> member = ead.PatchCore("gabor", coreset_fraction=0.1, device="cpu")
        >>> ensemble = ead.TiledEnsemble(member, tile_size=64, stride=32, image_size=96).fit(images[:12])
        >>> ensemble.tile_grid_, len(ensemble.members_)
        ((2, 2), 4)
        >>> ensemble.predict(images[12:]).is_anomalous
        array([ True])
    """

    region: Region | None = None

    def __init__(
        self,
        member: Detector,
        tile_size: Size = 256,
        stride: Size = 128,
        *,
        image_size: Size | None = 512,
        score: Literal["mean", "max"] = "mean",
        seam_smoothing: bool = True,
        normalization: Literal["tile", "image", "none"] = "tile",
        edge: Literal["flush", "pad"] = "flush",
        scales: Sequence[float] = (1.0,),
        shared: bool = False,
        memory_budget: int = MEMORY_BUDGET,
        region: RegionLike = None,
    ) -> None:
        check_member(member, shared, edge)
        check_choices(score, normalization, edge, seam_smoothing=seam_smoothing, shared=shared)
        tile_grid(tile_size if image_size is None else image_size, tile_size, stride)  # checks them
        self.member, self.scales = member, checked_scales(scales)
        self.tile_size, self.stride = _pair(tile_size), _pair(stride)
        self.image_size = None if image_size is None else _pair(image_size)
        self._geometry = Geometry(self.image_size, None)
        for part in member._parts():
            part.check_size(self.tile_size, "tile_size")
        self.score, self.normalization, self.edge = score, normalization, edge
        self.seam_smoothing, self.shared = seam_smoothing, shared
        self._take_region(Region.of(region))
        self.memory_budget = whole_number("memory_budget", memory_budget, 1)
        # Images per batch, about as many as fill a batch of tiles. With None, the first image of the fit
        # decides on the number of tiles.
        count = member.batch_size if self.image_size is None else self._pyramid(self.image_size).count
        self.batch_size = max(1, member.batch_size // count)
        self._state: TiledState | None = None
        self._calibration: Calibration | None = None
        self._reading = nothing_read()
        self._pool: tuple[Any, FeaturePool] | None = None

    @property
    def is_fitted(self) -> bool:
        return self._state is not None and self._calibration is not None

    @property
    def geometry(self) -> Geometry:
        return self._reading.geometries[0] if self._reading.geometries else self._geometry

    @property
    def calibration_(self) -> Calibration:
        if self._calibration is None:
            raise NotFittedError("this TiledEnsemble is not fitted; call fit first")
        return self._calibration

    @property
    def members_(self) -> list[Detector]:
        """The fitted detectors, one per tile location, scale by scale in row-major order; one per scale if
        shared.
        """
        return list(self._fitted().members)

    @property
    def tile_grid_(self) -> tuple[int, int]:
        """Rows and columns of tiles, at the first scale."""
        return self.tile_grids_[0]

    @property
    def tile_grids_(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tiles at every scale."""
        return tuple(level.grid for level in self._fitted().frame.levels)

    @property
    def state_(self) -> TiledState:
        """What was learned."""
        return self._fitted()

    def fit(
        self,
        images: Any,
        *,
        errors: Errors = "raise",
        progress: Progress | None = None,
        checkpoint: StrPath | None = None,
        executor: Any = None,
        workdir: StrPath | None = None,
        retries: int = 1,
    ) -> Self:
        """As `Detector.fit`, in this process, or on the workers of an executor.

        With `executor`, `workdir` and `retries` as for `BackboneEnsemble.fit`, each location is fitted apart,
        and joined here. A worker takes a range of locations and decodes every image once.
        """
        job = job_of(images, errors, progress, checkpoint, executor, workdir, retries)
        if job is None:
            return super().fit(images, errors=errors, progress=progress, checkpoint=checkpoint)
        # An earlier fit may have drawn the region on images of another size.
        fit_tiles(self, replace(self.plan(), geometry=self._geometry), self._device(), job)
        return self

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments but for `member`."""
        return {name: value for name, value in plain_arguments(self).items() if name != "member"}

    def _fitted(self) -> TiledState:
        if self._state is None:
            raise NotFittedError("this TiledEnsemble is not fitted; call fit first")
        return self._state

    # A part of a detector

    @property
    def passes(self) -> Passes:
        """Every location makes a pass of its own."""
        held_out = any(part.passes == "held_out" for part in self.member._parts())
        return "held_out" if held_out else "many"

    @property
    def has_learned(self) -> bool:
        return self._state is not None

    @property
    def holdout(self) -> float | None:
        return holdout_of(self.member._parts())

    @property
    def spool_bytes(self) -> int:
        return min(MEMORY_BYTES, int(self.memory_budget * _SPOOL_SHARE))

    @property
    def extending_lowers_scores(self) -> bool:
        return all(part.extending_lowers_scores for part in self.member._parts())

    @property
    def has_bank(self) -> bool:
        """Whether its members have memory banks."""
        return any(part.has_bank for part in self.member._parts())

    def held_bytes(self, seen: Seen, total: int) -> int | None:
        return None  # its members say so at every location

    def check_size(self, size: tuple[int, int], argument: str) -> None:
        """Raise ValueError where images (h, w) cannot be cut into tiles."""
        self.plan().frame_for(size)

    def _take_region(self, region: Region | None) -> None:
        if region is not None and self.shared:
            raise ValueError("region goes with shared=False: one detector cannot have a region for each tile")
        self.region, self._geometry = region, replace(self._geometry, region=region)

    def _parts(self) -> Sequence[Part]:
        return [self]

    def _networks(self) -> list[FrozenNetwork]:
        members = () if self._state is None else self._state.members
        return [network for one in (self.member, *members) for network in one._networks()]

    def _own_networks(self) -> list[FrozenNetwork]:
        return []  # none looks at whole images

    def _kept_geometries(self) -> Sequence[Geometry]:
        return self.plan().geometries

    def _combine(self, results: Sequence[Result]) -> Result:
        (result,) = results
        return result

    def _start(self, *, extending: bool) -> Accumulator:
        raise NotImplementedError("a tiled ensemble learns in passes of its own")

    def _learn(self, images: ImageSet, run: Run, *, extending: bool) -> Fitted:
        return TiledLearning(self.plan(), images, run, self._state if extending else None).fitted()

    def _seen(self, pixels: torch.Tensor, geometry: Geometry, features: Features) -> Seen:
        # The images themselves: their tiles are embedded in small batches, and none of them is kept.
        return Seen((pixels,), (pixels.shape[2], pixels.shape[3]), frame=geometry)

    def _result(self, seen: Seen) -> Result:
        (result,) = score_together([self], seen)
        return result

    def _roundings(self, sample: NormalSample) -> tuple[float, float | None]:
        return self.calibration_.rounding, self.calibration_.map_rounding

    def _take(self, states: Sequence[Any], reading: Reading) -> None:
        (self._state,), self._reading = states, reading
        self._pool = None

    def _accept(self, calibrations: Sequence[Calibration]) -> None:
        (self._calibration,) = calibrations

    @property
    def left_out_(self) -> tuple[LeftOut, ...]:
        return tuple(one for own in self._reading.left_out for one in own)

    @property
    def _fingerprints(self) -> npt.NDArray[np.uint64]:
        return self._reading.fingerprints

    @property
    def bits_(self) -> int | None:
        return self._reading.bits

    def _clone(self) -> Self:
        return type(self)(self.member._clone(), **self.parameters())

    def plan(self) -> TilePlan:
        """The parameters, for learning and merging."""
        return TilePlan(
            self.member,
            self.geometry,
            self.tile_size,
            self.stride,
            self.edge,
            self.scales,
            self.score,
            self.seam_smoothing,
            self.normalization,
            self.shared,
            self.memory_budget,
        )

    def tiling(self) -> Hashable:
        """Fitted ensembles for which this is equal look at the same tiles, on the same device."""
        return self.geometry, self._fitted().frame, self._device()

    def _device(self) -> torch.device:
        networks = self.member._networks()
        return networks[0].network.device if networks else torch.device("cpu")

    def _pyramid(self, size: tuple[int, int]) -> TilePyramid:
        """All tiles of images of this size."""
        return TilePyramid.of(size, self.scales, self.tile_size, self.stride, self.edge)

    def _frame_of(self, size: tuple[int, int]) -> TilePyramid:
        """That of the fit, if images of this size are what it was fitted for."""
        frame = self._fitted().frame
        if size != frame.image_size:
            rows, columns = self.tile_grid_
            raise ValueError(
                f"images must have the size that the ensemble was fitted for, {frame.image_size} with "
                f"{rows} x {columns} tiles, got {size}; image_size=(h, w) resizes them"
            )
        return frame

    def _pool_for(self, parts: list[Part]) -> FeaturePool:
        """Forward passes over tiles for these parts, kept from batch to batch."""
        readers = [network for part in parts for network in part._own_networks()]
        known = parts, [network.network.key for network in readers]
        if self._pool is None or self._pool[0] != known:
            share_networks([network for part in parts for network in part._networks()])
            self._pool = known, FeaturePool([(network.network, AS_IS) for network in readers])
        return self._pool[1]

    # Saving

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`: a folder per location; the first has the network, the others borrow it."""
        tiles = write_tiles(writer, self._fitted(), shared=self.shared)
        return {"parameters": self.parameters(), **tiles, **write_statistics(self, writer)}

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`; there, `weights` and `backbone` are those of one member."""
        with reader.as_damage():
            own = plain_parameters(reader.state["parameters"])
            if reader.format == 1:
                own["edge"] = "pad"
        state = read_tiles(reader, own)
        with reader.as_damage():
            ensemble = cls(without_region(state.members[0]._clone()), **own)
        ensemble._state = state
        read_statistics(ensemble, reader, max(member.calibration_.rounding for member in state.members))
        return ensemble


def score_together(ensembles: Sequence[TiledEnsemble], seen: Seen) -> list[Result]:
    """Results of ensembles over the same tiles for images that are given as for one of them: a batch of tiles
    goes through a network once for all.
    """
    first = ensembles[0]
    states, frame = [one._fitted() for one in ensembles], first._frame_of(seen.size)
    # Networks are shared by all members of an ensemble, so those of the first look at the tiles of all.
    parts = [part for state in states for part in state.members[0]._parts()]
    pool = first._pool_for(parts)
    # Whole images go up once, as bytes; the tiles are cut there.
    scaled = [own.to(first._device(), non_blocking=True) for own in frame.scaled(seen.pixels)]
    pairs = zip(ensembles, states, strict=True)
    buffers = [one.plan().merger(frame, state.statistics).buffer(len(seen)) for one, state in pairs]
    batch_size = min(one.member.batch_size for one in ensembles)
    for number, images, tiles in tile_batches(parts, pool, scaled, frame, batch_size):
        start = 0
        for state, buffer in zip(states, buffers, strict=True):
            member = state.member_at(number)
            span = slice(start, start + len(member._parts()))
            with rows_of(range(images.start, images.stop)):
                buffer.put(number, images, member._combine(member._results(tiles[span])))
            start = span.stop
    return [buffer.merge() for buffer in buffers]


def _pair(size: Size) -> tuple[int, int]:
    """(h, w) of a size that `tile_grid` has taken."""
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))
