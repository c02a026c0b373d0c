"""From what a monitor keeps to what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ensemblead.monitoring.kept import Kept
from ensemblead.monitoring.martingales import Bets
from ensemblead.monitoring.state import AlarmRate, Box, DriftState, advised

Floats = npt.NDArray[np.float64]

# Scores whose 90th percentile has grown by more are no matter of a few images more to learn.
_FAR = 2.0
# The same of scores that lie about 0: in distances of the threshold from the median.
_FAR_BEYOND = 3.0
_NEAR = 1.0  # a tenth of the evidence of an alarm


def summarised(kept: Kept, streams: Sequence[str], level: float) -> DriftState:
    """The state of a monitor."""
    observed, known = kept.observed, kept.calibrated
    count = len(observed.score)
    last = observed.evidence[-1] if count else np.zeros(1 + len(streams))
    crossed = np.flatnonzero(observed.evidence[:, 0] >= level)
    # At a level below ten, nothing observed has a tenth of it; that is no evidence.
    alarm, nears = len(crossed) > 0, bool(last[0] >= level - _NEAR and last[0] > 0)
    since = _since(kept, streams, last) if alarm or nears else None
    recent = slice(0 if since is None else since, None)
    new, old = observed.score[recent].astype(np.float64), known.score.astype(np.float64)
    rate = AlarmRate(int(np.count_nonzero(observed.anomalous[recent])), len(new), known.stated)
    median, p90 = (_ratio(new, old, share) for share in (0.5, 0.9))
    cells = _by_cell(kept.regions)
    return DriftState(
        alarm=alarm,
        alarm_at=int(crossed[0]) if alarm else None,
        level=level,
        total=float(last[0]),
        evidence=dict(zip(streams, last[1:].tolist(), strict=True)),
        images=count,
        repeated=observed.repeated,
        since=since,
        since_path=None if since is None else observed.path(since),
        score_ratio=median,
        score_p90_ratio=p90,
        alarm_rate=rate,
        regions=cells,
        moved=() if cells is None or not alarm else _moved(cells, level, observed.frame),
        advice=advised(
            alarm, nears, rate, far=_is_far(new, old, known.threshold, p90), can_extend=known.can_extend
        ),
    )


def _since(kept: Kept, streams: Sequence[str], last: Floats) -> int:
    """By the stream with the most evidence."""
    bets: Bets = getattr(kept, streams[int(np.argmax(last[1:]))])
    return min(bets.first_changed(), len(kept.observed.score) - 1)


def _ratio(new: Floats, old: Floats, share: float) -> float | None:
    """Of quantiles; None where the scores have no zero to be compared with."""
    if not len(new) or old.min() <= 0:
        return None
    return float(np.quantile(new, share) / np.quantile(old, share))


def _is_far(new: Floats, old: Floats, threshold: float | None, p90_ratio: float | None) -> bool:
    if p90_ratio is not None:
        return p90_ratio >= _FAR
    if threshold is None:
        return False
    median = float(np.median(old))
    return bool(len(new)) and float(np.quantile(new, 0.9)) > median + _FAR_BEYOND * (threshold - median)


def _by_cell(bets: Bets | None) -> Floats | None:
    if bets is None:
        return None
    side = math.isqrt(len(bets.evidence))
    return bets.evidence.reshape(side, side)


def _moved(cells: Floats, level: float, frame: Sequence[float]) -> tuple[Box, ...]:
    """The boxes of the cells that have reached the level by themselves."""
    top, left, bottom, right = frame
    high, wide = (bottom - top) / len(cells), (right - left) / len(cells)
    return tuple(
        (top + row * high, left + column * wide, top + (row + 1) * high, left + (column + 1) * wide)
        for row, column in np.argwhere(cells >= level).tolist()
    )
