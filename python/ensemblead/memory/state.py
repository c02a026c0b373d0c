"""The state of a fitted memory bank, as data that is checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ensemblead.memory.defects import DefectRows
from ensemblead.memory.places import Numbers, as_places, by_place
from ensemblead.memory.projection import project_chunks
from ensemblead.memory.selection import ROUNDING

_CHUNK = 4096  # rows that are rounded at once


@dataclass(frozen=True)
class BankState:
    """The learned part of a `MemoryBank`; `MemoryBank.from_state` makes the bank again.

    Arrays may be given as NumPy's; they are kept as torch tensors, on the device of the rows.

    Attributes:
        rows: the coreset, float32 or float16 `[M, D]`, finite.
        images: the image of every row, int64 `[M]`; -1 for one that several images have.
        projection: the map that the selection used, float32 `[d, D]`, or None.
        radius: no row added lay farther from the bank than this, in the projected space.
        num_added: rows that were added, M or more.
        index: FAISS's index, serialised, or None for an exact search.
        reach: rows farther from the bank than this enter it when it is extended; None: `radius`.
        separation: no bank of as many rows covers what was added within less than half of it; 0: not known.
        certificate: see `MemoryBank.certificate_`; None: not known.
        places: the cell of every row, int64 `[M, 2]`, ascending; None where places do not matter.
        place_scale: how far squares of cells lay apart in the selection, see `Blocks`.
        grid: height and width of the grid that all places are of; None: not known.
        defects: rows of known defects; None: there are none.
        augment: see `MemoryBank.augment_`.

    The last eight are absent from models of earlier versions.

    Raises TypeError for another kind or dtype, ValueError for a shape or value that no bank has.
    """

    rows: torch.Tensor
    images: torch.Tensor
    projection: torch.Tensor | None
    radius: float
    num_added: int
    index: bytes | None = None
    reach: float | None = None
    separation: float = 0.0
    certificate: float | None = None
    places: torch.Tensor | None = None
    place_scale: float = 0.0
    grid: tuple[int, int] | None = None
    defects: DefectRows | None = None
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_half = str(getattr(self.rows, "dtype", "")).removeprefix("torch.") == "float16"
        rows = _tensor("rows", self.rows, torch.float16 if is_half else torch.float32, 2)
        images = _tensor("images", self.images, torch.int64, 1)
        _require_finite("rows", rows)
        if len(images) != len(rows):
            raise ValueError(f"images must be [{len(rows)}] as the rows, got shape {tuple(images.shape)}")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "images", images.to(rows.device))
        if self.places is not None:
            object.__setattr__(self, "places", self._checked_places(self.places))
        if self.projection is not None:
            projection = _tensor("projection", self.projection, torch.float32, 2)
            _require_finite("projection", projection)
            if projection.shape[1] != rows.shape[1] or projection.shape[0] > projection.shape[1]:
                raise ValueError(
                    f"projection must be [d, {rows.shape[1]}], got shape {tuple(projection.shape)}"
                )
            object.__setattr__(self, "projection", projection.to(rows.device))
        for name in ("radius", "reach", "separation", "certificate", "place_scale"):
            value = getattr(self, name)
            if value is None and name in ("reach", "certificate"):
                continue
            if type(value) not in (int, float):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0.0 <= value < math.inf:
                kind = "factor" if name == "certificate" else "distance"
                raise ValueError(f"{name} must be a finite {kind}, got {value}")
        if type(self.num_added) is not int:
            raise TypeError(f"num_added must be a whole number, got {self.num_added!r}")
        if not len(rows) <= self.num_added < 2**63:
            raise ValueError(f"num_added must be at least the {len(rows)} rows, got {self.num_added}")
        if self.defects is not None and self.defects.rows.shape[1] != rows.shape[1]:
            raise ValueError(
                f"defects must have {rows.shape[1]} columns, got shape {tuple(self.defects.rows.shape)}"
            )
        if not all(isinstance(name, str) for name in self.augment):
            raise TypeError(f"augment must be names, got {self.augment!r}")
        if self.index is not None and type(self.index) is not bytes:
            raise TypeError(f"index must be bytes, got {type(self.index).__name__}")

    def labels(self, index: str, position_radius: int | None) -> Numbers:
        """The image of every row and, with a radius, its place, as in `Buffer`.

        Raises ValueError where index or radius do not go with the state.
        """
        if (self.index is None) != (index == "flat"):
            has = "no serialised index" if self.index is None else "one"
            raise ValueError(f"index={index!r} does not go with a state that has {has}")
        if (self.places is None) != (position_radius is None):
            has = "no places" if self.places is None else "places"
            raise ValueError(f"position_radius={position_radius} does not go with a state that has {has}")
        images = self.images.cpu().numpy()[:, None]
        return images if self.places is None else np.concatenate([images, self.places.cpu().numpy()], 1)

    def _checked_places(self, given: Any) -> torch.Tensor:
        places = _tensor("places", given, torch.int64, 2)
        cells = as_places(places, len(self.rows))
        if not np.array_equal(by_place(cells), np.arange(len(cells))):
            raise ValueError("places must ascend, got places in another order")
        if self.grid is not None and not (cells.max(0) < self.grid).all():
            raise ValueError(f"grid must hold all places, got {self.grid}, and one at {tuple(cells.max(0))}")
        return places.to(self.rows.device)

    def for_half(self) -> BankState:
        """The state for rows that are about to be rounded to float16, which moves them by a little: `radius`
        and what follows from it grow by that. `reach` is no less: a row that is in the bank but for rounding
        must not enter it again.

        Raises ValueError for values that float16 does not have.
        """
        if self.defects is not None:
            self.defects.check_half("half")
        check_half("half", self.rows)
        moved = 0.0
        for start in range(0, len(self.rows), _CHUNK):
            rows = self.rows[start : start + _CHUNK].float()
            halves = rows.half().float()
            # Each projected as the bank does it, since that rounds too.
            before, after = (project_chunks([one], self.projection, one.device) for one in (rows, halves))
            moved = max(moved, float(torch.linalg.vector_norm(before - after, dim=1).max()))
        if moved == 0:
            return self
        radius = self.radius + moved * (1 + ROUNDING)
        known = self.certificate is not None and self.separation > 0
        certificate = 2 * radius / self.separation if known else None
        reach = None if self.reach is None else max(self.reach, moved * (1 + ROUNDING))
        return replace(self, radius=radius, reach=reach, certificate=certificate)


def check_half(argument: str, rows: torch.Tensor) -> None:
    """Raise ValueError, naming `argument`, for values that float16 does not have."""
    largest = torch.stack(rows.aminmax()).abs().max()
    if not bool(torch.isfinite(largest.half())):
        raise ValueError(
            f"{argument}: float16 has values up to 65504, the bank's go up to {float(largest):.6g}"
        )


def _tensor(name: str, given: Any, dtype: torch.dtype, axes: int) -> torch.Tensor:
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(np.ascontiguousarray(given))
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{name} must be an array or a tensor, got {type(given).__name__}")
    if given.dtype != dtype:
        raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, got {given.dtype}")
    if given.ndim != axes or 0 in given.shape:
        raise ValueError(f"{name} must have {axes} axes and not be empty, got shape {tuple(given.shape)}")
    return given.detach().contiguous()


def _require_finite(name: str, values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
