"""Features in a few numbers per image, taken while a detector scores: no pass is made for them.

Whatever runs a `FeatureExtractor` inside `collected` is seen: members of ensembles, tiles, a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch


class FeatureSummaries:
    """Mean and standard deviation over the grid of every feature map of a batch of `count` images.

    A pass over tiles gives the mean over an image's tiles. Passes over other numbers of rows than there are
    images (or tiles, where `rows_of` says whose they are) are not of these images, and do not count.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._owners: Sequence[int] = range(count)
        # By network and layers, in the order of their first pass: sums float32 [B, D], and rows per image.
        self._sums: dict[object, tuple[torch.Tensor, list[int]]] = {}

    def add(self, key: object, maps: Sequence[torch.Tensor]) -> None:
        """Take in the feature maps `[rows, C_l, H_l, W_l]` of a pass."""
        owners = self._owners
        if any(one.ndim != 4 or len(one) != len(owners) for one in maps):
            return
        own = torch.cat([_mean_and_deviation(one) for one in maps], dim=1)
        if key not in self._sums:
            self._sums[key] = (own.new_zeros((self._count, own.shape[1])), [0] * self._count)
        sums, counts = self._sums[key]
        if isinstance(owners, range) and len(owners) == self._count:
            sums += own
            counts[:] = [count + 1 for count in counts]
            return
        # One row after the other, so that the order of additions never changes.
        for row, owner in enumerate(owners):
            sums[owner] += own[row]
            counts[owner] += 1

    def values(self, device: torch.device) -> torch.Tensor:
        """float32 `[B, D]`; D is 0 where no network was run."""
        found = [torch.empty((self._count, 0), dtype=torch.float32, device=device)]
        for sums, counts in self._sums.values():
            scale = 1.0 / max(1, max(counts))
            found.append((sums * scale).to(device))
        return torch.cat(found, dim=1)


def _mean_and_deviation(maps: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(maps.float(), dim=(2, 3), correction=0)
    return torch.cat([mean, variance.sqrt()], dim=1)


_collecting: ContextVar[FeatureSummaries | None] = ContextVar("summaries", default=None)


@contextmanager
def collected(summaries: FeatureSummaries | None) -> Iterator[None]:
    """Inside, the passes of all networks go to `summaries`; with None to nobody."""
    token = _collecting.set(summaries)
    try:
        yield
    finally:
        _collecting.reset(token)


@contextmanager
def rows_of(images: Sequence[int]) -> Iterator[None]:
    """Inside, a pass has one row per entry: the image of the batch that the row is a tile of."""
    summaries = _collecting.get()
    if summaries is None:
        yield
        return
    before, summaries._owners = summaries._owners, images
    try:
        yield
    finally:
        summaries._owners = before


def offer(key: object, maps: Sequence[torch.Tensor]) -> None:
    """Called by a network with what it put out."""
    summaries = _collecting.get()
    if summaries is not None:
        summaries.add(key, maps)
