"""The page for authors: what a method defines to become a detector.

A method turns what it sees of images into scores. It knows no files, image formats or ensembles: reading,
passes over the images, thresholds, saving and the membership in ensembles are given. A method defines

- a constructor, whose signature is the one place where its parameters are declared. It begins with
  `super().__init__(locals())`, and keeps every parameter of its own as an attribute of that name;
- `State`, the dataclass of what it learns: tensors, numbers, strings, tuples of them, and dataclasses again;
- `embed`, if it has a network: from the layers' feature maps to embeddings;
- `start`, if one pass over the images is enough, or `train`, if it takes many;
- `scores`.

`@register("Name")` makes it known to saved models, configuration files and the command line.
`ensemblead.check_detector` tests it. examples/mean_colour.py is a whole example, which CONTRIBUTING.md
explains. Read parts.py next: it has the types `Seen`, `Scores`, `Run`, `Fitted` and `Accumulator`.
`TrainingData` is in training/data.py, `NormalSample` in calibration/sample.py. For networks that are trained
docs/design/training.md explains the engine in training/.
"""

from __future__ import annotations

import inspect
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ensemblead.calibration import Calibration, NormalSample
from ensemblead.common.errors import NotExportableError, NotFittedError
from ensemblead.common.validation import whole_number
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.frozen import NETWORK_DEFAULTS, FrozenNetwork
from ensemblead.detectors.holdout import ALL_KNOWN, HOLDOUT, KNOWN, checked_holdout
from ensemblead.detectors.learning import nothing_read
from ensemblead.detectors.left_out import LeftOut
from ensemblead.detectors.parts import (
    Accumulator,
    Features,
    Fitted,
    Passes,
    Reading,
    Result,
    Run,
    Scores,
    Seen,
    Sight,
)
from ensemblead.detectors.regions import inside_seen
from ensemblead.detectors.returned import check_scores, check_state_class, check_trained
from ensemblead.detectors.saving import OF_THE_NETWORK, arguments, plain_arguments, read_method, write_method
from ensemblead.detectors.training.data import TrainingData
from ensemblead.images import Geometry, ImageSet, Region
from ensemblead.images.spool import MEMORY_BYTES
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import SIGMA, MapKind, render_inside
from ensemblead.networks import FeatureExtractor
from ensemblead.networks.layers import MIDDLE_STRIDES
from ensemblead.networks.modes import default_modes
from ensemblead.networks.network import (
    check_device,
    check_precision,
    relative_noise,
    require_finite,
    resolve_device,
    resolve_precision,
)
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Accumulator", "Fitted", "Method", "NormalSample", "Run", "Scores", "Seen", "TrainingData"]


