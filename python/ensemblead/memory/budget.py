"""What a memory bank may hold at once: all rows, or groups of them and what the groups keep."""

from __future__ import annotations

from dataclasses import dataclass

# So many sets of rows that groups have kept must find room beside a group, or nothing could be merged.
_LEAST_SETS = 2


@dataclass(frozen=True)
class Budget:
    """Bytes that rows on their way into a bank may take, and how they are shared out.

    Attributes:
        total: bytes.
        dims, projected: float32 values of a row, and of what stands for it in the selection.
    """

    total: int
    dims: int
    projected: int

    @property
    def row(self) -> int:
        """Bytes of a row with what stands for it."""
        return 4 * (self.dims + self.projected)

    def fits(self, num_rows: int, size: int) -> bool:
        """Whether `size` rows can be selected among all, held at once."""
        return self.at_once(num_rows, size) <= self.total

    def group(self, size: int, beside: int = 0) -> int:
        """Rows of one group, of which `size` are kept. Others need `beside` bytes."""
        return max(1, self._half(size, beside) // self.row)

    def waiting(self, size: int, beside: int = 0) -> int:
        """Rows that groups have kept and that may wait: beside one group without what stands for them, and
        alone, with one set more, when they are selected among.
        """
        half = self._half(size, beside)
        return max(1, min(half // (4 * self.dims), 2 * half // self.row - size))

    def check(self, num_rows: int, size: int, beside: int) -> None:
        """Raise ValueError where `size` of `num_rows` can be selected neither at once nor by groups."""
        a_row = 2 * _LEAST_SETS * self.row + self._bank(1)
        if self.fits(num_rows, size) or a_row * size + beside <= self.total:
            return
        least = min(a_row * size + beside, self.at_once(num_rows, size))
        most = (self.total - beside) // a_row
        raise ValueError(
            f"memory_budget is {self.total} bytes, too few for a bank of {size} of {num_rows} rows of "
            f"{self.dims} values: give memory_budget={least} or more"
            + (f", or coreset_size={most} or less" if most >= 1 else "")
        )

    def at_once(self, num_rows: int, size: int) -> int:
        """Bytes that it takes to select `size` rows among all, held at once."""
        return num_rows * self.row + self._bank(size)

    def _half(self, size: int, beside: int) -> int:
        """Bytes of a group, and of what waits, beside the room that the `size` rows of a selection need.

        A budget that was not checked may lack that room.
        """
        return (self.total - beside - min(self._bank(size), self.total // 4)) // 2

    def _bank(self, size: int) -> int:
        """Bytes of `size` rows that were selected."""
        return 4 * size * self.dims
