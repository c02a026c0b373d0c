"""Which training images are odd among the others: a robust fit leaves them out.

The images are dealt to ten parts at random. Every part gives a small memory bank, and every image is judged
by the banks of the other parts, which have not seen it. docs/design/robust.md has what was tried beside it.
That an ensemble over parts of a training set can clean it is the idea of Yoon et al., "Self-supervise,
Refine, Repeat: Improving Unsupervised Anomaly Detection", TMLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ensemblead.common.validation import finite_number
from ensemblead.detectors.patchcore.scoring import top_count
from ensemblead.memory import MemoryBank

Contamination: TypeAlias = float | Literal["auto"] | None
Doubles = npt.NDArray[np.float64]
# Parts of the images, each of which gives a bank.
PARTS = 10
# With fewer different images there is nothing to compare with.
FEWEST = 10
# A bank has as many rows at least.
FEW_ROWS = 50
# "auto" leaves out what lies so many robust deviations above the median of what it keeps.
LIMIT = 6.0
# A median absolute deviation times this is the standard deviation of a normal distribution.
_NORMAL = 1.4826
# No deviation is taken for less than this: logarithms of scores differ by as much by chance.
_LEAST_DEVIATION = 0.05
_BATCH = 16  # looks that are judged together
_STREAM = 2  # of the seed; others draw projections and start rows


def checked_contamination(value: Any) -> Contamination:
    """None, "auto", or a share between 0 and 0.5. Raises TypeError or ValueError for anything else."""
    if value is None or value == "auto":
        return None if value is None else "auto"
    if isinstance(value, str):
        raise ValueError(f'contamination must be "auto", a share or None, got {value!r}')
    if value != value:
        raise ValueError("contamination must be between 0 and 0.5, got nan")
    share = finite_number("contamination", value)
    if not 0 < share < 0.5:
        raise ValueError(f"contamination must be between 0 and 0.5, got {share:g}")
    return share


@dataclass(frozen=True)
class Look:
    """What the fit has seen of an image, or of one of its tiles or copies.

    Attributes:
        number: of the image; equal images have one number.
        content: 64 bits of the pixels.
        patches: embeddings `[P, D]`.
    """

    number: int
    content: int
    patches: torch.Tensor


def looks_of(
    pieces: Sequence[torch.Tensor], counts: Sequence[int], numbers: Sequence[int], contents: Sequence[int]
) -> list[Look]:
    """The rows of a bank that was not fitted yet, in the pieces they came in, as looks at images: of
    `counts` patches each, in order.
    """
    looks: list[Look] = []
    place = 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            rows = piece[start : start + counts[place]]
            looks.append(Look(numbers[place], contents[place], rows))
            start, place = start + counts[place], place + 1
    return looks


def out_of_bag_scores(
    looks: Sequence[Look],
    like: MemoryBank,
    device: torch.device,
    progress: Callable[[int, int], object],
) -> dict[int, float]:
    """By number of the images how anomalous they are to banks of the parts that they are not in.

    A patch counts by the mean of its distances (not squared) to the nearest rows of these banks, a look by
    the mean over its largest hundredth of patches, and an image by its largest look. Images are dealt in the
    order of their contents, so that the order in which they came does not matter. `like`: the bank of
    all images, of whose size each of these has its part, but no fewer than `FEW_ROWS` rows; `device`: where
    they are searched.
    """
    order = sorted(range(len(looks)), key=lambda i: (looks[i].content, looks[i].number))
    numbers = list(dict.fromkeys(looks[i].number for i in order))
    dealt = np.random.default_rng([like.seed, _STREAM]).permutation(len(numbers))
    part_of = {numbers[one]: place % PARTS for place, one in enumerate(dealt)}
    parts = min(PARTS, len(numbers))
    sums = [torch.zeros(len(look.patches), device=device) for look in looks]
    for part in range(parts):
        own = [i for i in order if part_of[looks[i].number] == part]
        bank = _small_bank(like, sum(len(looks[i].patches) for i in own))
        for i in own:
            bank.add(looks[i].patches.to(device), i, copy=False, known_finite=True)
        bank.fit()
        others = [i for i, look in enumerate(looks) if part_of[look.number] != part]
        for start in range(0, len(others), _BATCH):
            batch = others[start : start + _BATCH]
            patches = [looks[i].patches.to(device) for i in batch]
            distances = bank.search(torch.cat(patches), 1)[0][:, 0].clamp_min(0).sqrt()
            for i, found in zip(batch, distances.split(list(map(len, patches))), strict=True):
                sums[i] += found
        progress(part + 1, parts)
    judged = torch.stack([own.topk(top_count(len(own))).values.mean() for own in sums]) / (parts - 1)
    found_scores = judged.cpu().tolist()
    scores: dict[int, float] = {}
    for i in order:  # so that of equal scores the same ones come first, in whatever order the images came
        scores[looks[i].number] = max(found_scores[i], scores.get(looks[i].number, 0.0))
    return scores


def _small_bank(like: MemoryBank, num_rows: int) -> MemoryBank:
    """For so many rows, a part of those of `like`."""
    size = int(num_rows * like.coreset_fraction) if like.coreset_size is None else like.coreset_size // PARTS
    return MemoryBank(
        coreset_size=min(max(size, FEW_ROWS), num_rows),
        seed=like.seed,
        projection_dim=like.projection_dim,
        memory_budget=like.memory_budget,
    )


def deviations(scores: Doubles, floor: float = 0.0) -> Doubles:
    """How many robust deviations the logarithms of scores lie above the median of those that are not odd.

    Median and median absolute deviation are of the scores that lie no more than `LIMIT` above them, which is
    repeated until they stay the same. `floor`: scores up to it are nothing but rounding.
    """
    logs = np.log(np.maximum(scores, max(floor, np.finfo(np.float32).tiny)))
    kept = np.ones(len(logs), dtype=bool)
    while True:
        median = float(np.median(logs[kept]))
        spread = _NORMAL * float(np.median(np.abs(logs[kept] - median)))
        found: Doubles = (logs - median) / max(spread, _LEAST_DEVIATION)
        smaller = kept & (found <= LIMIT)
        if smaller.sum() == kept.sum():
            return found
        kept = smaller


def odd_ones(
    scores: Mapping[int, float], contamination: Contamination, floor: float = 0.0
) -> dict[int, float]:
    """Those that are left out, with their deviations: beyond the limit, or the oddest share, rounded up."""
    found = deviations(np.array(list(scores.values())), floor)
    order = np.argsort(-found, kind="stable")
    if isinstance(contamination, float):
        count = math.ceil(contamination * len(found) - 1e-9)
    else:
        count = int((found > LIMIT).sum())
    numbers = list(scores)
    return {numbers[i]: float(found[i]) for i in order[:count]}
