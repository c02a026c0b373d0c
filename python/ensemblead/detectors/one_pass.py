"""One pass over the images, which parts of a detector share: what they see goes to their accumulators."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ensemblead.calibration import Originals, sampled_positions
from ensemblead.detectors.holdout import holdout_of
from ensemblead.detectors.left_out import with_copies
from ensemblead.detectors.parts import Fitted, Part, Run, Seen, Tree
from ensemblead.detectors.returned import check_fitted
from ensemblead.detectors.running import report_skipped, seen_batches
from ensemblead.images import ImageBatch, Images, ImageSet, ImageSource

# What is held of the sampled images until they can be scored: of so many images whatever it takes, of more as
# long as it keeps to so many bytes.
HELD_IMAGES, _HELD_BYTES = 100, 1 << 30


@dataclass(frozen=True)
class SharedPass:
    """What the parts of an ensemble have in common. A member that is fitted apart from the others is told,
    so that it comes to the same.

    Attributes:
        batch_size: of the pass that parts share.
        most_scored: of how many images they can hold what they have seen until these are scored; None: what
            the member itself holds decides.
        holdout: the share of the images that is held out for all, since one of them is trained; else None.
    """

    batch_size: int
    most_scored: int | None
    holdout: float | None


def shared_pass(detector: Tree, source: ImageSource, errors: Any) -> SharedPass:
    """That of a detector's parts; runs the first image through their networks where its size matters."""
    parts = [part for part in detector._parts() if part.passes == "one"]
    batch_size = min((part.batch_size for part in parts), default=1)
    holdout = holdout_of(detector._parts())
    most_scored = None
    if len(parts) > 1 and len(source) > HELD_IMAGES:
        with Images(source, errors=errors) as data:
            for _, seen in seen_batches(parts, data, 1):
                most_scored = most_held(parts, seen, len(data), 1)
                break
    return SharedPass(batch_size, most_scored, holdout)


def one_pass(
    parts: Sequence[Part],
    images: ImageSet,
    run: Run,
    *,
    extending: bool = False,
    shared: SharedPass | None = None,
    check: Callable[[ImageBatch], None] | None = None,
) -> list[Fitted]:
    """What parts learn from images that they see together, one per part; the parts stay as they are.

    Statistics are of images as they are, never of changed copies. `check` is called with every batch.
    """
    started = [part._start(extending=extending) for part in parts]
    taken = _Taken(parts, images, run, None if shared is None else shared.most_scored)
    batch_size = min(part.batch_size for part in parts) if shared is None else shared.batch_size
    done, total, known = 0, len(images), len(images.skipped)
    for batch, seen in seen_batches(parts, images, batch_size, check):
        for accumulator, told in zip(started, taken.told(batch, seen), strict=True):
            accumulator.add(told)
        done += len(batch)
        del batch, seen, told
        run.progress("embed", done + len(images.skipped) - known, total)
    if len(images.skipped) > known:
        run.progress("embed", total, total)  # the last images may be among those left out
    taken.require_new()
    require_readable(images)
    fitted = []
    for part in parts:
        # An accumulator goes with its last use: what it holds of the images is large.
        found = check_fitted(part, started.pop(0).finish(run))
        fitted.append(taken.placed(found))
    return fitted


def require_readable(images: ImageSet) -> None:
    """Raise ValueError where no image could be read; reads them, if that was not done."""
    if isinstance(images, Images) and not images.positions():
        report_skipped(images.source, images.skipped)


