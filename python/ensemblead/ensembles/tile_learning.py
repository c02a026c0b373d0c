"""Fitting one detector per tile location: every location is a view of the images, and an ordinary fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ensemblead.calibration import DEFAULT_RATE, MAX_IMAGES, NormalSample, Origin, set_digest
from ensemblead.common.memory import return_free_memory
from ensemblead.common.warnings import warn
from ensemblead.detectors.detector import Detector
from ensemblead.detectors.learning import learn, nothing_read
from ensemblead.detectors.parts import Fitted, Progress, Result, Run
from ensemblead.detectors.running import open_pool
from ensemblead.ensembles.tile_merging import Edge, TileFrame, TileMerger, TileStatistics, unvaried
from ensemblead.images import AS_IS, Geometry, Images, ImageSet, Tiles, Window

# One member for all locations holds the tiles of sampled images as embeddings until it has its bank: they may
# take this share of the memory budget.
_HELD_SHARE = 1 / 3


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


class TiledLearning:
    """A fit by a plan, or, given what it knows, its extension; location after location."""

    def __init__(self, plan: TilePlan, images: ImageSet, run: Run, known: TiledState | None = None) -> None:
        if not isinstance(images, Images):
            raise TypeError("tiles are cut from images, not from tiles")
        self._plan, self._images, self._known = plan, images, known
        self._run = run
        self._frame = self._frame_of_images() if known is None else known.frame
        self._digest = set_digest(images.positions(), images.sizes, images.fingerprints)
        self._members: list[Detector] = []
        self._samples: list[list[NormalSample]] = []  # per member, per part
        self._scored: tuple[int, ...] = ()  # positions of the images in them, per result
        self._positions: list[int] = []  # of those in the merged sample
        self._origins: set[Origin] = set()
        self._warnings: dict[str, str] = {}
        self._warned: Counter[str] = Counter()  # in how many locations, by kind
        self._sampled_every = 1
        self._rose = False

    def fitted(self) -> Fitted:
        """What all locations have learned."""
        self._check_sizes()
        count = len(self._frame)
        if self._plan.shared:
            windows = [self._frame.window(number) for number in range(count)]
            view = self._view(windows)
            self._learn(view, replace(self._run, sampled=self._thinned(view)), 0)
        else:
            for number in range(count):
                progress = _one_of_many(self._run.progress, number, count)
                run = replace(self._run, progress=progress).below(f"tile{number}")
                self._learn(self._view([self._frame.window(number)]), run, number)
        statistics, sample = self._merged_statistics()
        origin: Origin = "held_out" if "held_out" in self._origins else "leave_one_out"
        state = TiledState(tuple(self._members), self._frame, statistics)
        return Fitted(state, sample, origin, self._all_warnings(), tuple(self._positions), self._rose)

    # Images

    def _frame_of_images(self) -> TileFrame:
        size = self._images.size(self._plan.geometry, 0)
        return self._plan.frame_for(size)

    def _check_sizes(self) -> None:
        positions, geometry = self._images.positions(), self._plan.geometry
        for item, position in enumerate(positions):
            size = self._images.size(geometry, item)
            if size != self._frame.image_size:
                raise ValueError(
                    f"images must all have one size where image_size is None, here {self._frame.image_size}, "
                    f"but {self._images.source.describe(position)} has {size}; image_size=(h, w) resizes them"
                )

    def _view(self, windows: Sequence[Window]) -> Tiles:
        return Tiles(self._images, self._plan.geometry, windows, self._frame.image_size)

    def _thinned(self, view: Tiles) -> frozenset[int]:
        """Of the sampled images so many that the embeddings of their tiles keep to the memory budget."""
        parts = [part for part in self._plan.member._parts() if part.passes == "one"]
        tile, _ = view.read(AS_IS, [0])
        with open_pool(parts, view).batch({AS_IS: tile}) as features:
            seen = [part._seen(tile, AS_IS, features) for part in parts]
        held = sum(value.numel() * value.element_size() for one in seen for value in one.values)
        if not held:
            return self._run.sampled
        images = max(1, int(self._plan.memory_budget * _HELD_SHARE / (held * len(self._frame))))
        self._sampled_every = math.ceil(min(self._run.num_images, MAX_IMAGES) / images)
        return frozenset(sorted(self._run.sampled)[:: self._sampled_every])

    # Locations

    def _learn(self, view: Tiles, run: Run, number: int) -> None:
        source = self._plan.member if self._known is None else self._known.members[number]
        member = source._clone()
        fitted = learn(
            source if self._known is not None else member, view, run, extending=self._known is not None
        )
        member._take([one.state for one in fitted], nothing_read())
        if self._known is None:
            member._accept([one.sample.calibration(DEFAULT_RATE, one.origin, self._digest) for one in fitted])
        else:
            member._accept([part.calibration_ for part in source._parts()])
        for part, one in enumerate(fitted):
            for kind, message in one.warnings.items():
                self._warned[f"{part} {kind}"] += 1
                self._warnings.setdefault(f"{part} {kind}", message)  # the first of its kind stands for all
            self._origins.add(one.origin)
            self._rose = self._rose or one.rose
        self._scored = fitted[0].positions  # the same at all locations
        self._members.append(member)
        self._samples.append([one.sample for one in fitted])
        return_free_memory()

    def _all_warnings(self) -> dict[str, str]:
        if self._plan.shared:
            return self._warnings
        count = len(self._frame)
        return {
            kind: f"{message} (so at {self._warned[kind]} of {count} tile locations)"
            for kind, message in self._warnings.items()
        }

    # Statistics of the merged results

    def _merged_statistics(self) -> tuple[TileStatistics | None, NormalSample]:
        plan, known = self._plan, self._known
        if known is not None or plan.normalization == "none":
            statistics = None if known is None else known.statistics
            return statistics, self._merged(plan.merger(self._frame, statistics))
        if plan.normalization == "tile":
            statistics = self._statistics_of(self._measured())
            return statistics, self._merged(plan.merger(self._frame, statistics))
        raw = self._merged(plan.merger(self._frame, None))
        whole = raw.calibration(DEFAULT_RATE, "leave_one_out", "")
        row = [whole.score_mean, whole.score_std, whole.map_mean, whole.map_std]
        statistics = self._statistics_of(torch.tensor([row], dtype=torch.float64))
        return statistics, raw.standardized(*statistics.values[0].tolist())

    def _statistics_of(self, values: torch.Tensor) -> TileStatistics:
        rounding = self._rounding()
        still = unvaried(values, rounding)
        why, remedy = "there is one alone, or two for PaDiM, or all are alike", "fit on more images"
        if self._num_results() == 1 < self._sampled_every:
            why, remedy = "of which memory_budget lets one be scored", "give a larger memory_budget"
        if still:
            warn(
                f"the {' and '.join(still)} of the tiles do not vary between the training images ({why}), so "
                "there is no deviation to divide by: they stay in the unit that the members give them, after "
                f"extend too; {remedy}"
            )
        return TileStatistics.floored(values, rounding)

    def _rounding(self, statistics: TileStatistics | None = None) -> float:
        """How far rounding moves members' results, or, given the statistics of locations, merged ones."""
        roundings = [member.calibration_.rounding for member in self._members]
        if statistics is None or len(statistics.values) != len(self._frame):
            return max(roundings)
        if self._plan.shared:
            roundings *= len(self._frame)
        least = statistics.values[:, (1, 3)].amin(1).tolist()
        moved = [rounding / deviation for rounding, deviation in zip(roundings, least, strict=True)]
        return float(max(moved))

    def _num_results(self) -> int:
        """Images that are scored without having been learned."""
        found = self._samples[0][0].num_results
        return found // len(self._frame) if self._plan.shared else found

    def _left_out(self, image: int, number: int) -> tuple[Result, bool]:
        """The result of tile `number` of one of these images, and whether the member could do without it."""
        shared = self._plan.shared
        index = image * len(self._frame) + number if shared else image
        samples = self._samples[0 if shared else number]
        member = self._members[0 if shared else number]
        result = member._combine([sample.result(index) for sample in samples])
        return result, any(sample.is_counted(index) for sample in samples)

    def _measured(self) -> torch.Tensor:
        """Statistics of every location, as in `TileStatistics`."""
        rows = []
        for number in range(len(self._frame)):
            moments = []
            for image in range(self._num_results()):
                (score, anomaly_map), _ = self._left_out(image, number)
                values = anomaly_map.double()
                moments.append(torch.stack([score[0].double(), values.mean(), values.var(correction=0)]))
            # A GPU is read once for a location.
            scores, means, variances = torch.stack(moments).cpu().unbind(1)
            spread = (variances + (means - means.mean()).square()).mean().sqrt()
            rows.append(torch.stack([scores.mean(), scores.std(correction=0), means.mean(), spread]))
        return torch.stack(rows)

    def _merged(self, merger: TileMerger) -> NormalSample:
        sample = NormalSample(self._rounding(merger.statistics))
        count = self._num_results()
        positions = self._scored[:: len(merger.frame) if self._plan.shared else 1]
        self._positions = []
        for image in range(count):
            buffer, fair = merger.buffer(1), False
            for number in range(len(merger.frame)):
                result, counted = self._left_out(image, number)
                buffer.put(number, slice(0, 1), result)
                fair = fair or counted
            # An image that no member can do without would show what the members know by heart. Where a single
            # location cannot, it is one where nothing ever varies, and one image's patches stand for all.
            if fair:
                sample.add(*buffer.merge())
                self._positions += positions[image : image + 1]
            return_free_memory()
            self._run.progress("join", image + 1, count)
        return sample


def _one_of_many(progress: Progress, number: int, count: int) -> Progress:
    """Progress in one location as a part of that in all."""
    return lambda stage, done, total: progress(stage, number * total + done, count * total)