class Method(Detector):
    """A published method as a detector; the page above says what to define.

    Args:
        arguments: `locals()` of the subclass's constructor. Taken from it, checked and kept as attributes are
            the parameters that all methods share: `image_size`, `resize`, `region`, `batch_size`, `seed`,
            `device`, and of methods with a network `backbone`, `layers`, `weights`, `precision`, `compile`,
            `engine`. One that trains all of its networks may take `precision`, one that is trained `holdout`.
    """

    # Where parameters decide it, the constructor sets another one on the detector.
    State: type
    # The standard deviation, in pixels, of the blur that turns grids into maps.
    map_sigma: ClassVar[float] = SIGMA
    # How grids become maps besides, see `render_maps`.
    map_kind: MapKind = "bilinear"
    # Sides of images must be multiples of it.
    side_multiple: ClassVar[int] = 1
    # Whether a method with a network sees pixels all the same, and runs the network itself.
    sees_pixels: ClassVar[bool] = False
    # Whether what it learns is a memory bank, which `extend(max_rows=)` keeps small.
    has_bank: ClassVar[bool] = False
    _moved_by_noise: ClassVar[float] = 2.0  # how far scores move by noise, relative to how far features do
    # Whether scores are divided by statistics of the sample, which it learns too.
    has_scale: bool = False
    # The strides of the layers that `layers="auto"` stands for.
    auto_strides: ClassVar[tuple[int, ...]] = MIDDLE_STRIDES

    region: Region | None = None
    image_size: int | tuple[int, int] | None
    resize: int | tuple[int, int] | str | None
    device: str
    seed: int
    holdout: float = HOLDOUT  # of methods that are trained
    backbone: str | nn.Module
    layers: tuple[str, ...]
    weights: str | os.PathLike[str] | Mapping[str, torch.Tensor] | None
    compile: bool
    _engine = ""  # of a method that lets one run the networks that it has trained

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not abstract and (cls.start is Method.start) == (cls.train is Method.train):
            raise TypeError(f"{cls.__name__} must define either start or train")
        if not abstract:
            check_state_class(cls)

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        given = {
            "image_size": None,
            "resize": None,
            "batch_size": 16,
            "seed": 0,
            "device": "auto",
            **arguments,
        }
        region = Region.of(given.get("region"))
        self._geometry = Geometry(given["resize"], given["image_size"], region=region)  # checks both
        self.region = region
        self.image_size, self.resize = _plain_size(given["image_size"]), _plain_size(given["resize"])
        self.batch_size = whole_number("batch_size", given["batch_size"], 1)
        self.seed = whole_number("seed", given["seed"], 0)
        self.device = check_device(given["device"])
        if "holdout" in given:
            self.holdout = checked_holdout(given["holdout"])
        self._frozen: FrozenNetwork | None = None
        if "backbone" in given:
            if "layers" not in given:
                name = type(self).__name__
                raise TypeError(f"{name}.__init__ takes backbone and must take layers as well")
            shared = {name: given.get(name, default) for name, default in NETWORK_DEFAULTS.items()}
            if "engine" not in given and shared["precision"] == "int8":
                shared["engine"] = "openvino"  # a method without that parameter can be quantized, and loaded
            self._frozen = FrozenNetwork(
                given["backbone"],
                given["layers"],
                device=self.device,
                seed=self.seed,
                strides=self.auto_strides,
                **shared,
            )
            self._geometry = self._frozen.fitting_geometry(self._geometry)
            for name in ("backbone", "layers", "weights", "compile", "pad_to_grid"):
                setattr(self, name, getattr(self._frozen, name))
        else:
            self._precision = check_precision(given.get("precision", "float32"), engine="")
        for name, size in (("image_size", self._geometry.crop), ("resize", self._geometry.resize)):
            if isinstance(size, tuple):
                self.check_size(size, name)
                break
        self._state: Any = None
        self._calibration: Calibration | None = None
        self._reading = nothing_read()
        self._inside: tuple[Any, Inside | None] | None = None

    # For authors

    def embed(self, feature_maps: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Embeddings float32 `[B, h, w, D]` of the layers' feature maps `[B, C_l, H_l, W_l]`, or several."""
        raise NotImplementedError

    def start(self, state: Any = None) -> Accumulator:
        """Learning in one pass. `fit` passes None, `extend` what was learned, which must not be changed."""
        raise NotImplementedError

    def train(self, data: TrainingData, run: Run) -> Any:
        """Learning in many passes; returns the state, detached. Gradients are on, but batches carry none."""
        raise NotImplementedError

    @abstractmethod
    def scores(self, state: Any, seen: Seen) -> Scores:
        """How anomalous images are, by what was learned."""

    def graph(self, state: Any, size: tuple[int, int]) -> nn.Module:
        """The method for images of a size, as a module of standard operators, for export.

        It is called with two lists, in float32 on the CPU: the images `[B, 3, h, w]` in 0..255, if the method
        sees pixels, and the network's feature maps `[B, C_l, H_l, W_l]`, if it sees those. It puts out what
        `Scores` holds: grids, and scores or None. It is traced for batches of any size. Raises
        NotExportableError where there is none.
        """
        raise NotExportableError(f"{type(self).__name__} cannot be exported")

    # For authors, given

    def inside(self, seen: Seen) -> Inside | None:
        """The region in the frame of a batch; None: all is inspected.

        Pixels outside were filled before a method sees them, and of its grids what lies outside counts for
        nothing. One that learns patch by patch learns `inside.take(embeddings)` alone.
        """
        if self.region is None and seen.shown is None:
            return None
        frame = seen.frame  # of a tile, which may be any, it has none
        if frame.region is None:
            frame = replace(frame, region=self.region)
        key = frame, seen.size, seen.shown
        if self._inside is None or self._inside[0] != key:
            self._inside = key, inside_seen(*key)
        return self._inside[1]

    # For users

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments but for the network's: `backbone`, `layers`, `weights`."""
        return {name: value for name, value in plain_arguments(self).items() if name not in OF_THE_NETWORK}

    @property
    def precision(self) -> str:
        """What its networks compute in."""
        return self._precision if self._frozen is None else self._frozen.precision

    @property
    def engine(self) -> str:
        """What runs the frozen network; without one those that are trained, if they can be run by another."""
        engine = self._engine if self._frozen is None else self._frozen.engine
        if not engine:
            raise AttributeError(f"the networks of {type(self).__name__} are torch's alone")
        return engine

    @property
    def is_fitted(self) -> bool:
        self._require_constructed()
        return self._state is not None and self._calibration is not None

    @property
    def has_learned(self) -> bool:
        return self._state is not None

    @property
    def geometry(self) -> Geometry:
        return self._reading.geometries[0] if self._reading.geometries else self._geometry

    @property
    def calibration_(self) -> Calibration:
        if self._calibration is None:
            what = "has no threshold; call calibrate" if self.has_learned else "is not fitted; call fit first"
            raise NotFittedError(f"this {type(self).__name__} {what}")
        return self._calibration

    @property
    def extending_lowers_scores(self) -> bool:
        """Whether no image scores higher than before once more images have been learned."""
        return False

    @property
    def network_(self) -> FeatureExtractor:
        """The frozen network; loaded at the first use."""
        if self._frozen is None:
            raise AttributeError(f"{type(self).__name__} has no network")
        return self._frozen.network.extractor

    @property
    def state_(self) -> Any:
        """What was learned."""
        if self._state is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit first")
        return self._state

    @property
    def learned_(self) -> dict[str, int]:
        """How much was learned, by name; of most methods nothing can be counted."""
        return {}

    # A part of a detector

    def check_size(self, size: tuple[int, int], argument: str) -> None:
        """Raise ValueError, naming sizes that do, for images (h, w) that the method cannot take."""
        step = self.side_multiple
        if any(side % step for side in size):
            below, above = (tuple(max(1, side // step + up) * step for side in size) for up in (0, 1))
            choices = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys((below, above)))
            raise ValueError(
                f"{argument}: {type(self).__name__} needs sides that are multiples of {step}, got "
                f"{size[0]} x {size[1]}; {choices} would do"
            )
        if self._frozen is not None:
            self._frozen.check_size(size, argument)

    spool_bytes: ClassVar[int] = MEMORY_BYTES

    @property
    def passes(self) -> Passes:
        return "one" if type(self).train is Method.train else "held_out"

    def held_bytes(self, seen: Seen, total: int) -> int | None:
        """What may be held of sampled images in `fit`, of `total` rows like those seen; None: any."""
        return None

    def _require_constructed(self) -> None:
        if "_reading" not in vars(self):
            raise TypeError(f"{type(self).__name__}.__init__ must begin with super().__init__(locals())")

    @property
    def _dtype(self) -> torch.dtype:
        """What its networks compute in, frozen or trained; float32 where it has none."""
        if self._frozen is not None:
            return self._frozen.network.dtype
        return resolve_precision(self.precision, resolve_device(self.device))

    def _take_region(self, region: Region | None) -> None:
        if region is not None and "region" not in inspect.signature(type(self)).parameters:
            raise ValueError(f"region: {type(self).__name__} has no such parameter, so it inspects all")
        self.region, self._geometry = region, replace(self._geometry, region=region)

    def _parts(self) -> Sequence[Any]:
        self._require_constructed()
        return [self]

    def _networks(self) -> list[FrozenNetwork]:
        return [] if self._frozen is None else [self._frozen]

    def _own_networks(self) -> list[FrozenNetwork]:
        return [] if self.sees_pixels else self._networks()

    def _combine(self, results: Sequence[Result]) -> Result:
        (result,) = results
        return result

    def _start(self, *, extending: bool) -> Accumulator:
        return self.start(self._state if extending else None)

    def _learn(self, images: ImageSet, run: Run, *, extending: bool) -> Fitted:
        with default_modes():
            data = TrainingData(self, images, run, self.seed)
            with torch.enable_grad():
                state = self.train(data, run)
            check_trained(self, state)
            sample = NormalSample()
            for seen in data.held_out():
                scores = check_scores(self, self.scores(state, seen), seen)
                sample.inside = self.inside(seen)
                sample.add_grids(
                    scores.images, scores.grids, seen.size, sigma=self.map_sigma, kind=self.map_kind
                )
        sample.rounding, _ = self._roundings(sample)
        positions = data.held_out_positions()
        if data.holds_out:
            return Fitted(state, sample, "held_out", {}, positions)
        known = KNOWN if self.holdout else ALL_KNOWN
        return Fitted(state, sample, "trained_on", {"known": known}, positions)

    def _seen(self, pixels: torch.Tensor, geometry: Geometry, features: Features) -> Seen:
        size = (pixels.shape[2], pixels.shape[3])
        self.check_size(size, "images")
        if self._frozen is None or self.sees_pixels:
            device = resolve_device(self.device) if self._frozen is None else self._frozen.network.device
            return Seen((pixels.to(device, non_blocking=True),), size, frame=geometry)
        network = self._frozen.network
        maps = features(network, geometry)
        kind: Sight = "feature_maps"
        values: Any = tuple(maps)
        if type(self).embed is not Method.embed:
            kind, values = "embeddings", self.embed(maps)
        several = values if isinstance(values, tuple) else (values,)
        for one in several:
            require_finite(one, network.extractor)
        padded = self._frozen.padded_size(size)
        return Seen(several, padded, kind=kind, frame=geometry, shown=None if padded == size else size)

    def _result(self, seen: Seen) -> Result:
        scores = check_scores(self, self.scores(self._state, seen), seen)
        inside = self.inside(seen) if scores.objects is None else scores.objects
        largest, maps = render_inside(
            scores.grids, seen.size, inside, sigma=self.map_sigma, kind=self.map_kind
        )
        if seen.shown is not None:
            maps = maps[:, : seen.shown[0], : seen.shown[1]].contiguous()
        return (largest if scores.images is None else scores.images), maps

    def _roundings(self, sample: NormalSample) -> tuple[float, None]:
        if self._calibration is not None and self.passes == "one":
            return self._calibration.rounding, None
        share = self._moved_by_noise * relative_noise(self._dtype, self.precision)  # of now, not of the fit
        return share * sample.largest_score(), None

    def _take(self, states: Sequence[Any], reading: Reading) -> None:
        (self._state,), self._reading = states, reading

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
        twin = type(self)(**arguments(self))
        twin._frozen = self._frozen
        return twin

    # Saving

    def _state_to_save(self) -> Any:
        return self._state

    def _in_half(self, state: Any) -> tuple[Any, Sequence[str]]:
        """A state to save in half precision, and the fields that are rounded to float16; of most none are."""
        return state, ()

    def _state_from_saved(self, saved: Any) -> Any:
        return saved

    @classmethod
    def _state_from_format1(cls, reader: FolderReader) -> Any:
        """What a model of format 1 has learned, as a `State`; methods that came later have none."""
        raise ValueError(f"{cls.__name__} has no models of format 1")

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        return write_method(self, writer)

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        method: Self = read_method(cls, reader)
        return method


def _plain_size(size: Any) -> Any:
    """A size that `Geometry` has taken, in Python's own ints, which JSON knows."""
    if size is None or size == "auto":
        return size
    return tuple(int(side) for side in size) if isinstance(size, (tuple, list)) else int(size)
