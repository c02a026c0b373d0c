"""Test martingales: capital that grows only where p-values are not uniform.

Who bets on p-values without knowing better keeps what they have, on average. By Ville's inequality capital
that starts at 1 ever reaches C with probability at most 1/C. So large capital is evidence of a change.

The simple jumper: Vovk, Petej, Nouretdinov, Ahlberg, Carlsson and Gammerman, "Retrain or not retrain:
conformal test martingales for change-point detection", COPA 2021. Power martingales: Vovk, Nouretdinov and
Gammerman, "Testing exchangeability on-line", ICML 2003. The form that never lacks capital after long calm:
Shiryaev-Roberts, as in Vovk, "Testing randomness online", Statistical Science 36 (2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# The share of the jumper's capital that is dealt out anew before each bet.
JUMP = 0.01
_SLOPES = np.array([-1.0, 0.0, 1.0])
_EXPONENTS = np.linspace(0.02, 0.98, 25)
_LN10 = float(np.log(10.0))


@dataclass(frozen=True)
class Bets:
    """The capital of several martingales, each divided among K ways to bet. Logarithms are natural.

    Attributes:
        capital: float64 `[cells, K]`, the logarithm of what each way bets next.
        sums: float64 `[cells, K]`, the sum of the logarithms of what each way would have won by itself.
        lowest: float64 `[cells, K]`, the least value of `sums` so far, 0 before the first image.
        lowest_at: int64 `[cells, K]`, after how many images that was last.
        evidence: float64 `[cells]`, log10 of each martingale's capital after the latest image.
    """

    capital: Array
    sums: Array
    lowest: Array
    lowest_at: npt.NDArray[np.int64]
    evidence: Array

    def __post_init__(self) -> None:
        for name, dtype in (("sums", np.float64), ("lowest", np.float64), ("lowest_at", np.int64)):
            array = getattr(self, name)
            if array.shape != self.capital.shape or array.dtype != dtype:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} {self.capital.shape}, got {array.dtype} {array.shape}"
                )
        if self.evidence.shape != self.capital.shape[:1]:
            raise ValueError(f"evidence must be [{len(self.capital)}], got {self.evidence.shape}")

    def first_changed(self) -> int:
        """The place of the image with which a change began, by the way of betting that rose most since its
        own least value; that is the maximum-likelihood estimate.
        """
        rises = self.sums - self.lowest
        return int(self.lowest_at.flat[int(np.argmax(rises))])


class Jumper:
    """Bets 1 + slope * (p - 1/2) with slopes -1, 0 and 1: at most half of the capital on one image. Such
    slow bets are not carried away by single odd images.
    """

    ways = 3

    def start(self, cells: int) -> Bets:
        return _started(cells, self.ways)

    def step(self, bets: Bets, p: Array, number: int, *, restarting: bool) -> Bets:
        """The bets after an image with p-values `[cells, 2]`; see `_stepped`."""
        whole = np.logaddexp.reduce(bets.capital, axis=1, keepdims=True)
        dealt = np.logaddexp(bets.capital + np.log1p(-JUMP), whole + np.log(JUMP / self.ways))
        # p - 1/2 from both p and 1 - p, of which neither is rounded.
        won = np.log1p(_SLOPES * ((p[:, :1] - p[:, 1:]) / 2.0))
        return _stepped(replace(bets, capital=dealt), won, number, restarting)


class PowerMixture:
    """Bets e * p^(e - 1), and the same of 1 - p, for 25 exponents e from .02 to .98 in equal shares."""

    ways = 2 * len(_EXPONENTS)

    def start(self, cells: int) -> Bets:
        return _started(cells, self.ways)

    def step(self, bets: Bets, p: Array, number: int, *, restarting: bool) -> Bets:
        """The bets after an image with p-values `[cells, 2]`; see `_stepped`."""
        won = np.log(_EXPONENTS) + (_EXPONENTS - 1.0) * np.log(p)[..., None]
        return _stepped(bets, won.reshape(len(p), -1), number, restarting)


def _started(cells: int, ways: int) -> Bets:
    nothing = np.zeros((cells, ways))
    capital = np.full((cells, ways), -np.log(ways))
    return Bets(capital, nothing, nothing, np.zeros((cells, ways), np.int64), np.zeros(cells))


def _stepped(bets: Bets, won: Array, number: int, restarting: bool) -> Bets:
    """`number`: of this image, from 1. `restarting`: a unit of new capital joins before the next image, which
    makes a Shiryaev-Roberts statistic; then the capital is what it was before that unit came.
    """
    after = bets.capital + won
    sums = bets.sums + won
    lower = sums <= bets.lowest
    capital = np.logaddexp(after, -np.log(after.shape[1])) if restarting else after
    return Bets(
        capital,
        sums,
        np.where(lower, sums, bets.lowest),
        np.where(lower, number, bets.lowest_at),
        np.logaddexp.reduce(after, axis=1) / _LN10,
    )


def shared(logs: Array) -> float:
    """log10 of the evidence of several martingales together, from theirs: the largest by their number.

    That it ever reaches C has a probability of at most 1/C: each of the n reaches n * C with at most 1/(n *
    C), and these add up, however the martingales depend on each other. Of their mean that is not known: each
    is one in the history of its own p-values, and their mean need not be one in the history of all.
    """
    return float(logs.max() - np.log10(len(logs)))
