"""Grids and maps of a region: which of their values count, and what the others are."""

from __future__ import annotations

from functools import cached_property

import torch

from ensemblead.kernels.filling import Mask, cells_inside, nearest_inside


class Inside:
    """Which pixels of frames `[H, W]` are inspected, and with them which patches of grids over the frame.

    A patch is inspected if any pixel of its cell is, so that no pixel inside is left out.

    Args:
        mask: bool `[H, W]`, true for some pixel.
    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self._grids: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame."""
        return self.mask.shape[0], self.mask.shape[1]

    def count(self, grid: tuple[int, int]) -> int:
        """Patches of a grid (h, w) that are inspected."""
        return len(self.places(grid, torch.device("cpu")))

    def places(self, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
        """The patches of a grid that are inspected, in the flattened grid, ascending: int64 `[n]`."""
        return self._of(grid)[0].to(device)

    def sources(self, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
        """For every patch of a grid which of the inspected ones stands for it: int64 `[h w]`."""
        return self._of(grid)[1].to(device)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Of values `[B, h, w, ...]` those of inspected patches, as a grid of one row: `[B, 1, n, ...]`."""
        grid = (values.shape[1], values.shape[2])
        return values.flatten(1, 2).index_select(1, self.places(grid, values.device))[:, None]

    def put(self, values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The reverse of `take`, for `[B, 1, n]`: grids `[B, h, w]`, where others have the value of the
        inspected patch that is nearest.
        """
        return values.flatten(1).index_select(1, self.sources(grid, values.device)).view(-1, *grid)

    def spread(self, grids: torch.Tensor) -> torch.Tensor:
        """Grids or maps `[B, h, w]` in which all that is not inspected has the nearest value that is."""
        return self.put(self.take(grids), (int(grids.shape[1]), int(grids.shape[2])))

    def blank(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `[B, H, W]` of the frame with zeros where nothing is inspected."""
        return maps.where(self._pixels.to(maps.device), maps.new_zeros(()))

    def largest(self, maps: torch.Tensor) -> torch.Tensor:
        """The largest value `[B]` of each of maps `[B, H, W]`, among inspected pixels."""
        return self.take(maps).flatten(1).amax(1)

    @cached_property
    def _pixels(self) -> torch.Tensor:
        return torch.from_numpy(self.mask)

    def _of(self, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        grid = (int(grid[0]), int(grid[1]))
        if grid not in self._grids:
            cells = cells_inside(self.mask, grid)
            # The place of every inspected patch among all of them.
            order = cells.ravel().cumsum() - 1
            tensors = (
                torch.from_numpy(cells.ravel().nonzero()[0]),
                torch.from_numpy(order[nearest_inside(cells).ravel()]),
            )
            self._grids[grid] = tensors
        return self._grids[grid]
