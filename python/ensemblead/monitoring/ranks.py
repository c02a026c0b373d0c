"""Online smoothed conformal p-values.

Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2nd edition, 2022), chapter 2: for
exchangeable values they are independent and uniform on (0, 1), ties or not.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
# Numbers that U is drawn from: every one of them, and one less it, is a float64 inside (0, 1).
_STEPS = 1 << 52


class OnlineRanks:
    """The rank of each new value among all before it, in several series side by side.

    A new value is compared by binary search, and then joins its series.

    Args:
        known: of every series the values that are known beforehand; no p-values are made for them.
    """

    def __init__(self, known: list[Values]) -> None:
        # Sorted. float32 values as they are, 4 bytes each.
        self._series = [array("f", np.sort(values).tolist()) for values in known]

    def p_values(self, new: Values, u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """`[series, 2]` for one new value per series: the p-value, small where the value is large, and one
        less it, computed apart so that it is never rounded to 0.

        p = (#greater + U * #equal) / n, over the n values of the series, the new one included.

        Args:
            new: float32 `[series]`, finite.
            u: float64 `[series]`, uniform in (0, 1).
        """
        found = np.empty((len(self._series), 2))
        for row, series, value, own in zip(found, self._series, new.tolist(), u.tolist(), strict=True):
            low, high = bisect_left(series, value), bisect_right(series, value)
            count, equal = len(series) + 1, high - low + 1
            row[0] = (len(series) - high + own * equal) / count
            row[1] = (low + (1.0 - own) * equal) / count
            series.insert(high, value)
        return found


def uniforms(seed: int, number: int, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in (0, 1) for the image of that number: the same ones whenever they are drawn."""
    drawn = np.random.default_rng([seed, number]).integers(_STEPS, size=count)
    return (drawn + 0.5) / _STEPS
