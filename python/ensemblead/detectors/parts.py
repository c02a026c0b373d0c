"""Parts: what a detector is made of, and what passes between them while it learns and scores.

A detector is a tree. Its parts score images on their own: a method with what it has learned, or a tiled
ensemble. A backbone ensemble combines the results of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.calibration import Calibration, NormalSample, Origin
from ensemblead.detectors.frozen import FrozenNetwork
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.training.checkpoint import Checkpoint
from ensemblead.images import AS_IS, Geometry, ImageBatch, ImageSet, Region, SkippedImage, Turn
from ensemblead.kernels.object_cells import ObjectCells

if TYPE_CHECKING:
    from typing_extensions import Self
from ensemblead.networks.network import Network

# Called with a stage ("embed", "select", "calibrate", "train", "join", "predict"), how much is done, and how
# much there is.
Progress = Callable[[str, int, int], None]
# Called with what more there is to say of the stage under way; True: it is a line that is to stay.
Note = Callable[[str, bool], None]
# How a part learns: in one pass, which several share; in many of its own; in many that leave some images out.
Passes = Literal["one", "many", "held_out"]
# Scores float32 [B] and maps float32 [B, H, W] of a batch.
Result = tuple[torch.Tensor, torch.Tensor]
# Of a method's graph: grids float32 [B, h, w], and scores float32 [B], or None for the maps' maxima.
GraphOutputs = tuple[torch.Tensor, torch.Tensor | None]
# Which tensors a method sees.
Sight = Literal["pixels", "feature_maps", "embeddings"]
# A network's feature maps of the batch under way, in a geometry.
Features = Callable[[Network, Geometry], list[torch.Tensor]]


_SEES = {
    "pixels": "a method without a network, or with sees_pixels, sees pixels",
    "feature_maps": "a method with a network sees feature maps",
    "embeddings": "a method with a network that defines embed sees embeddings",
}


@dataclass(frozen=True)
class Seen:
    """What a part is given of B images.

    Attributes:
        values: tensors of B rows: the pixels, the layers' feature maps, or their embeddings.
        size: height and width of the images.
        numbers: in `fit`, the image of every row; images that are equal have one number, and so have the
            tiles of one image.
        sampled: in `fit`, whether the row's leave-one-out score is wanted.
        contents: in `fit`, 64 bits of the pixels that the row was made from: an order that follows from the
            set of images, not from where they stand.
        total: in `fit`, of how many rows all batches will be, those included that turn out unreadable.
        total_sampled: how many of them at most will be sampled.
        bits: in `fit`, used bits of 16-bit files; None where there are none.
        kind: which of the three the values are.
        frame: how the images came to be what they are.
        shown: height and width of the images before they were padded to `size`; None: they were not.
        turns: in `fit`, of changed copies of images how each is turned; of images as they are, none.
    """

    values: tuple[torch.Tensor, ...]
    size: tuple[int, int]
    numbers: tuple[int, ...] = ()
    sampled: tuple[bool, ...] = ()
    contents: tuple[int, ...] = ()
    total: int = 0
    total_sampled: int = 0
    bits: int | None = None
    kind: Sight = "pixels"
    frame: Geometry = AS_IS
    shown: tuple[int, int] | None = None
    turns: tuple[Turn, ...] = ()

    def __len__(self) -> int:
        return len(self.values[0])

    @property
    def pixels(self) -> torch.Tensor:
        """uint8 `[B, 3, H, W]`, of a method without a network, or one that runs its network itself."""
        self._require("pixels")
        return self.values[0]

    @property
    def embeddings(self) -> torch.Tensor:
        """float32 `[B, h, w, D]`, of a method that defines `embed`. Where it gives several, they are
        `values`.
        """
        self._require("embeddings")
        return self.values[0]

    @property
    def feature_maps(self) -> tuple[torch.Tensor, ...]:
        """`[B, C_l, H_l, W_l]`, one per layer, of a method with a network that does not define `embed`."""
        self._require("feature_maps")
        return self.values

    def rows(self, which: slice) -> Seen:
        """Some of the images."""
        values = tuple(value[which] for value in self.values)
        told = {name: getattr(self, name)[which] for name in ("numbers", "sampled", "contents", "turns")}
        return replace(self, values=values, **told)

    def _require(self, name: Sight) -> None:
        if name != self.kind:
            raise TypeError(f"{name}: {_SEES[self.kind]}: seen.{self.kind}")


@dataclass(frozen=True)
class Scores:
    """How anomalous B images are.

    Attributes:
        grids: float32 `[B, h, w]`: upsampled and blurred, they are the anomaly maps.
        images: float32 `[B]`, the images' scores; None: each the largest value of its map.
        objects: which patches of each image are inspected, where that differs from image to image; maps are
            zero elsewhere. None: all, or those of the region.
    """

    grids: torch.Tensor
    images: torch.Tensor | None = None
    objects: ObjectCells | None = None


def no_note(text: str, stays: bool) -> None:
    """For a progress that has no `note`."""


def by_number(position: int) -> str:
    """An image by its place among those given."""
    return f"image {position}"


@dataclass(frozen=True)
class Run:
    """What learning is told.

    Attributes:
        progress: to be called as `Progress` says.
        num_images: how many images there are (some may turn out unreadable).
        sampled: numbers of the images that give the statistics.
        all_scored: whether all of these can be held until they are scored; else of many as memory allows.
        known: fingerprints of images that were learned before, of which none give statistics.
        checkpoint: where training that is interrupted is kept; None: nowhere.
        max_rows: of a memory bank that is extended; None: it may grow.
        note: to be called as `Note` says.
        describe: names the image that stands at a place among those given: its path, where it has one.
    """

    progress: Progress
    num_images: int
    sampled: frozenset[int]
    known: frozenset[int] = frozenset()
    checkpoint: Checkpoint | None = None
    max_rows: int | None = None
    note: Note = no_note
    describe: Callable[[int], str] = by_number
    all_scored: bool = False

    def below(self, name: str) -> Run:
        """For a part of what is learned, with a checkpoint of its own."""
        return self if self.checkpoint is None else replace(self, checkpoint=self.checkpoint.below(name))


@dataclass(frozen=True)
class Fitted:
    """What a part has learned.

    Attributes:
        state: what the part scores by.
        sample: normal images as it scores them without having learned them.
        origin: of the sample.
        warnings: why the sample says little of the threshold, by the kind of reason.
        positions: where the images of the sample stand among those given, in the order in which they were
            added; of a method that learns in one pass they are found for it.
        rose: whether an extension may raise scores after all, against `extending_lowers_scores`.
        odd: scores of images that it has not learned, since they are odd among the others, by their number.
        left_out: those images; of a method that learns in one pass they are found for it.
    """

    state: Any
    sample: NormalSample
    origin: Origin = "leave_one_out"
    warnings: Mapping[str, str] = field(default_factory=dict)
    positions: tuple[int, ...] = ()
    rose: bool = False
    odd: Mapping[int, float] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What a fit settles about images, for all that are read later.

    Attributes:
        geometries: one per part: how images become its frame.
        fingerprints: of all images learned so far.
        bits: used bits of 16-bit files; None where there were none.
        left_out: one per part: images that it has not learned, since they are odd among the others.
    """

    geometries: tuple[Geometry, ...]
    fingerprints: npt.NDArray[np.uint64]
    bits: int | None = None
    left_out: tuple[tuple[LeftOut, ...], ...] = ()

    def of_parts(self, which: slice) -> Reading:
        """For some of the parts."""
        return Reading(self.geometries[which], self.fingerprints, self.bits, self.left_out[which])


