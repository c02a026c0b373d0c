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

    def group(self, beside: int = 0) -> int:
        """Rows of one group; as many that groups before it have kept may wait. Others need `beside` bytes."""
        return max(1, (self.total - beside) // (2 * self.row))

    def check(self, num_rows: int, size: int, beside: int) -> None:
        """Raise ValueError where `size` of `num_rows` can be selected neither at once nor by groups."""
        a_row = 2 * _LEAST_SETS * self.row
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
        return num_rows * self.row + 4 * size * self.dims
