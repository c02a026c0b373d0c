"""Learning of PatchCore: patches of normal images on their way into a memory bank."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.calibration import DEFAULT_RATE, NormalSample, Origin
from ensemblead.common.warnings import SlowPredictWarning, warn
from ensemblead.detectors.parts import Fitted, Run, Seen
from ensemblead.detectors.patchcore.arguments import Sizes, same_padding
from ensemblead.detectors.patchcore.defects import DefectLook, chosen_rows, refuse_equal
from ensemblead.detectors.patchcore.robust import (
    FEWEST,
    Contamination,
    looks_of,
    odd_ones,
    out_of_bag_scores,
)
from ensemblead.detectors.patchcore.scoring import PatchScoring, cells_of, is_zero, patch_places
from ensemblead.kernels.inside import Inside
from ensemblead.kernels.maps import MapKind
from ensemblead.kernels.object_cells import ObjectCells
from ensemblead.memory import MemoryBank, start_rows
from ensemblead.memory.places import Numbers

# With fewer rows in the bank than this, leave-one-out thresholds lie far above fresh images' scores. It is
# their number that matters, from however many images they come; docs/design/thresholds.md has the figures.
_FEW_ROWS = 50
# Operations of the comparison of one image with all bank rows, beyond which `fit` warns.
_SLOW = 100e9


@dataclass
class _Held:
    """The embedding `[1, h, w, D]` of an image that will be scored without its own bank rows; with a region
    that of the patches inside, `[1, 1, n, D]`. `grid`: h and w. `objects`: which of the patches count; only
    these are held then, `[n, D]`, as the bank holds them.
    """

    number: int
    patches: torch.Tensor
    size: tuple[int, int]
    grid: tuple[int, int]
    objects: ObjectCells | None = None

    def on_grid(self) -> torch.Tensor:
        """The patches with their grid, `[1, h, w, D]`: those that do not count are zeros."""
        return self.patches if self.objects is None else self.objects.put(self.patches)


class BankAccumulator:
    """Gathers patches of normal images for a bank, new or to be extended."""

    def __init__(
        self,
        scoring: PatchScoring,
        bank: MemoryBank,
        batch_size: int,
        relative_noise: Callable[[], float],
        map_kind: MapKind = "bilinear",
        inside: Callable[[Seen], Inside | None] = lambda seen: None,
        contamination: Contamination = None,
        defects: Callable[[Seen], list[DefectLook]] | None = None,
    ) -> None:
        self._scoring, self._batch_size, self._map_kind = scoring, batch_size, map_kind
        self._region = inside
        self._inside: Inside | None = None  # known with the first batch
        self._sizes: Sizes = None  # of images, and what they are padded to
        self._relative_noise = relative_noise  # of embeddings: asked when the network has run
        self._bank = bank
        self._defects = defects
        self._looks: list[DefectLook] | None = None  # at known defects, from the first batch on
        self._first = int(bank.images_.max()) + 1 if bank.is_fitted else 0
        self._held: list[_Held] = []
        self._contents = array("Q")  # of the images,
        self._counts = array("q")  # and how many patches each has,
        self._numbers = array("q")  # and whose they are
        self._contamination = contamination
        self._device = torch.device("cpu")  # of the embeddings
        self._odd: dict[int, float] = {}  # images that are left out, by number
        self._fits = False  # all patches can be held at once
        # Of every batch the images' numbers and, for metric="cosine", whether they have vectors of zeros.
        self._zeros: list[tuple[tuple[int, ...], torch.Tensor]] = []

    def add(self, seen: Seen, objects: ObjectCells | None = None) -> None:
        """Take in a batch; `objects`: of each image these patches alone."""
        if seen.turns:
            self._add_copies(seen, objects)
            return
        patches, inside = seen.embeddings, self._region(seen)
        self._sizes = same_padding(self._sizes, seen)
        grid = (patches.shape[1], patches.shape[2])
        if inside is not None:
            patches, self._inside = inside.take(patches), inside
        places = patch_places(self._bank, len(patches), grid, inside)
        self._bank.grid = None if places is None else grid
        per_image, dims = patches.shape[1] * patches.shape[2], patches.shape[3]
        if not self._counts and seen.total:
            self._expect(seen, per_image, dims)
        if self._defects is not None and self._looks is None:
            self._looks = self._defects(seen)
        own = np.array(seen.numbers, dtype=np.int64) + self._first
        rows, counts = patches.reshape(-1, dims), np.full(len(patches), per_image)
        zeros = is_zero(patches).flatten(1) if self._scoring.is_cosine else None
        if objects is not None:  # how many there are is known on the host: a GPU is waited for
            chosen = objects.cells.cpu().numpy()
            rows, counts = objects.take(patches), chosen.sum((1, 2))
            places = None if places is None else places[chosen.ravel()]
            zeros = None if zeros is None else zeros & objects.cells.flatten(1)
        if zeros is not None:
            self._zeros.append((seen.numbers, zeros.any(1)))
        self._device = patches.device
        self._gather(rows, own, counts, seen.contents, places)
        each = torch.split(patches, 1) if objects is None else torch.split(rows, counts.tolist())
        for i, chosen_one in enumerate(seen.sampled):
            if chosen_one:
                held = each[i]
                # A copy where the rest of the batch can go when its group has left the bank's buffer.
                held = held if self._fits or all(seen.sampled) else held.clone()
                cells = None if objects is None else objects[i : i + 1]
                self._held.append(_Held(int(own[i]), held, seen.size, grid, cells))

    def _add_copies(self, seen: Seen, objects: ObjectCells | None) -> None:
        """Take in changed copies of images: the patches that show what is inspected of them, and nothing
        mirrored. Of a copy that shows none there is nothing to learn.
        """
        patches = seen.embeddings
        count, height, width, dims = patches.shape
        inside = self._region(seen)
        known = {turn: cells_of(turn, seen.size, inside, (height, width)) for turn in set(seen.turns)}
        cells = np.stack([known[turn] for turn in seen.turns])
        if objects is not None:
            cells &= objects.cells.cpu().numpy()
        places = patch_places(self._bank, count, (height, width))
        if self._scoring.is_cosine:
            shown = torch.from_numpy(cells).to(patches.device)
            self._zeros.append((seen.numbers, (is_zero(patches) & shown).flatten(1).any(1)))
        counts = cells.sum((1, 2))
        chosen, kept = np.flatnonzero(cells), counts > 0
        rows = patches.reshape(-1, dims).index_select(0, torch.from_numpy(chosen).to(patches.device))
        own = np.array(seen.numbers, dtype=np.int64) + self._first
        places = None if places is None else places[chosen]
        self._gather(rows, own[kept], counts[kept], tuple(compress(seen.contents, kept)), places)

    def _gather(
        self,
        rows: torch.Tensor,
        numbers: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        contents: Sequence[int],
        places: Numbers | None,
    ) -> None:
        """Give the bank rows of images, so many of each."""
        self._contents.extend(contents)
        self._numbers.extend(numbers.tolist())
        self._counts.extend(counts.tolist())
        self._bank.add(
            rows,
            numbers.repeat(counts),
            places=places,
            copy=False,
            known_finite=True,  # or this batch would not have come here
        )

    def _expect(self, seen: Seen, per_image: int, dims: int) -> None:
        """Refuse a budget that will not do as soon as the size of embeddings is known."""
        self._fits = self._bank.fits(seen.total * per_image, dims)
        if self._contamination is not None and not self._fits:
            least = self._bank.bytes_for(seen.total * per_image, dims)
            raise ValueError(
                "contamination needs all patches at once, to judge images by the others, and memory_budget="
                f"{self._bank.memory_budget} holds fewer: give memory_budget={least}, fewer or smaller "
                "images, or contamination=None"
            )
        held = 4 * dims * per_image * seen.total_sampled
        self._bank.expect(seen.total * per_image, dims, beside=held)

    def finish(self, run: Run) -> Fitted:
        self._refuse_zeros(run)
        bank, few, rose, extending = self._bank, False, False, self._bank.is_fitted
        floor = self._relative_noise() * float(bank.mean_square_norm()) ** 0.5
        warnings: dict[str, str] = {}
        if self._contamination is not None:
            warnings = self._leave_out(floor, run)
        pairs = zip(self._contents, self._numbers, strict=True)
        own = ((content, number - self._first) for content, number in pairs)
        refuse_equal(self._looks or (), bank.defects_, own, run.describe)
        num_patches = sum(self._counts)
        if extending:
            before = bank.rows_
            bank.extend(noise_floor=floor, max_rows=run.max_rows)
            # Scores fall where rows are added, but not where others have taken their place.
            rose = len(bank) < len(before) or not torch.equal(bank.rows_[: len(before)], before)
        else:
            starts = None
            if bank.holds_all_rows:  # the same images in another order give the same bank
                starts = start_rows(self._contents, self._counts, seed=bank.seed)
            bank.fit(
                start_indices=starts,
                noise_floor=floor,
                progress=lambda done, total: run.progress("select", done, total),
            )
            # Of a bank that has every distinct patch there are no more to be had.
            wanted = bank.coreset_size or int(num_patches * bank.coreset_fraction)
            few = wanted <= len(bank) < min(_FEW_ROWS, num_patches)
        needed = self._scoring.num_neighbors
        if len(bank) < needed:
            raise ValueError(
                f"num_neighbors is {needed}, but the memory bank has only {len(bank)} rows; "
                f"give more images or a larger {'max_rows' if run.max_rows else self._size_name}"
            )
        self._warn_if_slow("max_rows" if extending else "coreset_size")
        honest = [held for held in self._held if held.number not in self._odd]
        fair = sum(bank.rows_without(held.number) >= needed for held in honest)
        if self._looks:
            noise = self._scoring.moved(0.0, floor, int(bank.rows_.shape[1]))

            def limit() -> float:
                if not fair:
                    return math.inf  # of images that the bank knows there is no threshold
                sample = self._sampled(
                    bank, fair, floor, lambda done, total: run.progress("judge", done, total)
                )
                return sample.calibration(DEFAULT_RATE, "leave_one_out", "").pixel_threshold()

            bank.defects_ = chosen_rows(self._looks, bank, self._scoring, limit, noise)
        sample = self._sampled(bank, fair, floor, lambda done, total: run.progress("calibrate", done, total))
        self._held = []
        warnings |= {} if extending else self._warnings(fair, few)
        odd = {number - self._first: score for number, score in self._odd.items()}
        # Of images that the bank knows, scores say nothing of others.
        origin: Origin = "leave_one_out" if fair else "trained_on"
        return Fitted(bank, sample, origin, warnings, rose=rose, odd=odd)

    def _sampled(
        self, bank: MemoryBank, fair: int, floor: float, progress: Callable[[int, int], object]
    ) -> NormalSample:
        """Held images, each scored without its own rows. `fair`: for how many that can be done."""
        sample = NormalSample(inside=self._inside)
        done = 0
        for batch, alone in self._batches(bank):
            patches = torch.cat([held.on_grid() for held in batch])
            numbers = [held.number for held in batch] if alone else None
            places = patch_places(bank, len(batch), batch[0].grid, self._inside)
            each = [held.objects for held in batch if held.objects is not None]
            objects = ObjectCells.joined(each) if each else None
            scores = self._scoring.scores(bank, patches, numbers, places, objects)
            grids = scores.grids if self._inside is None else self._inside.put(scores.grids, batch[0].grid)
            sample.add_grids(
                scores.images,
                grids,
                batch[0].size,
                kind=self._map_kind,
                counted=alone or not fair,
                left_out=batch[0].number in self._odd,
                objects=objects,
            )
            done += len(batch)
            progress(done, len(self._held))
        moved = self._scoring.moved(sample.largest_score(), floor, int(bank.rows_.shape[1]))
        # A raised distance is twice one less another.
        sample.rounding = moved if bank.defects_ is None else 3 * moved
        return sample

    def _leave_out(self, floor: float, run: Run) -> dict[str, str]:
        """Judge the images, and let the odd ones go; a warning where there are too few of them."""
        assert self._contamination is not None
        distinct = len(set(self._numbers))
        if distinct < FEWEST:
            few = (
                f"contamination: {distinct} different images are too few to judge each by the others, "
                f"{FEWEST} are needed"
            )
            if self._contamination != "auto":
                raise ValueError(f"{few}; give more images, or contamination=None")
            return {"unjudged": f"{few}: none of them is left out"}
        pieces = [rows for rows, _ in self._bank.held_rows()]
        looks = looks_of(pieces, self._counts, self._numbers, self._contents)
        scores = out_of_bag_scores(
            looks, self._bank, self._device, lambda done, total: run.progress("judge", done, total)
        )
        self._odd = odd_ones(scores, self._contamination, floor)
        del looks, pieces
        self._bank.leave_out(self._odd)
        kept = [number not in self._odd for number in self._numbers]
        self._contents, self._counts, self._numbers = (
            array(own.typecode, compress(own, kept)) for own in (self._contents, self._counts, self._numbers)
        )
        return {}

    @property
    def _size_name(self) -> str:
        return "coreset_fraction" if self._bank.coreset_size is None else "coreset_size"

    def _warn_if_slow(self, limit: str) -> None:
        """Where the comparison of an image with all bank rows will take long; `limit` would shorten it."""
        rows, dims = self._bank.rows_.shape
        operations = 2 * max(self._counts) * rows * dims
        if self._bank.index == "flat" and self._bank.position_radius is None and operations > _SLOW:
            most = int(_SLOW) // (2 * max(self._counts) * dims)
            warn(
                f"every image is compared with {rows} bank rows, {operations / 1e9:.0f} GFLOP: predict will "
                f'be slow; {limit}={most} takes {_SLOW / 1e9:.0f}, and index="ivf" compares with fewer',
                SlowPredictWarning,
            )

    def _refuse_zeros(self, run: Run) -> None:
        """Raise ValueError, naming the first image, for embeddings that have no direction."""
        # A GPU is waited for once, when all images are in.
        found = [
            number
            for numbers, has_zeros in self._zeros
            for number, is_so in zip(numbers, has_zeros.tolist(), strict=True)
            if is_so
        ]
        if found:
            raise ValueError(
                f'metric="cosine" compares directions, but for some place of {len(set(found))} images the '
                f"network puts out zeros, first of {run.describe(found[0])}; leave those images out, or take "
                'metric="l2" or other layers'
            )

    def _warnings(self, fair: int, few: bool) -> dict[str, str]:
        """Why the threshold says little: few images could be scored without themselves, or few rows."""
        if not fair:
            return {
                "none": "no training image can be scored without its own memory bank rows (it is one alone, "
                "or copies of one, or too few rows are others'), so the statistics and the threshold are of "
                "images that the bank knows, and too low; give more images, or call calibrate"
            }
        if fair == 1:
            return {
                "one": "a single training image gives the statistics and the threshold, so they say nothing "
                "of how much normal images differ; give more images, or call calibrate"
            }
        if few:
            return {
                "few": f"the memory bank has only {len(self._bank)} rows, and an image that is scored "
                "without its own finds no others in their place: the threshold is probably far too high; set "
                f"a larger {self._size_name} or give more images, for {_FEW_ROWS} rows at least, "
                "or call calibrate"
            }
        return {}

    def _batches(self, bank: MemoryBank) -> Iterator[tuple[list[_Held], bool]]:
        """Images that can be scored together, `batch_size` at most: of one size, with as many neighbours to
        be reweighted by, and all of them with enough rows of others, or none.
        """

        def kind(held: _Held) -> tuple[Any, ...]:
            others = bank.rows_without(held.number)
            neighbours = min(self._scoring.reweight_neighbors, others)
            shapes = held.size, held.grid, held.patches.shape if held.objects is None else ()
            return others >= self._scoring.num_neighbors, neighbours, *shapes, held.number in self._odd

        for (alone, *_), alike in groupby(self._held, kind):
            group = list(alike)
            for start in range(0, len(group), self._batch_size):
                yield group[start : start + self._batch_size], alone
