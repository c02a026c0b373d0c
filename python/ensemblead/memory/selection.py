"""Which of the rows in a buffer a memory bank keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.validation import whole_number
from ensemblead.kernels.coreset import select_coreset
from ensemblead.search.exact import nearest_squared

Progress = Callable[[int, int], None]


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


def select_above_noise(
    projected: torch.Tensor, size: int, noise_floor: float, progress: Progress | None, **options: Any
) -> tuple[npt.NDArray[np.int64], float]:
    """At most `size` rows, until none lies farther than `noise_floor` from those selected; and the largest
    distance that is left, in the space of the rows.

    Raises ValueError for rows whose squared distances are beyond float32.
    """
    if noise_floor > 0:
        options["radius"] = noise_floor
    picks = select(projected, size=size, progress=progress, **options)
    if len(picks) == 0:
        picks = np.zeros(1, dtype=np.int64)
    reach = _reach(projected, picks)
    # Values start as mean distances to the start rows, so rows around those may seem to be covered.
    if 0 < noise_floor < reach and len(picks) < size:
        covered = projected[torch.from_numpy(picks).to(projected.device)]
        more = select(projected, size=size - len(picks), radius=noise_floor, bank=covered)
        picks = np.concatenate([picks, more])
        reach = _reach(projected, picks)
    return picks, reach


def _reach(projected: torch.Tensor, picks: npt.NDArray[np.int64]) -> float:
    chosen = projected[torch.from_numpy(picks).to(projected.device)]
    try:
        squared = nearest_squared(projected, chosen)
    except ValueError as error:
        raise ValueError(
            "embeddings lie so far from each other that squared distances are beyond float32 (3.4e38)"
        ) from error
    return float(squared.max().clamp_min(0).sqrt())


def start_rows(
    fingerprints: Sequence[str] | Sequence[bytes],
    rows_per_image: int | Sequence[int],
    num_starts: int,
    seed: int,
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
