"""Ensembles over tiles: high-resolution images at the memory of a few tiles.

Rolih et al., "Divide and Conquer: High-Resolution Industrial Anomaly Detection via Memory Efficient Tiled
Ensemble", arXiv 2403.04932.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from ensemblead.calibration.statistics import Calibration
from ensemblead.common.errors import DamagedModelError, NotFittedError
from ensemblead.common.validation import whole_number
from ensemblead.config.registry import register
from ensemblead.detectors.base import (
    Detector,
    Embedded,
    Features,
    Fitting,
    Leaf,
    LeafDetector,
    Result,
    share_networks,
)
from ensemblead.ensembles.tile_fitting import TiledFitting
from ensemblead.ensembles.tile_frame import NORMALIZATIONS, SCORES, Joiner, TileFrame, Units
from ensemblead.ensembles.tile_network import TileNetwork
from ensemblead.images import Geometry
from ensemblead.kernels.tiling import tile_grid
from ensemblead.networks.network import FeaturePool
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

Size = int | tuple[int, int]
# Bytes of embeddings that a fit holds at once, unless it is told otherwise.
MEMORY_BUDGET = 1_000_000_000
_PARAMETERS = ("score", "seam_smoothing", "normalization", "shared", "memory_budget")


@register("TiledEnsemble")
class TiledEnsemble(Leaf):
    """One detector per tile location of a large image, joined to one score and one map.

    Tiles overhang the image at the bottom and on the right where it does not divide evenly; there they are
    black (the uint8 pixels are 0, before normalisation). Every tile goes through the network once per run, in
    batches of the member's `batch_size` tiles, whatever number of members reads it.

    `fit` holds the embeddings of as many tile locations as fit `memory_budget`, one at least, and passes over
    the images once per such group; of the resized images, what fits a quarter of the budget (256 MiB at most)
    is kept in between, the others are decoded again. `predict` decodes once, holds one batch of tiles and the
    maps of one image (of several where the image has few tiles).

    Several in one `BackboneEnsemble`, over the same tiles and on the same device, share the passes of equal
    networks in `predict`, in batches of the smallest `batch_size` among their members; in `fit` each makes
    its own, for its groups of locations differ. A `BackboneEnsemble` as the member shares them in both.

    Args:
        member: an unfitted detector, cloned for every location: `PatchCore`, `PaDiM`, or a
            `BackboneEnsemble`. Its resize and crop do not apply, for the tiles are its images; its
            normalisation does.
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
        shared: one detector for all locations, fitted on the tiles of all of them. Its leave-one-out
            statistics come from as many images as fit a third of `memory_budget`.
        memory_budget: bytes of embeddings, and of resized images for further passes, held at once in `fit`;
            besides them there are the network, one batch of tiles, the banks, and some images decoded ahead
            (three and one per core, at most 11, where an image fills a batch of tiles).

    Attributes after `fit`: `members_`, a detector per location in row-major order (one if shared);
    `tile_grid_`, their rows and columns; `calibration_`, `threshold_` of the joined scores.
    """

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
        shared: bool = False,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        _check_member(member)
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
            )
        for name, flag in (("seam_smoothing", seam_smoothing), ("shared", shared)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, got {flag!r}")
        rows, columns = tile_grid(tile_size if image_size is None else image_size, tile_size, stride)
        self.member = member
        self.tile_size, self.stride = _pair(tile_size), _pair(stride)
        self.image_size = None if image_size is None else _pair(image_size)
        self._geometry = Geometry(self.image_size, None)
        self.score, self.normalization = score, normalization
        self.seam_smoothing, self.shared = seam_smoothing, shared
        self.memory_budget = whole_number("memory_budget", memory_budget, 1)
        self._frame: TileFrame | None = None
        # Images per batch, about as many as fill a batch of tiles. With None, the first image of the fit
        # decides on the number of tiles.
        self.batch_size = 1 if image_size is None else max(1, member.batch_size // (rows * columns))
        self._members: list[Detector] = []
        self._units: Units | None = None
        self._calibration: Calibration | None = None
        self._tiles: TileNetwork | None = None

    @property
    def is_fitted(self) -> bool:
        return bool(self._members) and self._calibration is not None

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def calibration_(self) -> Calibration:
        if self._calibration is None:
            raise NotFittedError("this TiledEnsemble is not fitted; call fit first")
        return self._calibration

    @property
    def members_(self) -> list[Detector]:
        """The fitted detectors, one per tile location in row-major order, or one if shared."""
        self._require_fitted("give members_")
        return list(self._members)

    @property
    def tile_grid_(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return self._fitted_frame().grid

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments but for `member`."""
        sizes = {name: getattr(self, name) for name in ("tile_size", "stride", "image_size")}
        return sizes | {name: getattr(self, name) for name in _PARAMETERS}

    # The protocol of detectors

    def _network_leaves(self) -> list[LeafDetector]:
        return [leaf for one in (self.member, *self._members) for leaf in one._network_leaves()]

    def _pool(self) -> FeaturePool:
        share_networks(self._network_leaves())
        return super()._pool()

    def _look(self, pixels: torch.Tensor, features: Features) -> torch.Tensor:
        # The image itself: its tiles are embedded in small batches, and none of them is kept.
        return pixels

    @property
    def _rounding(self) -> float:
        # Where it counts, values are in the members' unit.
        return max(leaf._rounding for leaf in self.member._leaves())

    def _extending_lowers_scores(self) -> bool:
        return all(leaf._extending_lowers_scores() for leaf in self.member._leaves())

    def _begin_fit(self) -> Fitting:
        return TiledFitting(self)

    def _begin_extension(self) -> Fitting:
        return TiledFitting(self, self._members)

    def _accept(self, calibrations: Sequence[Calibration]) -> None:
        (self._calibration,) = calibrations

    def _score(self, embedded: Embedded) -> Result:
        (result,) = score_together([self], embedded)
        return result

    def _frame_of(self, size: tuple[int, int]) -> TileFrame:
        """That of the fit, if images of this size are what it was fitted for."""
        frame = self._fitted_frame()
        if size != frame.image_size:
            raise ValueError(
                f"images must have the size that the ensemble was fitted for, {frame.image_size} with "
                f"{frame.grid[0]} x {frame.grid[1]} tiles, got {size}; image_size=(h, w) resizes them"
            )
        return frame

    def _tiling(self) -> Hashable:
        """Fitted ensembles for which this is equal look at the same tiles, on the same device."""
        return self.geometry, self._fitted_frame(), self._network_leaves()[0]._network().device

    def _tile_network(self, others: Sequence[TiledEnsemble] = ()) -> TileNetwork:
        """For one's own members and those of others, in this order."""
        party = (self, *others)
        readers = [one._members[0] if one._members else one.member for one in party]
        if self._tiles is None or not self._tiles.serves(readers):
            share_networks([leaf for one in party for leaf in one._network_leaves()])
            self._tiles = TileNetwork(readers)
        return self._tiles

    def _frame_for(self, size: tuple[int, int]) -> TileFrame:
        frame = TileFrame(size, self.tile_size, self.stride)
        _ = frame.grid  # raises where they do not go together
        return frame

    def _fitted_frame(self) -> TileFrame:
        if self._frame is None:
            raise NotFittedError("this TiledEnsemble is not fitted; call fit first")
        return self._frame

    def _joiner(self, frame: TileFrame, units: Units | None) -> Joiner:
        return Joiner(frame, self.score, self.seam_smoothing, self.normalization, units)

    def _clone(self) -> Self:
        return type(self)(self.member._clone(), **self.parameters())

    # Saving

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`: a folder per location; the first has the network, the others borrow it."""
        frame = self._fitted_frame()
        for number, member in enumerate(self._members):
            borrowed = {"borrowed": True} if number else {}
            writer.child(self._folder(number, frame), member, **borrowed)
        calibration, samples = self.calibration_.state()
        writer.tensors("calibration.safetensors", samples)
        if self._units is not None:
            writer.tensors("units.safetensors", {"units": self._units.values})
        return {
            "parameters": self.parameters(),
            "image_size": list(frame.image_size),
            "tiles": list(frame.grid),
            "calibration": calibration,
        }

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`; there, `weights` and `backbone` are those of one member."""
        state = reader.state
        with reader.as_damage():
            parameters = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in state["parameters"].items()
            }
            frame = TileFrame(tuple(state["image_size"]), parameters["tile_size"], parameters["stride"])
            grid = frame.grid
        if list(grid) != state["tiles"]:
            raise DamagedModelError(f"{reader.folder} states {state['tiles']} tiles, its sizes give {grid}")
        folder = "member" if parameters["shared"] else _tile_name(0, frame)
        members = [reader.child(folder)]
        for number in range(1, 1 if parameters["shared"] else len(frame)):
            lent = iter([leaf._network() for leaf in members[0]._network_leaves()])
            members.append(reader.child(_tile_name(number, frame), networks=lent))
        member = members[0]._clone()
        with reader.as_damage():
            ensemble = cls(member, **cast("dict[str, Any]", parameters))
        ensemble._members, ensemble._frame = members, frame
        if reader.has("units.safetensors"):
            ensemble._units = Units(reader.tensors("units.safetensors")["units"])
        samples = {name: t.numpy() for name, t in reader.tensors("calibration.safetensors").items()}
        with reader.as_damage():
            known = Calibration.from_state(state["calibration"], samples, ensemble._rounding)
        ensemble._calibration = known
        return ensemble

    def _folder(self, number: int, frame: TileFrame) -> str:
        return "member" if self.shared else _tile_name(number, frame)


def score_together(ensembles: Sequence[TiledEnsemble], embedded: Embedded) -> list[Result]:
    """What ensembles over the same tiles say of images that are given as for one of them: a batch of tiles
    goes through a network once for all.
    """
    (pixels,), (size,) = embedded.parts, embedded.sizes
    first, *others = ensembles
    frame, network = first._frame_of(size), first._tile_network(others)
    # Whole images go up once, as bytes; the tiles are cut there.
    pixels = pixels.to(network.device, non_blocking=True)
    canvases = [one._joiner(frame, one._units).canvas(len(pixels)) for one in ensembles]
    batch_size = min(one.member.batch_size for one in ensembles)
    for number, images, tiles in _tile_batches(network, pixels, frame, batch_size):
        start = 0
        for one, canvas in zip(ensembles, canvases, strict=True):
            member = one._members[0 if one.shared else number]
            span = slice(start, start + len(member._leaves()))
            canvas.put(number, images, member._score(tiles.leaves(span)))
            start = span.stop
    return [canvas.join() for canvas in canvases]


def _tile_batches(
    network: TileNetwork, pixels: torch.Tensor, frame: TileFrame, batch_size: int
) -> Iterator[tuple[int, slice, Embedded]]:
    """All tiles of images `[B, 3, H, W]`, embedded: number, whose they are, and what is seen of them."""
    places = [(number, image) for number in range(len(frame)) for image in range(len(pixels))]
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        embedded = network.embed(torch.stack([frame.cut(pixels[image], n) for n, image in chosen]))
        done = 0
        for number, run in groupby(chosen, lambda place: place[0]):
            images = [image for _, image in run]
            tiles = embedded.images(slice(done, done + len(images)))
            yield number, slice(images[0], images[-1] + 1), tiles
            done += len(images)


def _tile_name(number: int, frame: TileFrame) -> str:
    row, column = divmod(number, frame.grid[1])
    return f"tile_{row}_{column}"


def _check_member(member: Any) -> None:
    if not isinstance(member, Detector):
        raise TypeError(f"member must be a detector, got {type(member).__name__}")
    if any(not isinstance(leaf, LeafDetector) for leaf in member._leaves()):
        raise ValueError(
            "member must not be a TiledEnsemble or contain one; give smaller tiles to a single one"
        )
    if member.is_fitted:
        raise ValueError(
            "member must be unfitted, for every tile location fits a copy of it; this "
            f"{type(member).__name__} was fitted on images, not on tiles"
        )
    member._require_single_image_scores()


def _pair(size: Size) -> tuple[int, int]:
    """(h, w) of a size that `tile_grid` has taken."""
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (int(size), int(size))
