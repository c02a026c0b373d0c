"""Fitting one detector per tile location, as many locations at a time as memory allows."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ensemblead.calibration.statistics import DEFAULT_RATE, MAX_IMAGES, ImageDigest, NormalSample
from ensemblead.common.memory import return_free_memory
from ensemblead.common.warnings import warn
from ensemblead.detectors.base import Detector, Embedded, Fitting, Progress, Result
from ensemblead.ensembles.tile_frame import Joiner, TileFrame, Units, unvaried
from ensemblead.images import replay

if TYPE_CHECKING:
    from ensemblead.ensembles.tiles import TiledEnsemble

# One member for all locations holds the tiles of sampled images as embeddings until it has its bank: they may
# take this share of the memory budget.
_HELD_SHARE = 1 / 3
# Where several passes are needed, this share is for resized images that need not be decoded again.
_REPLAY_SHARE = 1 / 4


@dataclass(frozen=True)
class _Tile:
    pixels: torch.Tensor  # uint8 [3, h, w]
    place: int
    number: int  # of its image
    sampled: bool


class TiledFitting(Fitting):
    """A fit of `ensemble`, or, given its `members`, their extension.

    The first tile of the first image is embedded alone and tells what a location's embeddings take. The
    locations are then fitted in groups, a pass over the images for each.
    """

    def __init__(self, ensemble: TiledEnsemble, members: Sequence[Detector] = ()) -> None:
        super().__init__()
        self._ensemble = ensemble
        self._shared = ensemble.shared
        self._extending = bool(members)
        self._members = list(members)
        self._frame = ensemble._frame if members else None
        self._units = ensemble._units if members else None
        self._num_images = 0
        self._places = range(0)  # the locations of this pass
        self._group_size = 0
        self._num_sampled, self._sampled_every = 0, 1
        self._waiting: list[_Tile] = []  # cut, but not embedded yet
        self._parts: dict[int, Fitting] = {}  # under way, by location
        self._finished: list[Fitting] = []
        self._samples: list[list[NormalSample]] = []  # per member, per leaf
        self._digest = ImageDigest()
        self._doubted: Counter[str] = Counter()  # in how many locations, by kind

    def expect(self, num_images: int) -> None:
        self._num_images = num_images

    def passes_left(self) -> list[int]:
        if not self._places:
            return [0]
        return [math.ceil((len(self._known_frame()) - self._places.stop) / self._group_size)]

    def replay_bytes(self) -> int:
        return min(replay.REPLAY_BYTES, int(self._ensemble.memory_budget * _REPLAY_SHARE))

    def end_pass(self, progress: Progress | None) -> None:
        self._finish_group(progress)
        start = self._places.stop
        self._places = range(start, min(start + self._group_size, len(self._known_frame())))
        for place in self._places:
            self._open(place)

    def _known_frame(self) -> TileFrame:
        assert self._frame is not None
        return self._frame

    # Tiles in

    def observe(self, embedded: Embedded, numbers: Sequence[int], sampled: Sequence[bool]) -> None:
        (images,), (size,) = embedded.parts, embedded.sizes
        if self._frame is None:
            self._frame = self._ensemble._frame_for(size)
        if size != self._frame.image_size:
            raise ValueError(
                f"images must all have one size where image_size is None, here {self._frame.image_size}, but "
                f"image {numbers[0]} has {size}; image_size=(h, w) resizes them"
            )
        for pixels, number, chosen in zip(images, numbers, sampled, strict=True):
            first = not self._places
            if self._places.start == 0:
                look = zlib.crc32(pixels[:, ::7, ::7].contiguous().numpy().tobytes())
                self._digest.add(number, size, look)
            taken = chosen and self._num_sampled % self._sampled_every == 0
            self._num_sampled += chosen
            if first:
                self._begin(pixels, number, taken)
            for place in self._places[1:] if first else self._places:
                self._wait(pixels, place, number, taken)

    def _begin(self, pixels: torch.Tensor, number: int, sampled: bool) -> None:
        """The first tile of the first image, and from it the size of a group."""
        ensemble, count = self._ensemble, len(self._known_frame())
        self._places = range(1)
        self._open(0)
        self._wait(pixels, 0, number, sampled)
        embedded = self._embed_waiting()
        if self._shared:
            self._group_size = count
            held = sum(part[:1].numel() * part.element_size() for part in embedded.parts)
            images = max(1, int(ensemble.memory_budget * _HELD_SHARE / (held * count)))
            self._sampled_every = math.ceil(min(self._num_images, MAX_IMAGES) / images)
        else:
            cost = max(1, self._parts[0].footprint(embedded, self._num_images))
            passes = math.ceil(count / max(1, ensemble.memory_budget // cost))
            if passes > 1:
                budget = ensemble.memory_budget - self.replay_bytes()
                passes = math.ceil(count / max(1, budget // cost))
            self._group_size = math.ceil(count / passes)
            for place in range(1, self._group_size):
                self._open(place)
        self._places = range(self._group_size)

    def _open(self, place: int) -> None:
        if self._extending:
            part = self._members[place]._begin_extension()
        else:
            self._members.append(self._ensemble.member._clone())
            part = self._members[place]._begin_fit()
        part.expect(self._num_images)
        self._parts[place] = part

    def _wait(self, pixels: torch.Tensor, place: int, number: int, sampled: bool) -> None:
        if len(self._waiting) >= self._ensemble.member.batch_size:
            self._embed_waiting()
        self._waiting.append(_Tile(self._known_frame().cut(pixels, place), place, number, sampled))

    def _embed_waiting(self) -> Embedded:
        tiles, self._waiting = self._waiting, []
        if not self._shared:
            # Stable: the tiles of a location stay in the order of their images.
            tiles.sort(key=lambda tile: tile.place)
        embedded = self._ensemble._tile_network().embed(torch.stack([tile.pixels for tile in tiles]))
        done = 0
        for place, run in groupby(tiles, key=lambda tile: 0 if self._shared else tile.place):
            own = list(run)
            which = slice(done, done + len(own))
            # Tiles of one image are left out together: what they overlap in is the same.
            numbers, sampled = [tile.number for tile in own], [tile.sampled for tile in own]
            self._parts[place].observe(embedded.images(which), numbers, sampled)
            done += len(own)
        return embedded

    # Members out

    def _finish_group(self, progress: Progress | None) -> None:
        if self._waiting:
            self._embed_waiting()
        while self._parts:
            place = next(iter(self._parts))
            part = self._parts.pop(place)
            samples = part.finish(self._told(progress, place))
            self._doubted.update(part.doubts.keys())
            self.doubts = part.doubts | self.doubts  # the first of its kind stands for all
            if self._extending:
                self._finished.append(part)
            else:
                part.commit()
                images = self._digest.hexdigest()
                calibrations = [sample.calibration(DEFAULT_RATE, False, images) for sample in samples]
                self._members[place]._accept(calibrations)
            self._samples.append(samples)
            del part
            return_free_memory()

    def _told(self, progress: Progress | None, place: int) -> Progress | None:
        """Progress in one location as a part of that in all."""
        if progress is None:
            return None
        tell, count = progress, 1 if self._shared else len(self._known_frame())
        return lambda stage, done, total: tell(stage, place * total + done, count * total)

    def finish(self, progress: Progress | None) -> list[NormalSample]:
        self._finish_group(progress)
        if not self._shared:
            count = len(self._known_frame())
            for kind, doubt in self.doubts.items():
                self.doubts[kind] = f"{doubt} (so at {self._doubted[kind]} of {count} tile locations)"
        joiner = self._ensemble._joiner(self._known_frame(), self._units)
        if self._extending or joiner.normalization == "none":
            return [self._joined(joiner, progress)]
        if joiner.normalization == "tile":
            self._units = self._units_of(self._measure())
            return [self._joined(self._ensemble._joiner(joiner.frame, self._units), progress)]
        raw = self._joined(joiner, progress)
        said = raw.calibration(DEFAULT_RATE, False, "")
        row = [said.score_mean, said.score_std, said.map_mean, said.map_std]
        self._units = self._units_of(torch.tensor([row], dtype=torch.float64))
        return [raw.standardized(*self._units.values[0].tolist())]

    def _units_of(self, statistics: torch.Tensor) -> Units:
        still = unvaried(statistics, self._ensemble._rounding)
        why, remedy = "there is one alone, or two for PaDiM, or all are alike", "fit on more images"
        if self._num_results() == 1 < self._sampled_every:
            why, remedy = "of which memory_budget lets one be scored", "give a larger memory_budget"
        if still:
            warn(
                f"the {' and '.join(still)} of the tiles do not vary between the training images ({why}), so "
                "there is no deviation to divide by: they stay in the unit that the members give them, after "
                f"extend too; {remedy}"
            )
        return Units.floored(statistics, self._ensemble._rounding)

    def commit(self) -> None:
        for part in self._finished:
            part.commit()
        ensemble = self._ensemble
        ensemble._members, ensemble._frame, ensemble._units = self._members, self._frame, self._units
        ensemble._tiles = None

    # What the sampled images score without themselves

    def _num_results(self) -> int:
        found = self._samples[0][0].num_results
        return found // len(self._known_frame()) if self._shared else found

    def _held_out(self, image: int, place: int) -> tuple[Result, bool]:
        """Of one of the sampled images, and whether the member could do without it."""
        member = 0 if self._shared else place
        index = image * len(self._known_frame()) + place if self._shared else image
        samples = self._samples[member]
        result = self._members[member]._combine([sample.result(index) for sample in samples])
        return result, any(sample.is_counted(index) for sample in samples)

    def _measure(self) -> torch.Tensor:
        """Statistics of every location, as in `Units`."""
        rows = []
        for place in range(len(self._known_frame())):
            said = []
            for image in range(self._num_results()):
                (score, anomaly_map), _ = self._held_out(image, place)
                values = anomaly_map.double()
                said.append(torch.stack([score[0].double(), values.mean(), values.var(correction=0)]))
            # A GPU is read once for a location.
            scores, means, variances = torch.stack(said).cpu().unbind(1)
            spread = (variances + (means - means.mean()).square()).mean().sqrt()
            rows.append(torch.stack([scores.mean(), scores.std(correction=0), means.mean(), spread]))
        return torch.stack(rows)

    def _joined(self, joiner: Joiner, progress: Progress | None) -> NormalSample:
        sample = NormalSample(self._ensemble._rounding)
        count = self._num_results()
        for image in range(count):
            canvas, fair = joiner.canvas(1), False
            for place in range(len(joiner.frame)):
                result, counted = self._held_out(image, place)
                canvas.put(place, slice(0, 1), result)
                fair = fair or counted
            # An image that no member can do without would say what the members know by heart. Where a single
            # location cannot, it is one where nothing ever varies, and one image's patches stand for all.
            if fair:
                sample.add(*canvas.join())
            return_free_memory()
            if progress is not None:
                progress("join", image + 1, count)
        return sample
