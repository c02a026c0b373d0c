"""Ensembles over backbones: several detectors over the same images, decoded once, fused to one result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.calibration import Calibration
from ensemblead.common.errors import DamagedModelError
from ensemblead.common.files import StrPath
from ensemblead.common.predictions import Predictions
from ensemblead.common.validation import finite_number
from ensemblead.config.presets import PRESETS
from ensemblead.config.registry import register
from ensemblead.detectors.detector import Detector, Errors
from ensemblead.detectors.frozen import FrozenNetwork, per_member
from ensemblead.detectors.left_out import LeftOut, joined
from ensemblead.detectors.parts import Part, Progress, Reading, Result, Seen
from ensemblead.detectors.patchcore import PatchCore
from ensemblead.detectors.patchcore.defects import Paths, learn_defects
from ensemblead.detectors.provenance import history_document, read_history
from ensemblead.detectors.regions import common_region, give_region, inside_of
from ensemblead.detectors.running import scored_batches
from ensemblead.detectors.saving import statistics_summary
from ensemblead.ensembles.fusion import (
    check_weights,
    combine_calibrations,
    fuse_maps,
    fuse_minmax,
    fuse_scores,
)
from ensemblead.ensembles.member_units import fit_members
from ensemblead.ensembles.tiles import TiledEnsemble, score_together
from ensemblead.ensembles.units import job_of
from ensemblead.images import Geometry, ImageBatch, Region, RegionLike
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import resize_maps
from ensemblead.networks.transfer import HostCopy
from ensemblead.store import FolderReader, FolderWriter

if TYPE_CHECKING:
    from typing_extensions import Self

# How far the members' fields of view may lie apart, as a share of the image's side: 224 of 256 and 320 of 366
# differ by less than a thousandth.
_FRAME_TOLERANCE = 0.01


@register("BackboneEnsemble")
class BackboneEnsemble(Detector):
    """Detectors over one image, fused.

    Every image is decoded once per run however many members there are, and members of the same network and
    preprocessing share one forward pass. Members may be unfitted (`fit` fits all of them, together) or
    fitted, even at different times: then the ensemble is ready at once.

    Maps come in the frame of the first member; those of others are resized to it (bilinear). The members must
    look at the same part of an image.

    Args:
        members: detectors; ensembles too. The ensemble works on them, not on copies.
        fusion: "calibrated" (default): the weighted mean of members' scores and maps, each less its mean and
            divided by its standard deviation over normal images. "mean": of the values as they are. "max":
            the largest calibrated value. "rank": the weighted mean of the ranks among normal images.
            "minmax", the reference implementation's, scales over the set that is evaluated: only
            `predict_set` (and `ead.evaluate`) can do it.
        weights: one per member; only their ratios matter.
        region: what is inspected of photographs, as `PatchCore` takes it: given to all members, which must
            not have another one. Members with a region must all have the same. The fused map is zero outside.

    Example:
        >>> import numpy as np
        >>> import ensemblead as ead
        >>> images = np.random.default_rng(0).integers(90, 110, (13, 64, 64, 3), dtype=np.uint8)
        >>> images[12, 20:40, 20:40] = 200
        >>> common = {"resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}
        >>> members = [ead.PatchCore("gabor", (layer,), **common) for layer in ("layer1", "layer2")]
        >>> ensemble = ead.BackboneEnsemble(members).fit(images[:12])
        >>> ensemble.predict(images[12:]).is_anomalous
        array([ True])
    """

    def __init__(
        self,
        members: Sequence[Detector],
        *,
        fusion: str = "calibrated",
        weights: Sequence[float] | None = None,
        region: RegionLike = None,
    ) -> None:
        self.fusion = fusion
        members = list(members)
        if not members:
            raise ValueError("members must not be empty")
        for i, member in enumerate(members):
            if not isinstance(member, Detector):
                raise TypeError(f"members[{i}] must be a detector, got {type(member).__name__}")
        parts = [part for member in members for part in member._parts()]
        if len({id(part) for part in parts}) < len(parts):
            raise ValueError("members must be different objects, but one appears twice")
        for i, member in enumerate(members):
            if isinstance(member, BackboneEnsemble) and member.fusion == "minmax":
                raise ValueError(f"members[{i}] fuses by 'minmax', which gives single images no score")
        known = Region.of(region)
        if known is not None:
            give_region(parts, known)
        if common_region(parts, "members") is not None and fusion == "minmax":
            raise ValueError("region: fusion='minmax' scales over all pixels of a set; use 'calibrated'")
        self.members = members
        self.weights = check_weights(weights, len(members), fusion)
        self.batch_size = min(member.batch_size for member in members)
        self._given: float | None = None  # a threshold of the user's
        # The fused statistics, and what they were made of.
        self._known: tuple[tuple[Any, ...], list[Calibration], Calibration] | None = None

    @classmethod
    def patchcore_large(
        cls,
        *,
        weights: Sequence[Any] | None = None,
        fusion: str = "calibrated",
        **changes: Any,
    ) -> Self:
        """The PatchCore ensemble of three large backbones at 320 pixels, unfitted: the preset
        `patchcore-large`.

        WideResNet101 and ResNeXt101 (layer2, layer3) and DenseNet201 (denseblock2, denseblock3); images are
        resized to 366 and cropped to 320, embeddings have 384 dimensions, the coreset keeps 1 %.

        Args:
            weights: of the three networks, in that order, as `PatchCore` takes them; None is "default" for
                each, the published ones.
            fusion: see the class.
            **changes: arguments of `PatchCore` to set for all members, such as `device` or `batch_size`.
        """
        described = PRESETS["patchcore-large"]["members"]
        given = ["default"] * len(described) if weights is None else list(weights)
        if len(given) != len(described):
            raise ValueError(f"weights must be one per backbone ({len(described)}), got {len(given)}")
        members = []
        for one, source in zip(described, given, strict=True):
            arguments = {name: value for name, value in one.items() if name != "type"}
            members.append(PatchCore(**{**arguments, "weights": source, **changes}))
        return cls(members, fusion=fusion)

    mission = patchcore_large  # its former name

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
        """As `Detector.fit`: all members together in this process, or each apart on workers of an executor.

        Args:
            images, errors, progress, checkpoint: see `Detector.fit`. With `executor`, images are files that
                all workers see under the same paths.
            executor: a `concurrent.futures.Executor`: `ead.Executors.processes(n)` or `.gpus()`, Dask's
                `client.get_executor()`, mpi4py's or loky's.
            workdir: with `executor`, a folder on a path that all workers share. A member that is done is kept
                there, under a key of all that it depends on, and the same call finds it again.
            retries: with `executor`, how often a member that fails is tried again.

        At equal numbers of threads, and on equal machines, an executor comes to the same bits.

        Raises PartialFitError where the executor broke or a member failed to the end: call again to resume.
        TypeError for members that plain values cannot describe (modules, state dicts), and ValueError for
        members that are fitted, images that are no files, a forked pool, or an image that a worker cannot
        see or that changes meanwhile.
        """
        job = job_of(images, errors, progress, checkpoint, executor, workdir, retries)
        if job is None:
            return super().fit(images, errors=errors, progress=progress, checkpoint=checkpoint)
        fit_members(self, self.members, job)
        return self

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments but for `members`."""
        return {"fusion": self.fusion, "weights": None if self.fusion == "max" else self.weights}

    @property
    def region(self) -> Region | None:
        return self._parts()[0].region

    @property
    def is_fitted(self) -> bool:
        return all(member.is_fitted for member in self.members)

    @property
    def geometry(self) -> Geometry:
        return self.members[0].geometry

    @property
    def calibration_(self) -> Calibration:
        """The fused statistics. Of members fitted apart they are an estimate (see `combine_calibrations`)."""
        calibrations = [member.calibration_ for member in self.members]
        how, known = (self.fusion, tuple(self.weights), self._given), self._known
        same = known is not None and known[0] == how and len(known[1]) == len(calibrations)
        if known is None or not same or any(a is not b for a, b in zip(known[1], calibrations, strict=True)):
            # "minmax" has no scale of its own: is_anomalous is then what "calibrated" says.
            fusion = "calibrated" if self.fusion == "minmax" else self.fusion
            fused = combine_calibrations(fusion, calibrations, self.weights)
            if self._given is not None:
                fused = replace(fused, given=self._given)
            known = self._known = (how, calibrations, fused)
        return known[2]

    def predict_set(
        self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None
    ) -> Predictions:
        """Predictions for a set of images whose scores may depend on each other: with fusion="minmax", every
        member's scores and maps are scaled over this set. All members' maps are held at once.

        `is_anomalous` comes from calibrated fusion, which alone has a threshold. With other fusions this is
        `predict`.
        """
        if self.fusion != "minmax":
            return self.predict(images, errors=errors, progress=progress)
        self._require_fitted("predict")
        scores: list[list[npt.NDArray[np.float32]]] = [[] for _ in self.members]
        maps: list[list[npt.NDArray[np.float32]]] = [[] for _ in self.members]
        paths: list[str | None] = []
        sizes: list[tuple[int, int]] = []
        anomalous = []
        calibrations = [member.calibration_ for member in self.members]
        for batch, seen in scored_batches(self, images, errors, progress, "predict"):
            paths += batch.paths
            sizes += batch.sizes
            per_member = self._member_results(seen)
            # Without statistics there is no threshold, and no score is above it.
            fusion = "calibrated" if self.calibration_.has_statistics else "mean"
            fused = fuse_scores(fusion, [s for s, _ in per_member], calibrations, self.weights)
            above, *arrays = HostCopy(
                [self.calibration_.is_anomalous(fused), *(tensor for pair in per_member for tensor in pair)]
            ).wait()
            anomalous.append(above)
            for i in range(len(self.members)):
                scores[i].append(arrays[2 * i])
                maps[i].append(arrays[2 * i + 1])
        return Predictions(
            fuse_minmax([np.concatenate(parts) for parts in scores], self.weights),
            fuse_minmax([np.concatenate(parts) for parts in maps], self.weights),
            np.concatenate(anomalous),
            paths,
            sizes=sizes,
            geometry=self.geometry,
        )

    def learn_defects(self, images: Paths, masks: Paths = None) -> BackboneEnsemble:
        """Have every `PatchCore` among the members learn known defects, as `PatchCore.learn_defects` does;
        others stay as they are. Raises ValueError where there is none.
        """
        members = [part for part in self._parts() if isinstance(part, PatchCore)]
        if not members:
            raise ValueError("learn_defects: no member is a PatchCore, which alone learns known defects")
        learn_defects(self, members, images, masks)
        return self

    def predict_members(
        self, images: Any, *, errors: Errors = "raise", progress: Progress | None = None
    ) -> Iterator[list[Predictions]]:
        """Every member's own predictions, batch by batch, with maps in its frame."""
        self._require_fitted("predict")
        return self._predict_members(images, errors, progress)

    def _predict_members(
        self, images: Any, errors: Errors, progress: Progress | None
    ) -> Iterator[list[Predictions]]:
        calibrations = [member.calibration_ for member in self.members]
        for batch, seen in scored_batches(self, images, errors, progress, "predict"):
            results = zip(self._member_results(seen), calibrations, strict=True)
            tensors = [(scores, maps, own.is_anomalous(scores)) for (scores, maps), own in results]
            arrays = HostCopy([tensor for triple in tensors for tensor in triple]).wait()
            triples = zip(arrays[::3], arrays[1::3], arrays[2::3], strict=True)
            yield [Predictions(scores, maps, called, batch.paths) for scores, maps, called in triples]

    def _parts(self) -> Sequence[Part]:
        return [part for member in self.members for part in member._parts()]

    def _networks(self) -> list[FrozenNetwork]:
        return [network for member in self.members for network in member._networks()]

    def _spans(self) -> list[slice]:
        """Which of the parts belong to each member."""
        spans, start = [], 0
        for member in self.members:
            count = len(member._parts())
            spans.append(slice(start, start + count))
            start += count
        return spans

    def _results(self, seen: Sequence[Seen]) -> list[Result]:
        parts, groups = self._parts(), dict[Any, list[TiledEnsemble]]()
        for part in parts:
            if isinstance(part, TiledEnsemble):
                groups.setdefault(part.tiling(), []).append(part)
        known: dict[int, Result] = {}
        for part, own in zip(parts, seen, strict=True):
            if id(part) in known:
                continue
            if isinstance(part, TiledEnsemble):
                group = groups[part.tiling()]
                known |= zip(map(id, group), score_together(group, own), strict=True)
            else:
                known[id(part)] = part._result(own)
        return [known[id(part)] for part in parts]

    def _combine_members(self, results: Sequence[Result]) -> list[Result]:
        """Every member's scores, and its maps in the ensemble's frame, on the first member's device."""
        spans = zip(self.members, self._spans(), strict=True)
        combined = [member._combine(results[span]) for member, span in spans]
        height, width = combined[0][1].shape[1:]
        device = combined[0][0].device
        placed = [
            (s.to(device), resize_maps(m.to(device), (height, width))) for s, m in self._spread(combined)
        ]
        inside = self._inside(self.members[0])
        return placed if inside is None else [(scores, inside.blank(maps)) for scores, maps in placed]

    def _inside(self, member: Detector) -> Inside | None:
        return None if self.region is None else inside_of(member._parts()[0].geometry)

    def _spread(self, results: Sequence[Result]) -> list[Result]:
        """Members' results, of which resizing would mix what lies inside of a region with zeros outside."""
        regions = [self._inside(member) for member in self.members]
        pairs = zip(results, regions, strict=True)
        return [(s, m) if inside is None else (s, inside.spread(m)) for (s, m), inside in pairs]

    def _member_results(self, seen: Sequence[Seen]) -> list[Result]:
        return self._combine_members(self._results(seen))

    def _combine(self, results: Sequence[Result]) -> Result:
        combined = self._combine_members(results)
        calibrations = [member.calibration_ for member in self.members]
        scores = fuse_scores(self.fusion, [s for s, _ in combined], calibrations, self.weights)
        maps = fuse_maps(self.fusion, [m for _, m in combined], calibrations, self.weights)
        if any(getattr(part, "foreground_", None) is not None for part in self._parts()):
            # A member's map is zero where it inspects nothing; where none does, so is the fused one.
            seen = torch.stack([m for _, m in combined]).ne(0).any(0)
            maps = maps.where(seen, maps.new_zeros(()))
        inside = self._inside(self.members[0])
        return scores, maps if inside is None else inside.blank(maps)

    def _take(self, states: Sequence[Any], reading: Reading) -> None:
        for member, span in zip(self.members, self._spans(), strict=True):
            member._take(states[span], reading.of_parts(span))

    def _accept(self, calibrations: Sequence[Calibration]) -> None:
        for member, span in zip(self.members, self._spans(), strict=True):
            member._accept(calibrations[span])

    def _set_threshold(self, value: float) -> None:
        self._require_fitted("set a threshold")
        self._given = value

    def _forget_threshold(self) -> None:
        self._given = None
        for member in self.members:
            member._forget_threshold()

    @property
    def bits_(self) -> int | None:
        return next((member.bits_ for member in self.members if member.bits_ is not None), None)

    @property
    def left_out_(self) -> tuple[LeftOut, ...]:
        return joined([member.left_out_ for member in self.members])

    @property
    def _fingerprints(self) -> npt.NDArray[np.uint64]:
        return np.unique(np.concatenate([member._fingerprints for member in self.members]))

    def _clone(self) -> Self:
        twins = [member._clone() for member in self.members]
        return type(self)(twins, **self.parameters())

    def _require_single_image_scores(self) -> None:
        if self.fusion == "minmax":
            raise ValueError(
                "fusion='minmax' scales over an evaluated set and gives single images no score: use "
                "ead.evaluate or predict_set, or fusion='calibrated'"
            )

    def _check_batch(self, batch: ImageBatch) -> None:
        parts = self._parts()
        for size, path in dict(zip(batch.sizes, batch.paths, strict=True)).items():
            first = parts[0].geometry.crop_box(*size)
            for i, part in enumerate(parts[1:], 1):
                box = part.geometry.crop_box(*size)
                apart = np.abs(np.subtract(box, first)) / (size * 2)
                if apart.max() > _FRAME_TOLERANCE:
                    what = path or f"an image of size {size}"
                    raise ValueError(
                        f"members must look at the same part of an image, but of {what} member 0 sees "
                        f"{_box(first)} and member {i} {_box(box)} (top, left, bottom, right): give them the "
                        "same ratio of image_size to resize"
                    )

    def to_store(self, writer: FolderWriter) -> dict[str, Any]:
        """For `store.save`."""
        for i, member in enumerate(self.members):
            writer.child(f"member{i}", member)
        weights = None if self.fusion == "max" else list(self.weights)
        return {
            "fusion": self.fusion,
            "weights": weights,
            "members": len(self.members),
            "threshold": self._given,
            "summary": statistics_summary(self.calibration_),
            **history_document(self),
        }

    @classmethod
    def from_store(cls, reader: FolderReader) -> Self:
        """For `store.load`; there, `weights` and `backbone` are one per member (None: as stored)."""
        count = reader.state["members"]
        # Before room is made for so many.
        held = type(count) is int and reader.has(f"member{count - 1}") and not reader.has(f"member{count}")
        if not held:
            raise DamagedModelError(f"{reader.folder} states {count} members, but holds others")
        given = {name: per_member(name, reader.options.get(name), count) for name in ("weights", "backbone")}
        members = [
            reader.child(f"member{i}", **{name: values[i] for name, values in given.items()})
            for i in range(count)
        ]
        with reader.as_damage():
            ensemble = cls(members, fusion=reader.state["fusion"], weights=reader.state["weights"])
            threshold = reader.state.get("threshold")
            ensemble._given = None if threshold is None else finite_number("threshold", threshold)
        read_history(ensemble, reader)
        return ensemble


def _box(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{side:.1f}" for side in box) + ")"