class Accumulator(Protocol):
    """Learning under way, in one pass over the images. Nothing of the detector changes before it is whole."""

    def add(self, seen: Seen) -> None:
        """Take in a batch."""

    def finish(self, run: Run) -> Fitted:
        """All images are in."""


class Part(Protocol):
    """What scores images on its own: a method, or a tiled ensemble."""

    batch_size: int

    @property
    def geometry(self) -> Geometry: ...

    @property
    def calibration_(self) -> Calibration: ...

    @property
    def state_(self) -> Any:
        """What was learned."""
        ...

    @property
    def region(self) -> Region | None:
        """What is inspected of photographs, or, of a tile's detector, of tiles; None: all."""
        ...

    def _take_region(self, region: Region | None) -> None:
        """Inspect that from now on; nothing has been learned yet."""
        ...

    @property
    def has_learned(self) -> bool:
        """Whether there is a `state_`; the statistics may still be missing."""
        ...

    @property
    def passes(self) -> Passes: ...

    @property
    def holdout(self) -> float | None:
        """What share of the images it does not train on, which give its statistics; see `holdout.py`."""
        ...

    @property
    def extending_lowers_scores(self) -> bool:
        """Whether no image scores higher than before once more images have been learned."""
        ...

    @property
    def spool_bytes(self) -> int:
        """Of resized images kept in memory for its passes."""
        ...

    @property
    def has_bank(self) -> bool:
        """Whether it has a memory bank, which `max_rows` keeps small."""
        ...

    @property
    def left_out_(self) -> tuple[LeftOut, ...]:
        """Images that the last `fit` has left out, as odd among the others."""
        ...

    def held_bytes(self, seen: Seen, total: int) -> int | None:
        """What may be held of sampled images, of `total` rows like those seen; None: it does not mind."""
        ...

    def check_size(self, size: tuple[int, int], argument: str) -> None:
        """Raise ValueError, naming sizes that do, for images (h, w) that it cannot take."""
        ...

    def _networks(self) -> list[FrozenNetwork]:
        """All that it uses."""
        ...

    def _own_networks(self) -> list[FrozenNetwork]:
        """Those that look at the images themselves."""
        ...

    def _kept_geometries(self) -> Sequence[Geometry]:
        """How images are kept for its passes, where it makes several."""
        ...

    def _start(self, *, extending: bool) -> Accumulator:
        """For "one" pass."""
        ...

    def _learn(self, images: ImageSet, run: Run, *, extending: bool) -> Fitted:
        """For all others: the passes are made here."""
        ...

    def _seen(self, pixels: torch.Tensor, geometry: Geometry, features: Features) -> Seen:
        """What it takes in of images uint8 `[B, 3, h, w]`, which are in `geometry`."""
        ...

    def _result(self, seen: Seen) -> Result: ...

    def _roundings(self, sample: NormalSample) -> tuple[float, float | None]:
        """How far rounding moves scores and maps like those of a sample; None: maps as far as scores."""
        ...


class Tree(Protocol):
    """A detector as learning and scoring see it: its parts, and how their results become one."""

    batch_size: int
    skipped_: list[SkippedImage]
    known_: list[int]

    @property
    def geometry(self) -> Geometry: ...

    @property
    def calibration_(self) -> Calibration: ...

    def _parts(self) -> Sequence[Part]: ...

    def _results(self, seen: Sequence[Seen]) -> list[Result]: ...

    def _combine(self, results: Sequence[Result]) -> Result: ...

    def _check_batch(self, batch: ImageBatch) -> None: ...

    @property
    def bits_(self) -> int | None: ...

    @property
    def _fingerprints(self) -> npt.NDArray[np.uint64]: ...

    def _take(self, states: Sequence[Any], reading: Reading) -> None: ...

    def _accept(self, calibrations: Sequence[Calibration]) -> None: ...

    def _forget_threshold(self) -> None: ...

    def _clone(self) -> Self: ...
