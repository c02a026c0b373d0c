"""What all locations of a tiled ensemble have learned, joined: one state, and statistics of whole images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from ensemblead.calibration import DEFAULT_RATE, NormalSample, weakest
from ensemblead.common.memory import return_free_memory
from ensemblead.common.warnings import warn
from ensemblead.detectors.left_out import joined
from ensemblead.detectors.parts import Fitted, Progress, Result
from ensemblead.detectors.regions import inside_of
from ensemblead.ensembles.tile_merging import TileMerger, TileStatistics, unvaried
from ensemblead.ensembles.tile_plan import Location, TiledState, TilePlan
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.kernels.inside import Inside


class TileJoin:
    """Locations in the order of their tiles' numbers, or one per scale if they share a detector. `known`: of
    an extension, what the ensemble knew; `sampled_every`: a shared detector is scored on one of so many
    images.
    """

    def __init__(
        self,
        plan: TilePlan,
        frame: TilePyramid,
        locations: Sequence[Location],
        progress: Progress,
        *,
        known: TiledState | None = None,
        sampled_every: int = 1,
    ) -> None:
        self._plan, self._frame, self._known = plan, frame, known
        self._locations, self._progress, self._sampled_every = locations, progress, sampled_every
        self._members = [one.member for one in locations]
        self._samples = [one.samples for one in locations]
        self._groups = frame.groups(plan.shared)
        # By the number of a tile: which location has it, and its place among that location's tiles.
        self._places = {
            number: (location, place)
            for location, group in enumerate(self._groups)
            for place, number in enumerate(group)
        }
        self._positions: list[int] = []  # of the images in the merged sample

    def fitted(self) -> Fitted:
        """What the ensemble has learned."""
        statistics, sample = self._merged_statistics()
        origin = weakest(origin for one in self._locations for origin in one.origins)
        state = TiledState(tuple(self._members), self._frame, statistics)
        rose = any(one.rose for one in self._locations)
        found = [one.left_out for one in self._locations]
        left_out = found[0] if len(found) == 1 and self._plan.shared else joined(found)
        warnings, positions = self._warnings(), tuple(self._positions)
        return Fitted(state, sample, origin, warnings, positions, rose, left_out=left_out)

    def _warnings(self) -> dict[str, str]:
        """Of all locations; the first of its kind stands for all."""
        counts = Counter(kind for one in self._locations for kind in one.warnings)
        first: dict[str, str] = {}
        for one in self._locations:
            for kind, message in one.warnings.items():
                first.setdefault(kind, message)
        total = len(self._groups)
        if self._plan.shared and total == 1:
            return first
        what = "scales" if self._plan.shared else "tile locations"
        return {
            kind: f"{message} (so at {counts[kind]} of {total} {what})" for kind, message in first.items()
        }

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
        roundings = self._roundings()
        still = unvaried(values, roundings)
        why, remedy = "there is one alone, or two for PaDiM, or all are alike", "fit on more images"
        if self._num_results() == 1 < self._sampled_every:
            why, remedy = "of which memory_budget lets one be scored", "give a larger memory_budget"
        elif self._num_results() == 1 and "held_out" in self._locations[0].origins:
            why, remedy = "of which one is held out", f"{remedy}, or give a larger holdout"
        if still:
            warn(
                f"the {' and '.join(still)} of the tiles do not vary between the training images ({why}), so "
                "there is no deviation to divide by: they stay in the unit that the members give them, after "
                f"extend too; {remedy}"
            )
        return TileStatistics.floored(values, roundings)

    def _roundings(self, statistics: TileStatistics | None = None) -> tuple[float, float]:
        """How far rounding moves scores and maps of members, or, given the statistics of locations, merged
        ones.
        """
        known = [self._members[self._places[number][0]].calibration_ for number in self._frame.numbers]
        moved = torch.tensor([(one.rounding, one.rounding_of_maps) for one in known], dtype=torch.float64)
        if statistics is not None and len(statistics.values) == len(known):
            moved /= statistics.values[:, (1, 3)]
        scores, maps = moved.amax(0).tolist()
        return scores, maps

    def _num_results(self) -> int:
        """Images that are scored without having been learned."""
        return self._samples[0][0].num_results // len(self._groups[0])

    def _sample_of(self, image: int, number: int) -> tuple[int, int]:
        """The location of tile `number`, and where one of these images' tile stands in its samples."""
        location, place = self._places[number]
        return location, image * len(self._groups[location]) + place

    def _left_out(self, image: int, number: int) -> tuple[Result, bool]:
        """The result of tile `number` of one of these images, and whether the member could do without it."""
        location, index = self._sample_of(image, number)
        samples, member = self._samples[location], self._members[location]
        result = member._combine([sample.result(index) for sample in samples])
        return result, any(sample.is_counted(index) for sample in samples)

    def _inside(self, number: int) -> Inside | None:
        """The region in tile `number`; None where all of the tile is inspected."""
        part = self._members[self._places[number][0]]._parts()[0]
        return None if part.region is None else inside_of(part.geometry)

    def _is_odd(self, image: int, number: int) -> bool:
        """Whether tile `number` of one of these images was left out of the fit, by a part of the member."""
        location, index = self._sample_of(image, number)
        return any(sample.is_left_out(index) for sample in self._samples[location])

    def _measured(self) -> torch.Tensor:
        """Statistics of every location, as in `TileStatistics`."""
        rows = []
        for number in self._frame.numbers:
            moments, inside = [], self._inside(number)
            for image in range(self._num_results()):
                if self._is_odd(image, number):
                    continue
                (score, anomaly_map), _ = self._left_out(image, number)
                values = anomaly_map.double() if inside is None else inside.take(anomaly_map).double()
                moments.append(torch.stack([score[0].double(), values.mean(), values.var(correction=0)]))
            # A GPU is read once for a location.
            scores, means, variances = torch.stack(moments).cpu().unbind(1)
            spread = (variances + (means - means.mean()).square()).mean().sqrt()
            rows.append(torch.stack([scores.mean(), scores.std(correction=0), means.mean(), spread]))
        return torch.stack(rows)

    def _merged(self, merger: TileMerger) -> NormalSample:
        scores, maps = self._roundings(merger.statistics)
        sample = NormalSample(scores, merger.inside, maps)
        count = self._num_results()
        positions = self._locations[0].positions[:: len(self._groups[0])]
        self._positions = []
        for image in range(count):
            if any(self._is_odd(image, number) for number in merger.frame.numbers):
                self._progress("join", image + 1, count)
                continue
            buffer, fair = merger.buffer(1), False
            for number in merger.frame.numbers:
                result, counted = self._left_out(image, number)
                buffer.put(number, slice(0, 1), result)
                fair = fair or counted
            # An image that no member can do without would show what the members know by heart. Where a single
            # location cannot, it is one where nothing ever varies, and one image's patches stand for all.
            if fair:
                sample.add(*buffer.merge())
                self._positions += positions[image : image + 1]
            return_free_memory()
            self._progress("join", image + 1, count)
        if not self._positions and any(one.left_out for one in self._locations):
            raise ValueError(
                "contamination: every image was left out at one of the tile locations, so that none gives "
                "the threshold of the whole; give more images, or contamination=None"
            )
        return sample
