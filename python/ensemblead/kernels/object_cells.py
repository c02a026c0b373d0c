"""Objects in grids: which cells are inspected, where that differs from image to image.

Standard operators of torch alone, so that a device is never waited for but in `take` and `places`.
"""

from __future__ import annotations

import torch
from torch.nn import functional


class ObjectCells:
    """Which patches of grids are inspected, image by image; `Inside` is the same for all images.

    Args:
        cells: bool `[B, h, w]`. An image without any is inspected whole.
    """

    def __init__(self, cells: torch.Tensor) -> None:
        self.cells = cells | ~cells.flatten(1).any(1)[:, None, None]

    def __getitem__(self, which: slice) -> ObjectCells:
        """For some of the images."""
        return ObjectCells(self.cells[which])

    @staticmethod
    def joined(several: list[ObjectCells]) -> ObjectCells:
        """For the images of all, on one grid."""
        return ObjectCells(torch.cat([one.cells for one in several]))

    @property
    def counts(self) -> torch.Tensor:
        """Inspected patches of every image: int64 `[B]`."""
        return self.cells.flatten(1).sum(1)

    def on(self, grid: tuple[int, int]) -> ObjectCells:
        """The same on another grid (h, w) over the images: a patch is inspected if any cell that it shares
        ground with is.
        """
        return ObjectCells(on_grid(self.cells, grid))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Of values `[B, h, w, ...]` those of inspected patches, image after image: `[n, ...]`."""
        return values[self.cells]

    def put(self, rows: torch.Tensor) -> torch.Tensor:
        """The reverse of `take`, for `[n, D]`: values `[B, h, w, D]`, zeros where nothing is inspected."""
        zeros = rows.new_zeros((*self.cells.shape, rows.shape[1]))
        return zeros.masked_scatter(self.cells[..., None], rows)

    def least_outside(self, values: torch.Tensor) -> torch.Tensor:
        """Values `[B, h w]` that are not negative, and -1 in patches that are not inspected."""
        return values.masked_fill(~self.cells.flatten(1), -1.0)

    def spread(self, grids: torch.Tensor) -> torch.Tensor:
        """Grids `[B, h, w]` in which all that is not inspected has the nearest value that is, by the rule of
        `nearest_inside`.
        """
        filled = self.cells.any(2)
        rows = _nearest(filled)  # [B, h]
        columns = _nearest(self.cells).gather(1, rows[:, :, None].expand_as(self.cells))
        return grids.gather(1, rows[:, :, None].expand_as(self.cells)).gather(2, columns)

    def blank(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps `[B, H, W]` of the images with zeros where nothing is inspected."""
        return maps.where(self._pixels(maps), maps.new_zeros(()))

    def largest(self, maps: torch.Tensor) -> torch.Tensor:
        """The largest value `[B]` of each of maps `[B, H, W]`, among inspected pixels."""
        return maps.masked_fill(~self._pixels(maps), -torch.inf).flatten(1).amax(1)

    def _pixels(self, maps: torch.Tensor) -> torch.Tensor:
        """The cell that every pixel's centre lies in: bool `[B, H, W]`."""
        size = (int(maps.shape[1]), int(maps.shape[2]))
        sides = zip(size, self.cells.shape[1:], strict=True)
        rows, columns = (
            (torch.arange(side, device=maps.device) * 2 + 1) * cells // (2 * side) for side, cells in sides
        )
        return self.cells.to(maps.device)[:, rows][:, :, columns]


def on_grid(cells: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cells bool `[B, h, w]` on another grid (h, w): those that share ground with any of them."""
    if grid == tuple(cells.shape[1:]):
        return cells
    shared: torch.Tensor = functional.adaptive_max_pool2d(cells[:, None].float(), grid)[:, 0] > 0
    return shared


def between(cells: torch.Tensor) -> torch.Tensor:
    """Cells bool `[B, h, w]`, and those that have such cells on all four sides: in their row to the left and
    to the right, in their column above and below. So every hole is closed, and many a notch.
    """
    sides = [cells]
    for axis in (1, 2):
        before = cells.cumsum(axis) > 0
        after = cells.flip(axis).cumsum(axis).flip(axis) > 0
        sides.append(before & after)
    return cells | (sides[1] & sides[2])


def dilated(cells: torch.Tensor) -> torch.Tensor:
    """Cells bool `[B, h, w]` and their eight neighbours."""
    return functional.max_pool2d(cells[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def reached(cells: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Of cells bool `[B, h, w]` those that hang together with one of `start`, bool `[1, h, w]`, over sides or
    corners, by at most h + w steps. Of an image without such a cell all.
    """
    inside = cells.float()
    found = (cells & start).float()
    for _ in range(cells.shape[1] + cells.shape[2]):
        before = found
        found = functional.max_pool2d(found[:, None], 3, stride=1, padding=1)[:, 0] * inside
        if not found.is_cuda and torch.equal(found, before):
            break  # a GPU would have to be waited for
    return torch.where(found.flatten(1).any(1)[:, None, None], found > 0, cells)


def _nearest(mask: torch.Tensor) -> torch.Tensor:
    """For every place of the last axis of `[..., n]` the nearest that is true, the first of two that are as
    near; of rows without any, the first place.
    """
    places = torch.arange(mask.shape[-1], device=mask.device)
    steps = places - places[:, None]
    # Twice the distance, and one more on the right: no two places are as near.
    apart = 2 * steps.abs() + (steps > 0)
    return torch.where(mask[..., None, :], apart, 4 * mask.shape[-1]).argmin(-1)
