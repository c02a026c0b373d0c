"""The selection of the rows that a memory bank keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.validation import whole_number
from ensemblead.kernels.coreset import select_coreset
from ensemblead.search.exact import ExactIndex

Progress = Callable[[int, int], None]
# The image of a row that several images have.
SHARED = -1
# By so much, relatively, float32 may be wrong about a distance.
ROUNDING = 1e-5


def select(projected: torch.Tensor, *, start_indices: Any = None, **options: Any) -> npt.NDArray[np.int64]:
    """`select_coreset` over rows that are projected already, less the repeats it gives when nothing new is
    left; on the host, where they are sorted out.
    """
    if start_indices is not None:
        options["start_indices"] = torch.as_tensor(np.asarray(start_indices), dtype=torch.int64)
    picks = select_coreset(projected, projection_dim=None, **options).tolist()
    distinct = list(dict.fromkeys(picks))
    # When all values are 0, row 0 stands in; it may not have been picked before, but then an equal row was.
    place = distinct.index(0) if 0 in distinct else 0
    if place and bool((projected[distinct[:place]] == projected[0]).all(1).any()):
        del distinct[place]
    return np.array(distinct, dtype=np.int64)


def farthest_first(projected: torch.Tensor, size: int, seed: int) -> tuple[npt.NDArray[np.int64], float]:
    """At most `size` rows, and a distance from them within which all rows lie.

    The rule of Gonzalez (1985): a random row first, then always the one that is farthest from those picked.
    With the farthest row that is left they lie at least that distance apart, so no `size` rows, of these or
    of any that they are among, cover all within less than half of it. Rows that are no more than `size` are
    kept as they are, within 0. Raises ValueError for rows whose squared distances are beyond float32.
    """
    if len(projected) <= size:
        return np.arange(len(projected), dtype=np.int64), 0.0
    picks = select(projected, size=size + 1, start="row", seed=seed)
    if len(picks) <= size:
        return picks, 0.0
    *_, left = chosen = projected[torch.from_numpy(picks).to(projected.device)]
    distances = torch.linalg.vector_norm(chosen[:-1] - left, dim=1)
    return picks[:-1], _not_too_far(float(distances.min())) * (1 + ROUNDING)


@dataclass(frozen=True)
class Selected:
    """Rows selected, and how all rows `[N]` lie to them: squared distances float32 `[N]` and places among the
    selected int64 `[N]`, both of the nearest one.
    """

    picks: npt.NDArray[np.int64]
    squared: torch.Tensor
    nearest: torch.Tensor

    @property
    def distances(self) -> torch.Tensor:
        """Of all rows to the nearest selected one, float32 `[N]`."""
        return self.squared.clamp_min(0).sqrt()

    @cached_property
    def reach(self) -> float:
        """The largest distance from a row to the selected ones."""
        return _not_too_far(float(self.distances.max()))

    def separation(self, projected: torch.Tensor) -> float:
        """A distance that the selected rows and the one farthest from them have to each other at least."""
        if len(self.picks) < 2 or self.reach == 0:
            return self.reach
        chosen = projected[torch.from_numpy(self.picks).to(projected.device)]
        squared, _ = _nearest(chosen, chosen, 2)
        return min(self.reach, float(squared[:, 1].min().clamp_min(0).sqrt()))

    def images(self, images: torch.Tensor, noise_floor: float) -> npt.NDArray[np.int64]:
        """The image of every selected row, given that of all rows: `SHARED` for a row that has an equal, but
        for rounding, in another image.
        """
        own: npt.NDArray[np.int64] = images.numpy()[self.picks].copy()
        if noise_floor > 0:
            close = (self.squared <= noise_floor**2).cpu().numpy()
            places = self.nearest.cpu().numpy()[close]
            own_of_close = own[places]
            own[places[images.numpy()[close] != own_of_close]] = SHARED
        return own


def select_above_noise(
    projected: torch.Tensor, size: int, noise_floor: float, progress: Progress | None, **options: Any
) -> Selected:
    """At most `size` rows, until none lies farther than `noise_floor` from those selected. Where all may be
    kept, all that differ are: see `all_that_differ`.

    Raises ValueError for rows whose squared distances are beyond float32.
    """
    if size >= len(projected):
        selected = all_that_differ(projected)
        if progress is not None:
            progress(size, size)
        return selected
    if noise_floor > 0:
        options["radius"] = noise_floor
    picks = select(projected, size=size, progress=progress, **options)
    if len(picks) == 0:
        picks = np.zeros(1, dtype=np.int64)
    selected = _covered(projected, picks)
    # Values start as mean distances to the start rows, so rows around those may seem to be covered.
    if 0 < noise_floor < selected.reach and len(picks) < size:
        covered = projected[torch.from_numpy(picks).to(projected.device)]
        more = select(projected, size=size - len(picks), radius=noise_floor, bank=covered)
        selected = _covered(projected, np.concatenate([picks, more]))
    return selected


def all_that_differ(projected: torch.Tensor) -> Selected:
    """All rows but repeats, sorted: where nothing is left out, no row need be compared with all others. Their
    order, that of their bytes, does not depend on the one in which they came.
    """
    rows = projected.cpu().numpy() + 0.0  # -0 becomes 0
    keys = rows.view(np.dtype((np.void, rows.strides[0])))[:, 0]
    _, picks, which = np.unique(keys, return_index=True, return_inverse=True)
    nearest = torch.from_numpy(which).to(projected.device)
    return Selected(picks, projected.new_zeros(len(projected)), nearest)


def _covered(projected: torch.Tensor, picks: npt.NDArray[np.int64]) -> Selected:
    chosen = projected[torch.from_numpy(picks).to(projected.device)]
    squared, nearest = _nearest(chosen, projected, 1)
    return Selected(picks, squared[:, 0], nearest[:, 0])


_TOO_FAR = "embeddings lie so far from each other that squared distances are beyond float32 (3.4e38)"


def _nearest(rows: torch.Tensor, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        return ExactIndex(rows).search(queries, k, None)
    except ValueError as error:
        raise ValueError(_TOO_FAR) from error


def _not_too_far(distance: float) -> float:
    if not math.isfinite(distance):
        raise ValueError(_TOO_FAR)
    return distance


def start_rows(
    fingerprints: Sequence[str] | Sequence[bytes] | Sequence[int],
    rows_per_image: int | Sequence[int],
    num_starts: int = 10,
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """Start rows for `MemoryBank.fit(start_indices=)` that follow from the set of images, not their order.

    Rows are drawn as if the images had come in the order of their fingerprints, and given in that order.

    Args:
        fingerprints: one for every image, in the order of addition; equal for equal images.
        rows_per_image: how many rows each image gave, or one number for all.
        num_starts: how many rows to draw; all of them, if there are fewer.
        seed: of the draw.

    Returns:
        Row numbers by order of addition, int64 `[num_starts]`.
    """
    counts = np.broadcast_to(np.asarray(rows_per_image, dtype=np.int64), len(fingerprints))
    if len(counts) == 0 or counts.min() < 1:
        raise ValueError(f"rows_per_image must be at least 1 for one image or more, got {rows_per_image}")
    num_starts, seed = whole_number("num_starts", num_starts, 1), whole_number("seed", seed, 0)
    order = np.array(sorted(range(len(fingerprints)), key=fingerprints.__getitem__), dtype=np.int64)
    ends = np.cumsum(counts[order])
    total = int(ends[-1])
    drawn = np.random.default_rng([seed, _STARTS]).choice(total, min(num_starts, total), replace=False)
    drawn.sort()
    place = np.searchsorted(ends, drawn, side="right")
    first = np.cumsum(counts) - counts  # of every image, by order of addition
    return (first[order[place]] + drawn - (ends - counts[order])[place]).astype(np.int64)


_STARTS = 1  # the stream of the seed that start rows are drawn from, as in `select_coreset`
