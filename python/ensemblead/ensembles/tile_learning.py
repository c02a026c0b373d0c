"""Fitting one detector per tile location: every location is a view of the images, and an ordinary fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from ensemblead.calibration import DEFAULT_RATE, MAX_IMAGES, set_digest
from ensemblead.common.memory import return_free_memory
from ensemblead.detectors import one_pass
from ensemblead.detectors.learning import learn, nothing_read
from ensemblead.detectors.left_out import digest_without, joined
from ensemblead.detectors.parts import Fitted, Note, Progress, Run
from ensemblead.detectors.running import open_pool
from ensemblead.ensembles.tile_joining import TileJoin
from ensemblead.ensembles.tile_plan import Location, TiledState, TilePlan, settle_in_tile
from ensemblead.ensembles.tile_pyramid import TilePyramid
from ensemblead.images import AS_IS, Images, ImageSet, Tiles

# One member for all locations of a scale holds the tiles of sampled images as embeddings until it has its
# bank: they may take this share of the memory budget.
_HELD_SHARE = 1 / 3


class TiledLearning:
    """A fit by a plan, or, given what it knows, its extension; location after location."""

    def __init__(self, plan: TilePlan, images: ImageSet, run: Run, known: TiledState | None = None) -> None:
        if not isinstance(images, Images):
            raise TypeError("tiles are cut from images, not from tiles")
        plan = replace(plan, geometry=images.frame(plan.geometry))
        self._plan, self._images, self._known = plan, images, known
        self._given = run
        self._frame = self._frame_of_images() if known is None else known.frame
        self._groups = self._frame.groups(plan.shared)
        self._digest = set_digest(images.positions(), images.sizes, images.fingerprints)
        self._check_sizes()

    def fitted(self) -> Fitted:
        """What all locations have learned."""
        locations = [self._location(place) for place in range(len(self._groups))]
        join = TileJoin(
            self._plan,
            self._frame,
            locations,
            self._run.progress,
            known=self._known,
            sampled_every=self._sampled[1],
        )
        return join.fitted()

    def location(self, number: int) -> Location:
        """What the location of a tile learns."""
        return self._location(self._frame.numbers.index(number))

    def _location(self, place: int) -> Location:
        """What the tiles of one group learn."""
        group, count = self._groups[place], len(self._groups)
        run = self._run
        if not self._plan.shared or count > 1:
            progress = _one_of_many(run.progress, place, count)
            what = "scales" if self._plan.shared else "tile locations"
            note = _said_once(run.note, place, f"{count} {what}")
            run = replace(run, progress=progress, note=note).below(f"tile{group[0]}")
        return self._learned(self._view(group), run, place)

    # Images

    @cached_property
    def _run(self) -> Run:
        """With the same images for the statistics of all locations, and of all parts of their members."""
        return replace(self._given, sampled=self._sampled[0], all_scored=True)

    def _frame_of_images(self) -> TilePyramid:
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

    def _view(self, group: Sequence[int]) -> Tiles:
        geometries, frame = self._plan.geometries, self._frame
        windows = [(geometries[frame.place(number)[0]], frame.window(number)) for number in group]
        return Tiles(self._images, windows)

    @cached_property
    def _sampled(self) -> tuple[frozenset[int], int]:
        """Of the sampled images as many as can be held. If locations share a detector it is one of so many,
        that the embeddings of their tiles keep to the memory budget.
        """
        sampled, shared = self._given.sampled, self._plan.shared
        parts = [part for part in self._plan.member._parts() if part.passes != "held_out"]
        if not parts or not (shared or len(sampled) > one_pass.HELD_IMAGES):
            return sampled, 1
        view = self._view(self._groups[0])
        tile, _ = view.read(AS_IS, [0])
        with open_pool(parts, view).batch({AS_IS: tile}) as features:
            seen = [part._seen(tile, AS_IS, features) for part in parts]
        tiles = max(map(len, self._groups)) if shared else 1
        most = one_pass.most_held(parts, seen, len(self._images.positions()) * tiles, tiles)
        every, held = 1, sum(value.numel() * value.element_size() for one in seen for value in one.values)
        if shared and held:
            images = max(1, int(self._plan.memory_budget * _HELD_SHARE / (held * tiles)))
            every = math.ceil(min(self._given.num_images, MAX_IMAGES) / images)
        return one_pass.affordable_of(frozenset(sorted(sampled)[::every]), most), every

    # Locations

    def _learned(self, view: Tiles, run: Run, place: int) -> Location:
        if self._known is None:
            source = member = self._plan.member_at(self._frame, self._groups[place][0])
        else:
            source = self._known.members[place]
            member = source._clone()
        fitted = learn(source, view, run, extending=self._known is not None)
        member._take([one.state for one in fitted], nothing_read())
        settle_in_tile(member)
        if self._known is None:
            digests = [digest_without(self._digest, one.left_out) for one in fitted]
            pairs = zip(fitted, digests, strict=True)
            member._accept(
                [
                    one.sample.calibration(DEFAULT_RATE, one.origin, own, with_peaks=False)
                    for one, own in pairs
                ]
            )
        else:
            member._accept([part.calibration_ for part in source._parts()])
        return_free_memory()
        return Location(
            member,
            tuple(one.sample for one in fitted),
            fitted[0].positions,
            tuple(one.origin for one in fitted),
            {
                f"{part} {kind}": message
                for part, one in enumerate(fitted)
                for kind, message in one.warnings.items()
            },
            any(one.rose for one in fitted),
            fitted[0].left_out if len(fitted) == 1 else joined([one.left_out for one in fitted]),
        )


def _said_once(note: Note, number: int, places: str) -> Note:
    """What one location says, of which lines that stay are those of the first."""

    def of_one(text: str, stays: bool) -> None:
        if not stays:
            note(text, False)
        elif not number:
            note(f"{text}, at the first of {places}", True)

    return of_one


def _one_of_many(progress: Progress, number: int, count: int) -> Progress:
    """Progress in one location as a part of that in all."""
    return lambda stage, done, total: progress(stage, number * total + done, count * total)