class _Taken:
    """Images on their way to accumulators: which are equal, and which give statistics."""

    def __init__(self, parts: Sequence[Part], images: ImageSet, run: Run, most_scored: int | None) -> None:
        self._parts, self._images, self._run, self._most = parts, images, run, most_scored
        self._originals = Originals()
        self._copies: dict[int, dict[int, None]] = {}  # by number, the places of equal images
        self._choice: _Choice | None = None
        self._total = len(images)
        self._totals: dict[str, Any] = {}

    def told(self, batch: ImageBatch, seen: Sequence[Seen]) -> list[Seen]:
        """What the parts see of a batch, with what they are told of its images."""
        looks = zip(batch.indices, batch.sizes, batch.fingerprints, strict=True)
        numbers = tuple(self._originals.of(*look) for look in looks)
        for index, number in zip(batch.indices, numbers, strict=True):
            if index != number:
                self._copies.setdefault(number, {})[index] = None
        if self._choice is None:
            self._choice = self._chosen(seen)
        choice, known = self._choice, self._run.known
        sampled = tuple(
            # Of images that are equal, the first counts.
            not batch.turns and choice.takes(index, is_new=index == number and look not in known)
            for index, number, look in zip(batch.indices, numbers, batch.fingerprints, strict=True)
        )
        contents = {frame: contents_of(pixels) for frame, pixels in batch.images.items()}
        told = []
        for part, own in zip(self._parts, seen, strict=True):
            frame = self._images.frame(part.geometry)
            own = replace(own, numbers=numbers, sampled=sampled, contents=contents[frame])
            told.append(replace(own, turns=batch.turns.get(frame, ()), **self._totals))
        return told

    def _chosen(self, seen: Sequence[Seen]) -> _Choice:
        """Which images give statistics, as far as the size of what is seen of them allows."""
        images, run = self._images, self._run
        rows_per_image = math.ceil(self._total / (run.num_images * images.copies))
        most = self._most
        if most is None:
            most = most_held(self._parts, seen, self._total, rows_per_image)
        affordable = run.sampled if run.all_scored else affordable_of(run.sampled, most)
        sampled_rows = rows_per_image * len(affordable)
        self._totals = {"total": self._total, "total_sampled": sampled_rows, "bits": images.bits}
        return _Choice(affordable)

    def require_new(self) -> None:
        """Raise ValueError where nothing is left to take statistics from."""
        if self._choice is not None and not self._choice.positions:
            raise ValueError(
                "images: all of them have been learned already, by the detector or by a member of it; "
                "give others"
            )

    def placed(self, found: Fitted) -> Fitted:
        """With the places of the images that it speaks of."""
        return replace(
            found,
            positions=() if self._choice is None else tuple(self._choice.positions),
            left_out=with_copies(
                found.odd, {number: [number, *self._copies.get(number, ())] for number in found.odd}
            ),
        )


class _Choice:
    """Which images give statistics: those that are sampled, and in the place of one that cannot (it is known,
    equals one before it, or cannot be read) the next one that can. The images come in order.
    """

    def __init__(self, sampled: frozenset[int]) -> None:
        self.positions: list[int] = []  # of the images taken; as often as they came, in tiles
        self._sampled = sorted(sampled)
        self._num_taken = 0

    def takes(self, position: int, *, is_new: bool) -> bool:
        is_last = bool(self.positions) and self.positions[-1] == position  # another tile of the image
        due = bisect_right(self._sampled, position)
        if not is_new or not (is_last or self._num_taken < due):
            return False
        self._num_taken += not is_last
        self.positions.append(position)
        return True


def most_held(parts: Sequence[Part], seen: Sequence[Seen], total: int, rows_per_image: int) -> int:
    """How many images may be held until they are scored."""
    sizes = [sum(value[0].numel() * value.element_size() for value in one.values) for one in seen]
    most = _HELD_BYTES // max(1, sum(sizes) * rows_per_image)
    for part, one, size in zip(parts, seen, sizes, strict=True):
        limit = part.held_bytes(one, total)
        if limit is not None:
            most = min(most, limit // max(1, size * rows_per_image))
    return max(HELD_IMAGES, most)


def affordable_of(sampled: frozenset[int], most: int) -> frozenset[int]:
    """Of the sampled images so many at most, evenly spread."""
    ordered = sorted(sampled)
    chosen = sampled_positions(len(ordered), most=most)
    return frozenset(ordered[item] for item in chosen)


def contents_of(pixels: torch.Tensor) -> tuple[int, ...]:
    """See `Seen.contents`."""
    digests = (hashlib.blake2b(image.numpy().data, digest_size=8).digest() for image in pixels)
    return tuple(int.from_bytes(digest, "little") for digest in digests)
